from __future__ import annotations

import numpy as np
import pytest

from kd_plugins.report.statistics import Difference, compare_pairs

OURS = [0.91, 0.88, 0.95, 0.90, 0.93]
THEIRS = [1.00, 0.97, 1.02, 1.01, 0.99]


def test_equal_samples_do_not_differ() -> None:
    assert compare_pairs(THEIRS, THEIRS) == Difference(0.0, 5, (0.0, 0.0), (0.0, 0.0))
    assert not compare_pairs(THEIRS, THEIRS).is_significant


def test_swapping_the_arms_flips_the_sign() -> None:
    one, other = compare_pairs(OURS, THEIRS), compare_pairs(THEIRS, OURS)
    assert one.percent < 0 < other.percent
    assert (1 + one.percent / 100) * (1 + other.percent / 100) == pytest.approx(1)
    assert one.is_significant and other.is_significant


def test_the_unit_of_the_values_does_not_matter() -> None:
    scaled = compare_pairs([1000 * v for v in OURS], [1000 * v for v in THEIRS])
    one = compare_pairs(OURS, THEIRS)
    assert scaled.percent == pytest.approx(one.percent)
    assert scaled.interval == pytest.approx(one.interval)


def test_the_order_of_the_pairs_does_not_matter() -> None:
    order = [3, 1, 4, 0, 2]
    assert compare_pairs([OURS[i] for i in order], [THEIRS[i] for i in order]) == compare_pairs(
        OURS, THEIRS
    )


def test_a_spread_shared_by_both_arms_does_not_widen_the_interval() -> None:
    shared = np.array([1.0, 2.0, 4.0, 8.0])
    found = compare_pairs(0.9 * shared, shared)
    assert found.interval == pytest.approx((-10.0, -10.0))
    assert found.is_significant


def test_the_t_interval_is_that_of_textbooks() -> None:
    percents = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    found = compare_pairs(list(1 + percents / 100), [1.0] * 5)
    half = 2.7764451 * np.sqrt(20 / 4) / np.sqrt(5)
    assert found.student == pytest.approx((-half, half))


def test_a_difference_is_significant_only_if_both_intervals_exclude_zero() -> None:
    assert not Difference(-5.0, 3, (-8.0, -1.0), (-12.0, 2.0)).is_significant
    assert not Difference(-5.0, 3, (-8.0, 1.0), (-9.0, -2.0)).is_significant
    assert Difference(-5.0, 3, (-8.0, -1.0), (-9.0, -2.0)).is_significant
    assert Difference(5.0, 3, (1.0, 8.0), (2.0, 9.0)).interval == (1.0, 9.0)


@pytest.mark.parametrize("pairs", [1, 2])
def test_two_pairs_have_no_interval(pairs: int) -> None:
    found = compare_pairs(OURS[:pairs], THEIRS[:pairs])
    assert (found.pairs, found.interval, found.is_significant) == (pairs, None, False)


def test_intervals_cover_the_true_difference_in_95_percent_of_trials() -> None:
    rng, held, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        theirs = 1 + 0.05 * rng.normal(size=5)
        found = compare_pairs(theirs * (0.95 + 0.02 * rng.normal(size=5)), theirs, resamples=300)
        held += found.interval[0] <= -5 <= found.interval[1]
    assert held / trials > 0.92


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([], [], "got 0 and 0"),
        ([1.0], [1.0, 2.0], "got 1 and 2"),
        ([0.0, 1.0], [1.0, 1.0], "above 0"),
        ([1.0], [float("nan")], "above 0"),
    ],
)
def test_values_that_are_not_pairs_are_refused(
    ours: list[float], theirs: list[float], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        compare_pairs(ours, theirs)
