"""A teacher's energies beside the labels, each less what its elements explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from kd_plugins.doctor.agreement import cosine, rms
from kd_plugins.doctor.inputs import DoctorInput, Values, paired
from kd_plugins.doctor.references import Compositions, References, fit_references
from kd_plugins.store.structure import Array

FEWEST_FREE = 8
"""Structures beyond the elements to fit, below which nothing is said of energies."""
FOLLOWS = 0.9
"""Cosine of spreads above which it is said by how much one is larger."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What may be wrong with energies.

    Args:
        code: of the finding.
        words: of the finding.
        teacher: what makes the teacher's energies total ones in eV; one number or (B,).
        labels: the same of the labels.
    """

    code: str
    words: str
    teacher: float | Values = 1.0
    labels: float | Values = 1.0


PLAIN = Explanation("", "nothing is wrong")
"""Both sides hold total energies in eV."""


@dataclass(frozen=True, eq=False)
class Energies:
    """Both energies of the cases that have them.

    Args:
        cases: B of them.
        teachers: (B,) total energies as they came.
        labels: (B,) the same of the labels.
    """

    cases: Sequence[DoctorInput]
    teachers: Float[Array, " B"]
    labels: Float[Array, " B"]

    @classmethod
    def of(cls, cases: Sequence[DoctorInput]) -> Energies:
        """Collect the cases with both."""
        kept, teachers, labels = paired(cases, "energy")
        return cls(kept, np.array(teachers, np.float64), np.array(labels, np.float64))

    @cached_property
    def n_atoms(self) -> Values:
        """How many atoms each structure has, (B,)."""
        return np.array([case.n_atoms for case in self.cases], np.float64)

    @cached_property
    def compositions(self) -> Compositions:
        """Of all structures."""
        return Compositions.of([case.structure.atomic_numbers for case in self.cases])

    @cached_property
    def references(self) -> References:
        """The teacher's offset to the labels, element by element."""
        elements = [case.structure.atomic_numbers for case in self.cases]
        return fit_references(elements, self.teachers, self.labels)

    def part(self, rows: Bool[Array, " B"]) -> Energies:
        """Return those of some structures."""
        cases = [self.cases[row] for row in np.arange(len(self.cases))[rows]]
        return Energies(cases, self.teachers[rows], self.labels[rows])

    @property
    def enough(self) -> bool:
        """Whether there are so many that the fit to the elements leaves something to compare."""
        free = len(self.cases) - self.compositions.rank
        return min(free, int(self._usable.sum())) >= FEWEST_FREE

    @property
    def _usable(self) -> Bool[Array, " B"]:
        """Those that do not determine their own fit almost alone."""
        return self.compositions.leverages < 0.9

    def spreads(self, explanation: Explanation) -> tuple[Values, Values]:
        """Return teacher and label, eV/atom, less what the elements of all others explain."""
        left_out = [
            self.compositions.left_out(values * factor / self.n_atoms)[self._usable]
            for values, factor in (
                (self.teachers, explanation.teacher),
                (self.labels, explanation.labels),
            )
        ]
        return left_out[0], left_out[1]

    def unexplained(self, explanation: Explanation) -> float:
        """Return the part of the labels' spread that remains under an explanation.

        It is 1 for a teacher that says nothing, so the labels' own spread is the null hypothesis.
        """
        teacher, label = self.spreads(explanation)
        null = np.median(np.abs(label))
        return float(np.median(np.abs(teacher - label)) / null) if null > 1e-9 else np.inf

    def slope(self, explanation: Explanation) -> float | None:
        """By how much the teacher's spread is larger than the labels', if it follows them.

        Negative if it goes against them.
        """
        if not self.enough:
            return None
        teacher, label = self.spreads(explanation)
        follows = cosine(teacher, label)
        if rms(label) < 1e-6 or abs(follows) < FOLLOWS:
            return None
        return float(np.copysign(rms(teacher) / rms(label), follows))

    def zero_miss(self, explanation: Explanation) -> float:
        """Return how far total energies are apart under an explanation, in parts of the labels'.

        Only what the elements explain is compared: a wrong unit scales the zero as well, and a
        teacher that knows nothing but the zero has the same one.
        """
        teacher = self.teachers * explanation.teacher / self.n_atoms
        label = self.labels * explanation.labels / self.n_atoms
        explained = teacher - label - self.compositions.residuals(teacher - label)
        size = np.median(np.abs(label))
        return float(np.median(np.abs(explained)) / size) if size > 1e-9 else np.inf
