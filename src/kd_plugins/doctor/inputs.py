"""The doctor's input, a structure with labels and teacher targets, and its output, findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kd_plugins.core.quantities import QUANTITIES, quantity
from kd_plugins.store.structure import Structure

Values = NDArray[np.float64]
"""Numbers of any shape."""

Severity = Literal["error", "warning"]

# Enough to see a pattern in the ids, and few enough for one line of a terminal.
NAMED = 5
"""How many structures a finding names."""


@dataclass(frozen=True, eq=False)
class DoctorInput:
    """One structure with its labels and its teacher's targets.

    Every value becomes a float64 array, because the checks compare numbers that stores and hosts
    keep in different dtypes.

    Args:
        structure_id: its identity.
        structure: the atoms and cell that the values belong to.
        labels: quantity name to array without a batch axis, energy () and forces (N, 3), in the
            units of `kd_plugins.core.quantities.QUANTITIES`; may hold NaN.
        teacher: the same for the teacher.

    Raises:
        KeyError: for a quantity that is not in the table.
    """

    structure_id: str
    structure: Structure
    labels: Mapping[str, Values]
    teacher: Mapping[str, Values]

    def __init__(
        self,
        structure_id: str,
        structure: Structure,
        labels: Mapping[str, object],
        teacher: Mapping[str, object],
    ) -> None:
        # A frozen dataclass can only be filled this way.
        object.__setattr__(self, "structure_id", structure_id)
        object.__setattr__(self, "structure", structure)

        for side, values in (("labels", labels), ("teacher", teacher)):
            for name in values:
                quantity(name)
            arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
            object.__setattr__(self, side, arrays)

    @property
    def n_atoms(self) -> int:
        """Number of atoms of the structure."""
        return self.structure.n_atoms

    @property
    def sides(self) -> tuple[tuple[str, Mapping[str, Values]], ...]:
        """Both sets of values, each with its name in messages."""
        return ("label", self.labels), ("teacher", self.teacher)

    def fits(self, name: str, value: Values) -> bool:
        """Return whether a value has the shape that the quantity has in this structure."""
        row = QUANTITIES[name]
        if row.scope == "structure":
            return row.fits(value.shape)
        return value.shape[:1] == (self.n_atoms,) and row.fits(value.shape[1:])

    def pair(self, name: str) -> tuple[Values, Values] | None:
        """Return the teacher's value and the label; None unless both fit and are finite."""
        teacher, label = self.teacher.get(name), self.labels.get(name)
        if teacher is None or label is None or self.n_atoms == 0:
            return None

        for value in (teacher, label):
            if not self.fits(name, value) or not np.isfinite(value).all():
                return None
        return teacher, label


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Args:
        code: short name of the fault, the same for every set of data.
        severity: an ``"error"`` is certainly a fault; a ``"warning"`` is for a person to judge.
        quantity: the quantity with the fault, or ``"structure"``.
        text: what was found, what was expected, and what to do.
        structure_ids: the first few structures concerned; none if all are.

    >>> Finding("energy-sign", "error", "energy", "turn the sign").message
    'turn the sign; if it is meant so, allow: [energy_sign] overrules this'
    """

    code: str
    severity: Severity
    quantity: str
    text: str
    structure_ids: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in ``allow`` that overrules the finding."""
        return self.code.replace("-", "_")

    @property
    def message(self) -> str:
        """The text; for an error, also how to overrule it."""
        if self.severity != "error":
            return self.text
        return f"{self.text}; if it is meant so, allow: [{self.name}] overrules this"


def first_ids(inputs: Iterable[DoctorInput]) -> tuple[str, ...]:
    """Return the ids of the first few structures."""
    return tuple(item.structure_id for item in inputs)[:NAMED]


def share(part: int, whole: int) -> str:
    """Return how many structures of how many, in words.

    >>> share(3, 12)
    '3 of 12 structures (25 %)'
    """
    return f"{part} of {whole} structures ({100 * part / max(whole, 1):.2g} %)"


def collect_pairs(
    inputs: Sequence[DoctorInput], name: str
) -> tuple[list[DoctorInput], list[Values], list[Values]]:
    """Return the structures with both values of a quantity, the teacher's values and the labels."""
    kept: list[DoctorInput] = []
    teachers: list[Values] = []
    labels: list[Values] = []
    for item in inputs:
        pair = item.pair(name)
        if pair is not None:
            kept.append(item)
            teachers.append(pair[0])
            labels.append(pair[1])
    return kept, teachers, labels
