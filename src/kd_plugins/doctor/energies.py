"""A teacher's energies beside the labels, less what their elements explain, and wrong units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from kd_plugins.doctor.inputs import DoctorInput, Values, collect_pairs
from kd_plugins.doctor.references import Compositions, References, fit_references
from kd_plugins.doctor.units import ENERGY_UNITS, cosine, rms
from kd_plugins.store.structure import Array

# With fewer, chance correlations of the residuals are common. The tests draw samples of 12 to 50
# structures of ten elements: where fewer than eight remain, nothing but that is reported.
FEWEST_FREE = 8
"""Structures that must be left beyond the elements to fit."""

# The two other limits for following, 0.8 and 0.5, only need a direction; a factor needs a line.
FOLLOWS_LINE = 0.9
"""Cosine between teacher and label spreads, above which a ratio of their sizes means something."""

# A structure that almost alone fixes an element's energy has a residual near 0 / 0.
_LARGEST_LEVERAGE = 0.9


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """What may be wrong with energies.

    Args:
        code: of the finding.
        words: of the finding.
        teacher: factor that turns the teacher's energies into total ones in eV; a number or (B,).
        labels: the same for the labels.
    """

    code: str
    words: str
    teacher: float | Values = 1.0
    labels: float | Values = 1.0


AS_THEY_ARE = Hypothesis("", "nothing is wrong")
"""Both sides hold total energies in eV."""


@dataclass(frozen=True, eq=False)
class EnergyPairs:
    """Teacher and label energies of the structures that have both.

    Args:
        inputs: the structures, B of them.
        teachers: (B,) the teacher's total energies as they came.
        labels: (B,) the same for the labels.
    """

    inputs: Sequence[DoctorInput]
    teachers: Float[Array, " B"]
    labels: Float[Array, " B"]

    @classmethod
    def collect(cls, inputs: Sequence[DoctorInput]) -> EnergyPairs:
        """Return the energies of the structures that have both."""
        kept, teachers, labels = collect_pairs(inputs, "energy")
        return cls(kept, np.array(teachers, np.float64), np.array(labels, np.float64))

    def select(self, rows: Bool[Array, " B"]) -> EnergyPairs:
        """Return the energies of some structures."""
        inputs = [self.inputs[row] for row in np.flatnonzero(rows)]
        return EnergyPairs(inputs, self.teachers[rows], self.labels[rows])

    @cached_property
    def n_atoms(self) -> Values:
        """Number of atoms of each structure, (B,)."""
        return np.array([item.n_atoms for item in self.inputs], np.float64)

    @cached_property
    def compositions(self) -> Compositions:
        """Compositions of all structures."""
        return Compositions.of([item.structure.atomic_numbers for item in self.inputs])

    @cached_property
    def references(self) -> References:
        """The teacher's offset to the labels, element by element."""
        elements = [item.structure.atomic_numbers for item in self.inputs]
        return fit_references(elements, self.teachers, self.labels)

    @property
    def is_enough(self) -> bool:
        """Whether the fit to the elements leaves enough structures to compare."""
        n_free = len(self.inputs) - self.compositions.rank
        return min(n_free, int(self._is_usable.sum())) >= FEWEST_FREE

    @property
    def _is_usable(self) -> Bool[Array, " B"]:
        """Whether a structure has a residual: it does not determine its own fit almost alone."""
        return self.compositions.leverages < _LARGEST_LEVERAGE

    def spreads(self, hypothesis: Hypothesis) -> tuple[Values, Values]:
        """Return teacher and label, eV/atom, less what the elements of all others explain.

        Residuals against the fit to all *other* structures: a structure that is part of its own
        fit would look better than it is.
        """
        per_atom = (
            self.teachers * hypothesis.teacher / self.n_atoms,
            self.labels * hypothesis.labels / self.n_atoms,
        )
        teacher, label = (
            self.compositions.left_out(values)[self._is_usable] for values in per_atom
        )
        return teacher, label

    def unexplained(self, hypothesis: Hypothesis) -> float:
        """Return the part of the labels' spread that remains under a hypothesis.

        It is 1 for a teacher that predicts no spread at all: the null hypothesis is that the
        labels' spread has nothing to do with the teacher.
        """
        teacher, label = self.spreads(hypothesis)
        null = np.median(np.abs(label))
        return float(np.median(np.abs(teacher - label)) / null) if null > 1e-9 else np.inf

    def slope(self, hypothesis: Hypothesis) -> float | None:
        """Return how many times larger the teacher's spread is than the labels'.

        Negative if it goes against them; None if it does not follow them.
        """
        if not self.is_enough:
            return None

        teacher, label = self.spreads(hypothesis)
        follows = cosine(teacher, label)
        if rms(label) < 1e-6 or abs(follows) < FOLLOWS_LINE:
            return None
        return float(np.copysign(rms(teacher) / rms(label), follows))

    def zero_difference(self, hypothesis: Hypothesis) -> float:
        """Return how far total energies are apart under a hypothesis, as a part of the labels'.

        Only what the elements explain is compared. A wrong unit scales the zero of energies as
        well, and a teacher that has learned nothing but the zero still has the right one.
        """
        teacher = self.teachers * hypothesis.teacher / self.n_atoms
        label = self.labels * hypothesis.labels / self.n_atoms
        explained = teacher - label - self.compositions.residuals(teacher - label)

        size = np.median(np.abs(label))
        return float(np.median(np.abs(explained)) / size) if size > 1e-9 else np.inf


def list_hypotheses(energies: EnergyPairs) -> Iterator[Hypothesis]:
    """Yield everything that is commonly wrong with energies."""
    for sign, opposite in ((1.0, ""), (-1.0, " and of opposite sign")):
        for unit, size in ENERGY_UNITS.items():
            words = f"the teacher's energies are in {unit}{opposite}, not eV"
            yield Hypothesis("energy-unit", words, teacher=sign * size)
            words = f"the label energies are in {unit}{opposite}, not eV"
            yield Hypothesis("energy-unit", words, teacher=sign, labels=size)

    yield Hypothesis("energy-sign", "one side's energies have the wrong sign", teacher=-1.0)

    words = "the {} energies are per atom, not total ones of the structure"
    yield Hypothesis("energy-per-atom", words.format("teacher's"), teacher=energies.n_atoms)
    yield Hypothesis("energy-per-atom", words.format("label"), labels=energies.n_atoms)
