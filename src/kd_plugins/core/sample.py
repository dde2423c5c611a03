"""What a loss looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.names import look_up


@dataclass(frozen=True, eq=False)
class LossInputs:
    """What a loss looks at: one batch, seen by the student and by its teacher.

    Args:
        student: quantity name to the student's tensor, shaped as the teacher's.
        teacher: the teacher's targets. An adapter may bring both sides to the host's normalised
            units first, so that a weight means what it means in the host's own loss.
        edge_index: (2, E) edges of the batch; needed by `CrackTerm` only.
        masks: quantity name to booleans over its items; items that are False do not count, such
            as the forces on fixed atoms.
    """

    student: Mapping[str, Tensor]
    teacher: TeacherTargets
    edge_index: Tensor | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a mask that would be ignored or broadcast."""
        n_structures, n_atoms = len(self.teacher.n_atoms), int(self.teacher.n_atoms.sum())
        for name, mask in self.masks.items():
            expected = (look_up(name, QUANTITIES, "masks entry").n_items(n_structures, n_atoms),)
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(
                    f"masks[{name!r}]: expected booleans {expected}, "
                    f"got {mask.dtype} {tuple(mask.shape)}"
                )

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's tensor of a quantity.

        Raises:
            KeyError: if one of them does not hold it.
        """
        for source, values in (("student", self.student), ("teacher", self.teacher.values)):
            if name not in values:
                raise KeyError(f"the {source} gives no {name!r}; it gives {', '.join(values)}")
        student, teacher = self.student[name], self.teacher.values[name]
        if student.shape != teacher.shape:
            raise ValueError(
                f"{name}: student and teacher must have one shape, "
                f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        return student, teacher

    def mask(self, name: str) -> Tensor:
        """Return which items of a quantity have a target and count."""
        present = self.teacher.mask(name)
        return present & self.masks[name] if name in self.masks else present
