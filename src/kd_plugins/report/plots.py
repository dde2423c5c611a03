"""All figures of an experiment, in the order of the page; one without data is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from kd_plugins.report import accuracy_plots, cost_plots, physics_plots, training_plots
from kd_plugins.report.cost_plots import COSTS, Spot
from kd_plugins.report.figures import Looks, Plot, looks
from kd_plugins.report.metrics import metric
from kd_plugins.report.results import Cell, ExperimentResults, RunResults, Series, Stiffness
from kd_plugins.report.training_plots import HARD, SOFT
from kd_plugins.report.verdicts import verdict

T = TypeVar("T")


def all_plots(experiment: ExperimentResults) -> list[Plot]:
    """Draw everything there is data for, no two with the same name."""
    look = looks(experiment.arms, experiment.control)
    draws = (_accuracy, _cost, _training, _physics)
    return _renamed([plot for draw in draws for plot in draw(experiment, look)])


def _accuracy(experiment: ExperimentResults, look: Looks) -> Iterator[Plot]:
    found = {
        one.arm: {name: d for name, d in one.differences.items() if d is not None}
        for one in verdict(experiment)
    }
    if any(found.values()):
        yield accuracy_plots.forest({arm: ds for arm, ds in found.items() if ds}, look)
    for against, quantity in _parities(experiment):
        pairs = {
            arm: run.parity[against][quantity]
            for arm, run in _first(experiment).items()
            if quantity in run.parity.get(against, {})
        }
        if any(one.reference for one in pairs.values()):
            yield accuracy_plots.parity(against, quantity, pairs, look)
    names = [name for name in ("embedding_cosine", "embedding_mae") if _values(experiment, name)]
    if names:
        yield accuracy_plots.embeddings({name: _values(experiment, name) for name in names}, look)


def _cost(experiment: ExperimentResults, look: Looks) -> Iterator[Plot]:
    for cost in COSTS:
        for error in experiment.metrics:
            spots = _spots(experiment, cost, error)
            teacher = _teacher_cost(experiment, cost)
            if spots and (len(spots) > 1 or teacher is not None):
                yield cost_plots.pareto(COSTS[cost], error, spots, teacher, look)
    for cost in COSTS:
        cells = {arm: _cells(_seeds(experiment, arm), "student") for arm in experiment.arms}
        cells["teacher"] = _cells(list(experiment.runs.values()), "teacher")
        known = {arm: one for arm, one in cells.items() if cost_plots.averaged(cost, one)}
        if known:
            yield cost_plots.growth(cost, known, look)


def _training(experiment: ExperimentResults, look: Looks) -> Iterator[Plot]:
    names = dict.fromkeys(name for run in experiment.runs.values() for name in run.curves)
    for name in names:
        series = {
            arm: [run.curves[name] for run in _seeds(experiment, arm) if name in run.curves]
            for arm in experiment.arms
        }
        if any(len(one.epochs) > 1 for found in series.values() for one in found):
            known = {arm: found for arm, found in series.items() if found}
            yield training_plots.learning_curve(name, known, look)
    terms = {arm: _terms(_seeds(experiment, arm)) for arm in experiment.arms}
    if any(terms.values()):
        yield training_plots.balance({arm: found for arm, found in terms.items() if found})
    both = {arm: found for arm, found in terms.items() if HARD in found and SOFT in found}
    if both:
        yield training_plots.crossover(both)


def _physics(experiment: ExperimentResults, look: Looks) -> Iterator[Plot]:
    found = {arm: run.rdf for arm, run in _first(experiment).items() if run.rdf is not None}
    if found:
        yield physics_plots.packing(found, look)
    volumes = {
        arm: _by_key([run.volumes for run in _seeds(experiment, arm)]) for arm in experiment.arms
    }
    for plot in (
        physics_plots.volumes(volumes, look),
        physics_plots.elasticity(_stiffness(experiment), look),
    ):
        if plot is not None:
            yield plot


def _seeds(experiment: ExperimentResults, arm: str) -> list[RunResults]:
    return list(experiment.of(arm).values())


def _first(experiment: ExperimentResults) -> dict[str, RunResults]:
    runs = {arm: _seeds(experiment, arm) for arm in experiment.arms}
    return {arm: seeds[0] for arm, seeds in runs.items() if seeds}


def _values(experiment: ExperimentResults, name: str) -> dict[str, list[float]]:
    values = {arm: list(experiment.values(arm, name).values()) for arm in experiment.arms}
    return {arm: found for arm, found in values.items() if found}


def _parities(experiment: ExperimentResults) -> list[tuple[str, str]]:
    runs = experiment.runs.values()
    found = {
        (against, name) for run in runs for against in run.parity for name in run.parity[against]
    }
    return sorted(found, key=lambda one: (one[1] != "forces", one))


def _spots(experiment: ExperimentResults, cost: str, error: str) -> dict[str, Spot]:
    spots = {}
    for arm in experiment.arms:
        runs = [(_run_cost(run, cost), run.metrics.get(error)) for run in _seeds(experiment, arm)]
        known = [(c, e * metric(error).factor) for c, e in runs if c is not None and e is not None]
        if known:
            spots[arm] = Spot([c for c, _ in known], [e for _, e in known])
    return spots


def _run_cost(run: RunResults, cost: str) -> float | None:
    """Return the cost in the largest cell or, without cells, the metric; in the unit shown."""
    cells = cost_plots.averaged(cost, run.speed.get("student", ()))
    if cells:
        return cells[-1][1]
    value = run.metrics.get(COSTS[cost])
    return None if value is None else value * metric(COSTS[cost]).factor


def _teacher_cost(experiment: ExperimentResults, cost: str) -> float | None:
    cells = cost_plots.averaged(cost, _cells(list(experiment.runs.values()), "teacher"))
    return cells[-1][1] if cells else None


def _cells(runs: Sequence[RunResults], side: str) -> list[Cell]:
    return [cell for run in runs for cell in run.speed.get(side, ())]


def _terms(runs: Sequence[RunResults]) -> dict[str, list[Series]]:
    return _by_key([run.terms for run in runs])


def _stiffness(experiment: ExperimentResults) -> dict[str, dict[str, list[Stiffness]]]:
    found: dict[str, dict[str, list[Stiffness]]] = {}
    for arm in experiment.arms:
        for run in _seeds(experiment, arm):
            for crystal, sides in run.elasticity.items():
                for side, one in sides.items():
                    crystals = found.setdefault(arm if side == "student" else side, {})
                    crystals.setdefault(crystal, []).append(one)
    return found


def _by_key(mappings: Sequence[Mapping[str, T]]) -> dict[str, list[T]]:
    keys = dict.fromkeys(key for one in mappings for key in one)
    return {key: [one[key] for one in mappings if key in one] for key in keys}


def _renamed(plots: Sequence[Plot]) -> list[Plot]:
    """Number the names that come twice, with numbers that no other name has."""
    names: set[str] = set()
    named = []
    for plot in plots:
        name, again = plot.name, 1
        while name in names:
            again += 1
            name = f"{plot.name}-{again}"
        names.add(name)
        named.append(plot if again == 1 else replace(plot, name=name))
    return named
