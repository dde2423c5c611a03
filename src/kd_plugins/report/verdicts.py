"""What an experiment says, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kd_plugins.report.checks import SMALLEST
from kd_plugins.report.metrics import metric
from kd_plugins.report.records import Experiment
from kd_plugins.report.statistics import Difference, paired

Differences = Mapping[str, Difference | None]
"""Metric to difference; None where there is no pair, or none of which a percentage makes sense."""


@dataclass(frozen=True)
class Verdict:
    """What is said of an arm against the control.

    Args:
        outcome: better, worse, mixed, no difference shown, too few seeds, or nothing to compare.
        cost: ratio of the processor times of training; None if unknown.
    """

    arm: str
    outcome: str
    sentence: str
    differences: Differences
    cost: float | None


def verdict(experiment: Experiment) -> list[Verdict]:
    """Compare every other arm with the control; empty without a control."""
    control = experiment.control
    if control is None:
        return []
    return [_verdict(experiment, arm, control) for arm in experiment.arms if arm != control]


def sentence(arm: str, control: str, differences: Differences, cost: float | None) -> str:
    """Say how an arm compares with the control.

    Args:
        arm: its name.
        control: the name of the control.
        differences: of the metrics that decide.
        cost: ratio of the processor times of training; None if unknown.

    >>> shown = Difference(-9.34, 5, (-13.0, -5.0), (-14.0, -4.1))
    >>> sentence("student", "control", {"force_rmse": shown}, 1.04)
    ... # doctest: +NORMALIZE_WHITESPACE
    'student against control: force RMSE 9.3 % lower (5 seeds, 95 % between 14.0 and 4.1 % lower);
    training took 1.04 times the CPU time.'
    """
    phrases = [_phrase(metric(name).label, found) for name, found in differences.items()]
    if cost is not None:
        phrases.append(f"training took {cost:.2f} times the CPU time")
    return f"{arm} against {control}: {'; '.join(phrases or ['nothing to compare'])}."


def difference(experiment: Experiment, arm: str, name: str) -> Difference | None:
    """Compare an arm with the control in a metric; None without pairs above zero."""
    if experiment.control is None:
        return None
    ours = experiment.values(arm, name)
    theirs = experiment.values(experiment.control, name)
    seeds = sorted(set(ours) & set(theirs))
    if not seeds or min(min(ours[seed], theirs[seed]) for seed in seeds) < SMALLEST:
        return None
    return paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


def _verdict(experiment: Experiment, arm: str, control: str) -> Verdict:
    found = {name: difference(experiment, arm, name) for name in experiment.metrics}
    cost = _cost(experiment, arm, control)
    return Verdict(arm, _outcome(found), sentence(arm, control, found, cost), found, cost)


def _cost(experiment: Experiment, arm: str, control: str) -> float | None:
    """Compare CPU times; times by the clock are of trainings that may have shared cores."""
    ours, theirs = experiment.of(arm), experiment.of(control)
    times = [
        (ours[seed].train_cpu_seconds, theirs[seed].train_cpu_seconds)
        for seed in ours
        if seed in theirs
    ]
    known = [(a, b) for a, b in times if a is not None and b is not None]
    return sum(a for a, _ in known) / sum(b for _, b in known) if known else None


def _outcome(differences: Differences) -> str:
    found = {name: value for name, value in differences.items() if value is not None}
    if not found:
        return "nothing to compare"
    shown = {_is_better(name, value) for name, value in found.items() if value.shown} - {None}
    if shown:
        return "mixed" if len(shown) == 2 else "better" if True in shown else "worse"
    enough = any(value.interval is not None for value in found.values())
    return "no difference shown" if enough else "too few seeds"


def _is_better(name: str, found: Difference) -> bool | None:
    smaller = metric(name).smaller_is_better
    return None if smaller is None else smaller == (found.percent < 0)


def _phrase(label: str, found: Difference | None) -> str:
    if found is None:
        return f"{label}: nothing to compare"
    seeds = f"{found.pairs} seed{'s' * (found.pairs > 1)}"
    if found.interval is None:
        return f"{label} {change(found.percent)} ({seeds}, too few seeds to tell)"
    if found.interval == (0, 0):
        return f"{label}: no difference ({seeds}, all alike)"
    low, high = found.interval
    if not found.shown:
        return f"{label}: no difference shown ({seeds}, 95 % from {change(low)} to {change(high)})"
    return (
        f"{label} {change(found.percent)} ({seeds}, 95 % between {_size(low)} and {change(high)})"
    )


def change(percent: float) -> str:
    """Return a signed percentage in words.

    >>> change(-9.34), change(0.0)
    ('9.3 % lower', '0.0 % higher')
    """
    return f"{_size(percent)} % {'lower' if percent < 0 else 'higher'}"


def _size(percent: float) -> str:
    return f"{abs(percent):.0f}" if abs(percent) >= 100 else f"{abs(percent):.1f}"
