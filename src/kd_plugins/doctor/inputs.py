"""What the doctor looks at, structures with two sets of values, and what it says of them."""

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
NAMED = 5
"""How many structures a finding names."""


@dataclass(frozen=True, eq=False)
class DoctorInput:
    """One structure with its labels and its teacher's targets.

    Args:
        structure_id: its identity.
        structure: what the values belong to.
        labels: quantity name to array without a batch axis, energy () and forces (N, 3), in the
            units of `kd_plugins.core.quantities.QUANTITIES`; may hold NaN.
        teacher: the same of the teacher.

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
        object.__setattr__(self, "structure_id", structure_id)
        object.__setattr__(self, "structure", structure)
        for side, values in (("labels", labels), ("teacher", teacher)):
            for name in values:
                quantity(name)
            arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
            object.__setattr__(self, side, arrays)

    @property
    def n_atoms(self) -> int:
        """How many atoms the structure has."""
        return self.structure.n_atoms

    @property
    def sides(self) -> tuple[tuple[str, Mapping[str, Values]], ...]:
        """The two sets of values, each with its name in messages."""
        return ("label", self.labels), ("teacher", self.teacher)

    def fits(self, name: str, value: Values) -> bool:
        """Return whether a value has the shape that the quantity has in this structure."""
        row = QUANTITIES[name]
        if row.scope == "structure":
            return row.fits(value.shape)
        return value.shape[:1] == (self.n_atoms,) and row.fits(value.shape[1:])

    def pair(self, name: str) -> tuple[Values, Values] | None:
        """Return the teacher's value and the label if both are there, whole and finite."""
        values = [side.get(name) for side in (self.teacher, self.labels)]
        if self.n_atoms == 0 or any(
            value is None or not self.fits(name, value) or not np.isfinite(value).all()
            for value in values
        ):
            return None
        teacher, label = values
        return (teacher, label) if teacher is not None and label is not None else None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks it.

    Args:
        code: short name of the fault, the same for every set of data.
        severity: an ``"error"`` is a fault for certain; a ``"warning"`` is for a person to judge.
        quantity: whose values are concerned, or ``"structure"``.
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
        """What the finding is overruled by, in ``allow``."""
        return self.code.replace("-", "_")

    @property
    def message(self) -> str:
        """The text; of an error, also how to overrule it."""
        if self.severity != "error":
            return self.text
        return f"{self.text}; if it is meant so, allow: [{self.name}] overrules this"


def first_ids(cases: Iterable[DoctorInput]) -> tuple[str, ...]:
    """Return the ids of the first few cases."""
    return tuple(case.structure_id for case in cases)[:NAMED]


def share(part: int, whole: int) -> str:
    """Return a count in words.

    >>> share(3, 12)
    '3 of 12 structures (25 %)'
    """
    return f"{part} of {whole} structures ({100 * part / max(whole, 1):.2g} %)"


def paired(
    cases: Sequence[DoctorInput], name: str
) -> tuple[list[DoctorInput], list[Values], list[Values]]:
    """Return the cases with both values of a quantity, the teacher's values and the labels."""
    found = [(case, pair) for case in cases if (pair := case.pair(name)) is not None]
    return (
        [case for case, _ in found],
        [teacher for _, (teacher, _) in found],
        [label for _, (_, label) in found],
    )
