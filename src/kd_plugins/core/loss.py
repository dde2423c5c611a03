"""The distillation loss: named terms with weights, added as written and never renormalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from kd_plugins.core.distances import Distance
from kd_plugins.core.names import look_up
from kd_plugins.core.quantities import QUANTITIES, quantity
from kd_plugins.core.reduction import masked_mean
from kd_plugins.core.relations import Crack, Instance, check_edge_index
from kd_plugins.core.schedules import Schedule
from kd_plugins.core.targets import TeacherTargets


@dataclass(frozen=True, eq=False)
class Sample:
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


@dataclass(frozen=True)
class DistanceTerm:
    """A distance between student and teacher in one quantity.

    Args:
        name: unique among the terms of a loss; it names the term in logs.
        quantity: a row of the table.
        distance: one of `kd_plugins.core.distances`.
        weight: as a function of the step.

    Raises:
        KeyError: for a quantity that is not in the table.
    """

    name: str
    quantity: str
    distance: Distance
    weight: Schedule

    def __post_init__(self) -> None:
        """Check the quantity's name."""
        quantity(self.quantity)

    def items(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return one number an item, and which of the items count."""
        student, teacher = sample.pair(self.quantity)
        return self.distance(student, teacher), sample.mask(self.quantity)


@dataclass(frozen=True)
class CrackTerm:
    """CRACK's loss over the edges of the batch; compares ``node_embeddings``.

    Args:
        name: unique among the terms of a loss.
        relation: its settings.
        weight: as a function of the step; the paper's lambda_1.
    """

    name: str
    relation: Crack
    weight: Schedule
    quantity: str = "node_embeddings"

    def __post_init__(self) -> None:
        """Check the quantity's name."""
        quantity(self.quantity)

    def items(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return one number a relation kept, padded with a mask over the relations chosen."""
        if sample.edge_index is None:
            raise ValueError(f"term {self.name!r} needs the edge_index of the batch; got none")
        student, teacher = sample.pair(self.quantity)
        check_edge_index(sample.edge_index, len(teacher))
        has_target = sample.mask(self.quantity)[sample.edge_index].all(dim=0)
        losses, kept = self.relation(student, teacher, sample.edge_index[:, has_target])
        return losses.new_zeros(len(kept)).masked_scatter(kept, losses), kept


@dataclass(frozen=True)
class InstanceTerm:
    """Instance-level InfoNCE over the atoms of the batch; compares ``node_embeddings``.

    Args:
        name: unique among the terms of a loss.
        relation: its settings.
        weight: as a function of the step.
    """

    name: str
    relation: Instance
    weight: Schedule
    quantity: str = "node_embeddings"

    def __post_init__(self) -> None:
        """Check the quantity's name."""
        quantity(self.quantity)

    def items(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return one number an atom, and which of the atoms count."""
        student, teacher = sample.pair(self.quantity)
        mask = sample.mask(self.quantity)
        losses = self.relation(student[mask], teacher[mask])
        return losses.new_zeros(len(mask)).masked_scatter(mask, losses), mask


Term = DistanceTerm | CrackTerm | InstanceTerm


@dataclass(frozen=True)
class TermReport:
    """What one term said of one batch on this rank.

    Args:
        name: of the term.
        weight: that it had at this step.
        total: sum of the items that count, unweighted, detached.
        count: how many count.
        masked: how many were left out; for CRACK the relations that are too short to have a
            direction, not those of atoms without a target.
    """

    name: str
    weight: float
    total: Float[Tensor, ""]
    count: int
    masked: int


@dataclass(frozen=True)
class LossReport:
    """The total to differentiate, and one report a term."""

    total: Float[Tensor, ""]
    terms: tuple[TermReport, ...]


@dataclass(frozen=True)
class DistillationLoss:
    """A weighted sum of terms.

    Args:
        terms: with unique names.

    Raises:
        ValueError: if two terms have one name.

    >>> from kd_plugins.core import Constant, TeacherTargets, squared_sum
    >>> loss = DistillationLoss((DistanceTerm("soft", "energy", squared_sum, Constant(2.0)),))
    >>> teacher = TeacherTargets(("a",), torch.tensor([1]), {"energy": torch.tensor([1.0])})
    >>> loss(Sample({"energy": torch.tensor([3.0])}, teacher), step=0).total
    tensor(8.)
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Refuse two terms of one name."""
        names = [term.name for term in self.terms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two terms are called {repeated[0]!r}; a term's name must be unique")

    def active(self, step: int) -> tuple[Term, ...]:
        """Return the terms whose weight is not zero at a step."""
        return tuple(term for term in self.terms if term.weight(step) != 0)

    def __call__(
        self, sample: Sample, *, step: int, terms: tuple[Term, ...] | None = None
    ) -> LossReport:
        """Return the weighted total and one report a term.

        Args:
            sample: the batch.
            step: at which the weights are taken.
            terms: which to evaluate; those that are active at the step if left out. A term of
                weight zero, evaluated for its report, adds nothing to the total.
        """
        chosen = self.active(step) if terms is None else terms
        total = torch.zeros((), device=sample.teacher.n_atoms.device)
        reports = []
        for term in chosen:
            items, mask = term.items(sample)
            weight = term.weight(step)
            if weight != 0:
                total = total + weight * masked_mean(items, mask)
            reports.append(_report(term.name, weight, items.detach(), mask))
        return LossReport(total, tuple(reports))


def _report(name: str, weight: float, items: Tensor, mask: Tensor) -> TermReport:
    count = int(mask.sum())
    total = torch.where(mask, items, torch.zeros_like(items)).sum()
    return TermReport(name, weight, total, count, len(mask) - count)
