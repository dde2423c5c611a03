"""The verdict of an experiment: each arm against the control, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kd_plugins.report.metrics import metric
from kd_plugins.report.places import difference_in_words, places
from kd_plugins.report.results import SMALLEST, ExperimentResults
from kd_plugins.report.statistics import Difference, compare_pairs

Differences = Mapping[str, Difference | None]
"""Metric to difference; None without pairs, or for values of which a percentage makes no sense."""


@dataclass(frozen=True)
class Verdict:
    """One arm against the control.

    Args:
        arm: its name.
        outcome: better, worse, mixed, no difference shown, too few seeds, or nothing to compare.
        sentence: the comparison in words.
        differences: of the metrics for the verdict.
        cost: ratio of the processor times of training; None if unknown.
    """

    arm: str
    outcome: str
    sentence: str
    differences: Differences
    cost: float | None


def verdict(experiment: ExperimentResults) -> list[Verdict]:
    """Compare every arm that has a control with it."""
    return [
        _compare(experiment, arm, control)
        for arm in experiment.arms
        if (control := experiment.control_of(arm)) is not None
    ]


def difference(experiment: ExperimentResults, arm: str, name: str) -> Difference | None:
    """Compare an arm with its control in a metric; None without pairs above zero."""
    control = experiment.control_of(arm)
    if control is None:
        return None

    arm_values = experiment.values(arm, name)
    control_values = experiment.values(control, name)
    seeds = sorted(set(arm_values) & set(control_values))
    if not seeds or min(min(arm_values[s], control_values[s]) for s in seeds) < SMALLEST:
        return None
    return compare_pairs([arm_values[s] for s in seeds], [control_values[s] for s in seeds])


def compare_in_words(
    arm: str, control: str, differences: Differences, cost: float | None, measured: str = ""
) -> str:
    """Return the sentence that compares an arm with the control.

    Args:
        arm: its name.
        control: the name of the control.
        differences: of the metrics for the verdict.
        cost: ratio of the processor times of training; None if unknown.
        measured: where the costs of both were measured, if that differs.

    >>> lower = Difference(-9.34, 5, (-13.0, -5.0), (-14.0, -4.1))
    >>> compare_in_words("student", "control", {"force_rmse": lower}, 1.04)
    ... # doctest: +NORMALIZE_WHITESPACE
    'student against control: force RMSE 9.3 % lower (5 seeds, 95 % between 14.0 and 4.1 % lower);
    training took 1.04 times the CPU time.'
    """
    phrases = [_phrase(metric(name).label, found) for name, found in differences.items()]
    if cost is not None:
        phrases.append(f"training took {cost:.2f} times the CPU time")
    if measured:
        phrases.append(measured)
    return f"{arm} against {control}: {'; '.join(phrases or ['nothing to compare'])}."


def _compare(experiment: ExperimentResults, arm: str, control: str) -> Verdict:
    differences = {name: difference(experiment, arm, name) for name in experiment.metrics}
    cost = _cost_ratio(experiment, arm, control)
    measured = difference_in_words(places(experiment), arm, control)
    sentence = compare_in_words(arm, control, differences, cost, measured)
    return Verdict(arm, _outcome(differences), sentence, differences, cost)


def _cost_ratio(experiment: ExperimentResults, arm: str, control: str) -> float | None:
    """Return the ratio of CPU times; trainings that shared cores distort times by the clock."""
    arm_runs, control_runs = experiment.of(arm), experiment.of(control)
    arm_total = control_total = 0.0
    for seed in arm_runs.keys() & control_runs.keys():
        arm_time = arm_runs[seed].train_cpu_seconds
        control_time = control_runs[seed].train_cpu_seconds
        if arm_time is not None and control_time is not None:
            arm_total += arm_time
            control_total += control_time
    return arm_total / control_total if control_total else None


def _outcome(differences: Differences) -> str:
    known = {name: found for name, found in differences.items() if found is not None}
    if not known:
        return "nothing to compare"

    directions = {
        _is_better(name, found) for name, found in known.items() if found.is_significant
    } - {None}
    if len(directions) == 2:
        return "mixed"
    if directions:
        return "better" if True in directions else "worse"
    has_interval = any(found.interval is not None for found in known.values())
    return "no difference shown" if has_interval else "too few seeds"


def _is_better(name: str, found: Difference) -> bool | None:
    smaller_is_better = metric(name).smaller_is_better
    return None if smaller_is_better is None else smaller_is_better == (found.percent < 0)


def _phrase(label: str, found: Difference | None) -> str:
    if found is None:
        return f"{label}: nothing to compare"

    seeds = f"{found.pairs} seed{'s' * (found.pairs > 1)}"
    if found.interval is None:
        return f"{label} {change_in_words(found.percent)} ({seeds}, too few seeds to tell)"
    if found.interval == (0, 0):
        return f"{label}: no difference ({seeds}, all alike)"

    low, high = found.interval
    if not found.is_significant:
        ends = f"from {change_in_words(low)} to {change_in_words(high)}"
        return f"{label}: no difference shown ({seeds}, 95 % {ends})"
    ends = f"between {_size(low)} and {change_in_words(high)}"
    return f"{label} {change_in_words(found.percent)} ({seeds}, 95 % {ends})"


def change_in_words(percent: float) -> str:
    """Return a signed percentage in words.

    >>> change_in_words(-9.34), change_in_words(0.0)
    ('9.3 % lower', '0.0 % higher')
    """
    return f"{_size(percent)} % {'lower' if percent < 0 else 'higher'}"


def _size(percent: float) -> str:
    return f"{abs(percent):.0f}" if abs(percent) >= 100 else f"{abs(percent):.1f}"
