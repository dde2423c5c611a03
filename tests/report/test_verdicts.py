from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from kd_plugins.report.results import ExperimentResults, RunResults
from kd_plugins.report.statistics import Difference
from kd_plugins.report.verdicts import compare_in_words, verdict

LOWER = Difference(-9.34, 5, (-13.0, -5.0), (-14.0, -4.1))
HIGHER = Difference(120.4, 5, (101.0, 130.0), (100.0, 140.0))
UNSURE = Difference(-2.0, 5, (-9.0, 3.0), (-12.0, 8.0))


def experiment(
    values: Mapping[str, Sequence[float]], metric: str = "force_rmse"
) -> ExperimentResults:
    """Arms with one number a seed; the control takes 100 s, the others 104 s."""
    runs = {
        (arm, seed): RunResults(
            arm, train_cpu_seconds=100.0 if arm == "control" else 104.0, metrics={metric: value}
        )
        for arm, found in values.items()
        for seed, value in enumerate(found)
    }
    seeds = tuple(range(max(map(len, values.values()))))
    return ExperimentResults("title", tuple(values), seeds, runs, "host", "control", (metric,))


def test_sentence_names_differences_intervals_and_cost() -> None:
    found = compare_in_words(
        "student", "control", {"force_rmse": LOWER, "stress_rmse": UNSURE}, 1.04
    )
    assert found == (
        "student against control: force RMSE 9.3 % lower (5 seeds, 95 % between 14.0 and 4.1 % "
        "lower); stress RMSE: no difference shown (5 seeds, 95 % from 12.0 % lower to 8.0 % "
        "higher); training took 1.04 times the CPU time."
    )


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        (HIGHER, "force RMSE 120 % higher (5 seeds, 95 % between 100 and 140 % higher)"),
        (Difference(0.0, 3, (0.0, 0.0), (0.0, 0.0)), "no difference (3 seeds, all alike)"),
        (Difference(-50.0, 1, None, None), "50.0 % lower (1 seed, too few seeds to tell)"),
        (None, "force RMSE: nothing to compare"),
    ],
)
def test_sentence_of_each_outcome(difference: Difference | None, message: str) -> None:
    assert message in compare_in_words("a", "b", {"force_rmse": difference}, None)


CONTROL = [1.00, 1.01, 0.99, 1.02]


@pytest.mark.parametrize(
    ("ours", "metric", "outcome"),
    [
        ([0.90, 0.91, 0.89, 0.92], "force_rmse", "better"),
        ([1.10, 1.11, 1.09, 1.12], "force_rmse", "worse"),
        ([1.10, 1.11, 1.09, 1.12], "force_cosine", "better"),
        ([1.10, 1.11, 1.09, 1.12], "something_else", "no difference shown"),
        ([1.10, 0.91, 0.89, 1.12], "force_rmse", "no difference shown"),
        ([0.90, 0.91], "force_rmse", "too few seeds"),
        ([], "force_rmse", "nothing to compare"),
        ([-0.1, 0.2, 0.1, 0.1], "force_rmse", "nothing to compare"),
    ],
)
def test_verdict_follows_interval_and_direction(
    ours: list[float], metric: str, outcome: str
) -> None:
    (found,) = verdict(experiment({"control": CONTROL, "student": ours}, metric))
    assert found.outcome == outcome


def test_only_seeds_of_both_arms_are_paired() -> None:
    (found,) = verdict(experiment({"control": CONTROL, "student": [0.9, 0.9, 0.9]}))
    assert found.differences["force_rmse"] is not None
    assert found.differences["force_rmse"].pairs == 3
    assert found.cost == pytest.approx(1.04)


def test_one_metric_better_and_one_worse_is_mixed() -> None:
    ours, theirs = ({"force_rmse": v, "stress_rmse": 1 / v} for v in (0.8, 1.0))
    runs = {
        (arm, seed): RunResults(arm, metrics={k: v * (1 + 0.001 * seed) for k, v in m.items()})
        for arm, m in (("control", theirs), ("student", ours))
        for seed in range(4)
    }
    names = ("force_rmse", "stress_rmse")
    found = ExperimentResults(
        "t", ("control", "student"), (0, 1, 2, 3), runs, "h", "control", names
    )
    assert verdict(found)[0].outcome == "mixed"


def test_a_model_without_control_has_no_verdict() -> None:
    assert verdict(ExperimentResults("t", ("m",), (0,), {})) == []
