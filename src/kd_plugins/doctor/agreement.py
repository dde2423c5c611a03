"""How well a teacher's vectors follow the labels' and by which factor they are larger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kd_plugins.doctor.inputs import Values
from kd_plugins.store.structure import Array

FEWEST = 6
"""Structures that tell something, below which nothing is said."""
NEAR, ALIKE = 0.65, 0.3
"""How far ratios may be from a unit's factor, in natural logarithms: teachers are soft
or hard; and how much farther from another's, for it to be named as well."""
CLEAR_FACTOR = 2.5
"""A factor that no teacher is soft or hard by."""


@dataclass(frozen=True)
class Agreement:
    """How vectors compare in those structures where they are large enough to tell.

    Args:
        rows: the structures, by position.
        cosine: of the angle between teacher and label, averaged over these structures.
        ratios: (R,) of teacher to label, root mean square, one a structure.
    """

    rows: Int[Array, " R"]
    cosine: float
    ratios: Float[Array, " R"]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return float(np.exp(np.median(np.log(self.ratios))))

    @property
    def is_sized(self) -> bool:
        """Whether the vectors are as large as the labels, within what teachers are soft by."""
        return 1 / CLEAR_FACTOR < self.ratio < CLEAR_FACTOR

    def distance(self, factor: float | Values) -> float:
        """Return how far ratios are from what they should be, in natural logarithms.

        Args:
            factor: one number, or one a structure, (R,).
        """
        return float(np.median(np.abs(np.log(self.ratios / factor))))


def agreement(
    teachers: Sequence[Values], labels: Sequence[Values], large: float
) -> Agreement | None:
    """Compare vectors structure by structure; None if too few are large enough.

    The half of the structures with the largest vectors on both sides counts, each the same, so
    that neither noise near zero nor one broken structure decides.

    Args:
        teachers: one array a structure.
        labels: the same of the labels.
        large: root mean square that at least one side must reach, in the quantity's unit.
    """
    sizes = np.array(
        [[rms(teacher), rms(label)] for teacher, label in zip(teachers, labels, strict=True)]
    )
    if not len(sizes):
        return None
    products = np.where(sizes.min(axis=1) > 0, sizes.prod(axis=1), 0.0)
    told = (sizes.max(axis=1) >= large) & (products > 0)
    rows = np.flatnonzero(told & (products >= np.median(products)))
    if len(rows) < FEWEST:
        return None
    cosines = [cosine(teachers[row], labels[row]) for row in rows]
    return Agreement(rows, float(np.mean(cosines)), sizes[rows, 0] / sizes[rows, 1])


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
    """Return Spearman's correlation of two series, which a few wild values do not bend.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 5.0, 1e6]))
    1.0
    """
    ranks = [np.argsort(np.argsort(side, kind="stable"), kind="stable") for side in (one, other)]
    return float(np.corrcoef(ranks)[0, 1].round(12))


def suspects(units: Mapping[str, float], ours: str) -> dict[str, float]:
    """Return what could be wrong to the factor, teacher to label, that would then be found."""
    teacher = {f"the teacher's values are in {unit}": 1 / size for unit, size in units.items()}
    labels = {f"the labels are in {unit}": size for unit, size in units.items()}
    return {f"{what}, not {ours}": factor for what, factor in {**teacher, **labels}.items()}


def likeliest(
    compared: Agreement, factors: Mapping[str, float | Values], softness: float = 1.0
) -> str | None:
    """Return what explains the ratios best, with what explains them nearly as well, or None.

    Args:
        compared: two sets of vectors.
        factors: words to the factor, teacher to label, that would then be found.
        softness: by how much the teacher is known to be soft or hard besides.
    """
    distances = {words: compared.distance(softness * value) for words, value in factors.items()}
    best = min(distances.values())
    if best > NEAR:
        return None
    near = sorted(distances, key=lambda words: distances[words])[:3]
    return "; or ".join(words for words in near if distances[words] < best + ALIKE)
