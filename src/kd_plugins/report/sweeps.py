"""The arms of a sweep with their values of a metric, and the best point of each on an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from kd_plugins.report.metrics import metric, rank
from kd_plugins.report.results import ExperimentResults


@dataclass(frozen=True)
class Swept:
    """One arm at one point of a sweep.

    Args:
        arm: its name in the experiment.
        at: axis to label; empty for an arm that is not swept.
        values: of a metric in the unit of the page, one a seed.
        weights: how many its models have; None if not known.
    """

    arm: str
    at: Mapping[str, str]
    values: Sequence[float]
    weights: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, 0 of one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


def swept_arms(experiment: ExperimentResults, name: str) -> list[Swept]:
    """Return the arms that have a metric, with their points and numbers of weights."""
    found = []
    for arm in experiment.arms:
        values = experiment.values(arm, name)
        runs = experiment.of(arm).values()
        weights = [run.weights for run in runs if run.weights is not None]
        if values:
            point = experiment.point_of(arm)
            scaled = [value * metric(name).factor for value in values.values()]
            found.append(Swept(point.arm, point.at, scaled, fmean(weights) if weights else None))
    return found


def best_points(swept: Sequence[Swept], name: str, axis: str | None) -> list[Swept]:
    """Return each arm at its best point of an axis, by the mean; all points without an axis."""
    if axis is None:
        return list(swept)

    best: dict[tuple[object, ...], Swept] = {}
    for one in swept:
        others = (one.arm, *((other, label) for other, label in one.at.items() if other != axis))
        if others not in best or rank(name, one.mean) < rank(name, best[others].mean):
            best[others] = one
    return list(best.values())
