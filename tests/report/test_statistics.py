from __future__ import annotations

import numpy as np
import pytest

from kd_plugins.report.statistics import Difference, paired, t_quantile

OURS = [0.91, 0.88, 0.95, 0.90, 0.93]
THEIRS = [1.00, 0.97, 1.02, 1.01, 0.99]


def test_equal_samples_do_not_differ() -> None:
    assert paired(THEIRS, THEIRS) == Difference(0.0, 5, (0.0, 0.0), (0.0, 0.0))
    assert not paired(THEIRS, THEIRS).shown


def test_swapping_the_roles_flips_the_sign() -> None:
    one, other = paired(OURS, THEIRS), paired(THEIRS, OURS)
    assert one.percent < 0 < other.percent
    assert (1 + one.percent / 100) * (1 + other.percent / 100) == pytest.approx(1)
    assert one.shown and other.shown


def test_the_unit_changes_nothing() -> None:
    scaled = paired([1000 * v for v in OURS], [1000 * v for v in THEIRS])
    one = paired(OURS, THEIRS)
    assert scaled.percent == pytest.approx(one.percent)
    assert scaled.interval == pytest.approx(one.interval)


def test_the_order_of_the_pairs_changes_nothing() -> None:
    order = [3, 1, 4, 0, 2]
    assert paired([OURS[i] for i in order], [THEIRS[i] for i in order]) == paired(OURS, THEIRS)


def test_what_pairs_share_does_not_widen_the_interval() -> None:
    shared = np.array([1.0, 2.0, 4.0, 8.0])
    found = paired(0.9 * shared, shared)
    assert found.interval == pytest.approx((-10.0, -10.0))
    assert found.shown


def test_the_t_interval_is_the_textbooks() -> None:
    percents = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    found = paired(list(1 + percents / 100), [1.0] * 5)
    half = 2.776 * np.sqrt(20 / 4) / np.sqrt(5)
    assert found.student == pytest.approx((-half, half))


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (4, 2.776), (30, 2.042), (31, 2.0395), (60, 2.0003), (10**6, 1.95997)],
)
def test_quantiles_of_student_t(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


def test_an_effect_must_leave_zero_out_of_both_intervals() -> None:
    assert not Difference(-5.0, 3, (-8.0, -1.0), (-12.0, 2.0)).shown
    assert not Difference(-5.0, 3, (-8.0, 1.0), (-9.0, -2.0)).shown
    assert Difference(-5.0, 3, (-8.0, -1.0), (-9.0, -2.0)).shown
    assert Difference(5.0, 3, (1.0, 8.0), (2.0, 9.0)).interval == (1.0, 9.0)


@pytest.mark.parametrize("pairs", [1, 2])
def test_two_pairs_have_no_interval(pairs: int) -> None:
    found = paired(OURS[:pairs], THEIRS[:pairs])
    assert (found.pairs, found.interval, found.shown) == (pairs, None, False)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, held, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        theirs = 1 + 0.05 * rng.normal(size=5)
        found = paired(theirs * (0.95 + 0.02 * rng.normal(size=5)), theirs, resamples=300)
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
def test_values_that_make_no_pairs(ours: list[float], theirs: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paired(ours, theirs)
