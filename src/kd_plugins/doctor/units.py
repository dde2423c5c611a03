"""Sizes and directions of a teacher's vectors beside the labels, and units that explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from kd_plugins.doctor.inputs import Values
from kd_plugins.store.structure import Array

# CODATA 2018, as eV and Å.
_BOHR = 0.529177210903
_HARTREE = 27.211386245988
_KCAL = 1 / 23.060547830619
_KJ = 1 / 96.485332123310
_GPA = 1 / 160.2176634

ENERGY_UNITS: Mapping[str, float] = MappingProxyType(
    {"kcal/mol": _KCAL, "kJ/mol": _KJ, "Hartree": _HARTREE, "Rydberg": _HARTREE / 2}
)
"""Name to eV."""

FORCE_UNITS: Mapping[str, float] = MappingProxyType(
    {
        "kcal/mol/Å": _KCAL,
        "kJ/mol/Å": _KJ,
        "kJ/mol/nm": _KJ / 10,
        "Hartree/Bohr": _HARTREE / _BOHR,
        "Hartree/Å": _HARTREE,
        "Rydberg/Bohr": _HARTREE / 2 / _BOHR,
        "eV/Bohr": 1 / _BOHR,
    }
)
"""Name to eV/Å."""

STRESS_UNITS: Mapping[str, float] = MappingProxyType(
    {"GPa": _GPA, "kBar": _GPA / 10, "Hartree/Bohr³": _HARTREE / _BOHR**3}
)
"""Name to eV/Å³."""

# One structure of six that points the other way leaves a mean cosine of 0.67, which still counts as
# following (`kd_plugins.doctor.vector_faults.FORCES_FOLLOW`).
FEWEST = 6
"""Structures with large enough vectors, below which they are not compared."""

# Teachers in the right unit are soft or hard by 0.7 to 1.3 in the tests, but CHGNet by 0.4 beside
# molybdenum at room temperature. Of the common units only eV/Bohr (1.9) is nearer than this, and is
# therefore no more than warned of; the next is kcal/mol/Å (23).
CLEAR_FACTOR = 2.5
"""How many times larger or smaller than the labels no trained teacher is by softness alone."""

# exp(0.65) = 1.9. The forces of real teachers are softer or harder than the labels: those of CHGNet
# on molybdenum by 30 % (tests/doctor/test_units.py); a unit's factor must be found all the
# same.
NEAR = 0.65
"""How far a ratio may be from a unit's factor, in natural logarithms, for that to explain it."""

# Teachers in kcal/mol/Å and labels in Rydberg/Bohr or Hartree/Å give ratios of 23.1, 25.7 and 27.2,
# within 0.17 of each other: softness may have chosen between these, so all are named. Hartree/Bohr
# (51.4) is 0.64 away and is not.
ALIKE = 0.3
"""How much farther than the best another unit may be, in natural logarithms, and still be named."""


@dataclass(frozen=True)
class Agreement:
    """How vectors compare in the structures where they are large enough.

    Args:
        rows: these structures, by position.
        cosine: of the angle between teacher and label, averaged over these structures.
        ratios: (R,) root mean square of the teacher over that of the label, for each structure.
    """

    rows: Int[Array, " R"]
    cosine: float
    ratios: Float[Array, " R"]

    @property
    def ratio(self) -> float:
        """The median ratio, in logarithms: a factor and its inverse weigh the same."""
        return float(np.exp(np.median(np.log(self.ratios))))

    @property
    def is_sized(self) -> bool:
        """Whether the vectors are as large as the labels, up to a teacher's softness."""
        return 1 / CLEAR_FACTOR < self.ratio < CLEAR_FACTOR

    def distance(self, factor: float | Values) -> float:
        """Return how far the ratios are from an expected factor, in natural logarithms.

        Args:
            factor: one number, or one for each structure, (R,).
        """
        return float(np.median(np.abs(np.log(self.ratios / factor))))


def compare_vectors(
    teachers: Sequence[Values], labels: Sequence[Values], large: float
) -> Agreement | None:
    """Compare vectors structure by structure; None if too few are large enough.

    Only the half of the structures with the largest vectors on both sides counts, and each of them
    counts the same: neither noise near zero nor one failed calculation then decides.

    Args:
        teachers: one array a structure.
        labels: the same for the labels.
        large: root mean square that at least one side must reach, in the quantity's unit.
    """
    sizes = np.array(
        [[rms(teacher), rms(label)] for teacher, label in zip(teachers, labels, strict=True)]
    )
    if not len(sizes):
        return None

    # The product is large only where both sides are, in whatever unit either of them is.
    products = np.where(sizes.min(axis=1) > 0, sizes.prod(axis=1), 0.0)
    is_large = (sizes.max(axis=1) >= large) & (products > 0)
    rows = np.flatnonzero(is_large & (products >= np.median(products)))
    if len(rows) < FEWEST:
        return None

    cosines = [cosine(teachers[row], labels[row]) for row in rows]
    ratios = sizes[rows, 0] / sizes[rows, 1]
    return Agreement(rows, float(np.mean(cosines)), ratios)


def rms(values: Values) -> float:
    """Return the root mean square; 0 of nothing.

    >>> rms(np.array([3.0, -3.0]))
    3.0
    """
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def cosine(one: Values, other: Values) -> float:
    """Return the cosine of the angle between two arrays as vectors; 0 if one is zero.

    >>> cosine(np.array([2.0, 0.0]), np.array([-1.0, 0.0]))
    -1.0
    """
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.vdot(one, other) / lengths) if lengths > 0 else 0.0


def rank_correlation(one: Values, other: Values) -> float:
    """Return Spearman's correlation of two series, which outliers hardly change.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 5.0, 1e6]))
    1.0
    """
    ranks = [np.argsort(np.argsort(side, kind="stable"), kind="stable") for side in (one, other)]

    # Rounded, so that the same data in another order give the same findings word by word.
    return float(np.corrcoef(ranks)[0, 1].round(12))


def unit_hypotheses(units: Mapping[str, float], ours: str) -> dict[str, float]:
    """Return words to the factor, teacher to label, that would be found if they were true.

    Args:
        units: name to its size in our unit.
        ours: our unit, for the words.
    """
    teacher = {f"the teacher's values are in {unit}": 1 / size for unit, size in units.items()}
    labels = {f"the labels are in {unit}": size for unit, size in units.items()}
    return {f"{what}, not {ours}": factor for what, factor in {**teacher, **labels}.items()}


def likeliest_hypotheses(
    compared: Agreement, factors: Mapping[str, float | Values], softness: float = 1.0
) -> str | None:
    """Return in words what explains the ratios best, and nearly as well; None if nothing does.

    Args:
        compared: two sets of vectors.
        factors: words to the factor, teacher to label, that would then be found; one number, or
            one for each compared structure.
        softness: by how much the teacher is already known to be soft or hard.
    """
    distances = {words: compared.distance(softness * value) for words, value in factors.items()}
    best = min(distances.values())
    if best > NEAR:
        return None

    nearest = sorted(distances, key=distances.__getitem__)[:3]
    return "; or ".join(words for words in nearest if distances[words] < best + ALIKE)
