"""How well a teacher's vectors follow the labels' and by which factor they are larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kd_plugins.doctor.inputs import Values
from kd_plugins.store.structure import Array

# One structure of six that points the other way leaves a mean cosine of 0.67, which still counts as
# following (`kd_plugins.doctor.force_faults.FOLLOWS`).
FEWEST = 6
"""Structures with large enough vectors, below which they are not compared."""

# Teachers in the right unit are soft or hard by 0.7 to 1.3 in the tests. Of the common units only
# eV/Bohr (1.9) is nearer than this, and is therefore no more than warned of; the next is
# kcal/mol/Å (23).
CLEAR_FACTOR = 2.5
"""How many times larger or smaller than the labels no trained teacher is by softness alone."""


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
