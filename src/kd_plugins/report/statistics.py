"""Differences between two arms over pairs of runs with the same seed, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

FEWEST_PAIRS = 3
"""With fewer pairs there is no interval: two differences say next to nothing of their spread."""


@dataclass(frozen=True)
class Difference:
    """Relative difference of an arm's mean from the control's, with two 95 % intervals.

    The bootstrap of a handful of pairs is too narrow, and Student's t assumes normal differences.
    So a difference counts as significant only if both intervals exclude zero.

    Args:
        percent: 100 * (arm's mean / control's mean - 1).
        pairs: seeds that both were trained with.
        bootstrap: percentile interval of the ratio of means over resampled pairs, in percent.
        student: Student's t interval of the mean of the pairs' relative differences, in percent.
    """

    percent: float
    pairs: int
    bootstrap: tuple[float, float] | None
    student: tuple[float, float] | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The union of both intervals; None for too few pairs."""
        if self.bootstrap is None or self.student is None:
            return None
        lower_ends, upper_ends = zip(self.bootstrap, self.student, strict=True)
        return min(lower_ends), max(upper_ends)

    @property
    def is_significant(self) -> bool:
        """Whether both intervals exclude zero, on the same side."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def compare_pairs(
    arm: Sequence[float], control: Sequence[float], seed: int = 0, resamples: int = 10_000
) -> Difference:
    """Compare values of two arms; values at the same place come from the same training seed.

    Args:
        arm: values above zero, in any unit.
        control: values in the same unit.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: for no values, unequally many, or one that is not above zero.

    >>> compare_pairs([1.0, 2.0], [2.0, 2.0]).percent
    -25.0
    """
    pairs = _sorted_pairs(arm, control)
    percent = float(_percent(pairs.mean(axis=0)))
    if len(pairs) < FEWEST_PAIRS:
        return Difference(percent, len(pairs), None, None)

    return Difference(
        percent,
        len(pairs),
        _bootstrap_interval(pairs, seed, resamples),
        mean_interval(_percent(pairs)),
    )


def _sorted_pairs(arm: Sequence[float], control: Sequence[float]) -> Floats:
    """Return the pairs (n, 2), sorted so that their order does not change the bootstrap."""
    if len(arm) != len(control) or not len(arm):
        raise ValueError(
            f"expected values in pairs of the same seed, got {len(arm)} and {len(control)}"
        )

    pairs = np.array(sorted(zip(arm, control, strict=True)), dtype=np.float64)
    if not np.all(np.isfinite(pairs) & (pairs > 0)):
        raise ValueError(
            "expected values above 0, of which a percentage makes sense; "
            f"got {pairs.min():g}; compare the values themselves"
        )
    return pairs


def _percent(pairs: Floats) -> Floats:
    """Return the relative differences of pairs (..., 2) in percent."""
    return 100 * (pairs[..., 0] / pairs[..., 1] - 1)


def _bootstrap_interval(pairs: Floats, seed: int, resamples: int) -> tuple[float, float]:
    rows = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    low, high = np.percentile(_percent(pairs[rows].mean(axis=1)), (2.5, 97.5))
    return float(low), float(high)


def mean_interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Return Student's t interval of a mean, two-sided 95 %.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    sample = np.asarray(values, dtype=np.float64)
    quantile = stdtrit(len(sample) - 1, 0.975)
    half_width = quantile * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean() - half_width), float(sample.mean() + half_width)
