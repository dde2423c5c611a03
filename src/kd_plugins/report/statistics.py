"""Whether an arm differs from the control, over pairs trained with the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_PAIRS = 3
"""With fewer pairs there is no interval."""

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_QUANTILES = (
    (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    + (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
    + (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
)


@dataclass(frozen=True)
class Difference:
    """How much larger our mean is than theirs, in percent, with two 95 % intervals.

    The bootstrap of a handful of pairs is too narrow, and Student's t wants differences that are
    normal. An effect counts as shown only if both intervals leave out zero.

    Args:
        percent: 100 * (our mean / their mean - 1).
        pairs: how many seeds both were trained with.
        bootstrap: percentile interval of the ratio of means over resampled pairs, in percent.
        student: Student's t interval of the mean of the pairs' relative differences, in percent.
    """

    percent: float
    pairs: int
    bootstrap: tuple[float, float] | None
    student: tuple[float, float] | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """From the lower of the two intervals' lower ends to the higher of their upper ends."""
        if self.bootstrap is None or self.student is None:
            return None
        low, high = zip(self.bootstrap, self.student, strict=True)
        return min(low), max(high)

    @property
    def shown(self) -> bool:
        """Whether both intervals leave out zero, on the same side."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def paired(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0, resamples: int = 10_000
) -> Difference:
    """Compare values of two arms, the same place being the same training seed.

    Args:
        ours: the arm's values, above zero, in any unit.
        theirs: the control's, in the same unit.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: for no values, unequally many, or one that is not above zero.

    >>> paired([1.0, 2.0], [2.0, 2.0]).percent
    -25.0
    """
    pairs = _pairs(ours, theirs)
    percent = _percent(pairs.mean(axis=0))
    if len(pairs) < FEWEST_PAIRS:
        return Difference(percent, len(pairs), None, None)
    return Difference(
        percent, len(pairs), _bootstrap(pairs, seed, resamples), _student(_percents(pairs))
    )


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    >>> t_quantile(4)
    2.776
    """
    if freedom < 1:
        raise ValueError(f"expected at least 1 degree of freedom, got {freedom}")
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _pairs(ours: Sequence[float], theirs: Sequence[float]) -> Floats:
    """Return the pairs (n, 2), sorted so that their order changes nothing."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"expected values in pairs of the same seed, got {len(ours)} and {len(theirs)}"
        )
    pairs = np.array(sorted(zip(ours, theirs, strict=True)), dtype=np.float64)
    if not np.all(np.isfinite(pairs) & (pairs > 0)):
        raise ValueError(
            "expected values above 0, of which a percentage makes sense; "
            f"got {pairs.min():g}; compare the values themselves"
        )
    return pairs


def _percent(means: Floats) -> float:
    return float(100 * (means[0] / means[1] - 1))


def _percents(pairs: Floats) -> Floats:
    return 100 * (pairs[:, 0] / pairs[:, 1] - 1)


def _bootstrap(pairs: Floats, seed: int, resamples: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    low, high = np.percentile(_percents(pairs[drawn].mean(axis=1)), (2.5, 97.5))
    return float(low), float(high)


def _student(percents: Floats) -> tuple[float, float]:
    n = len(percents)
    half = t_quantile(n - 1) * percents.std(ddof=1) / np.sqrt(n)
    return float(percents.mean() - half), float(percents.mean() + half)
