"""All figures of an experiment, in the order of the page; those without data are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from kd_plugins.report.accuracy_plots import draw_differences, draw_embeddings, draw_parity
from kd_plugins.report.cost_plots import (
    COST_METRICS,
    CostsAndErrors,
    draw_pareto,
    draw_scaling,
    mean_costs,
)
from kd_plugins.report.figures import ArmStyles, Plot, choose_styles
from kd_plugins.report.metrics import metric
from kd_plugins.report.physics_plots import (
    draw_elasticity,
    draw_packing,
    draw_rdf,
    draw_volumes,
)
from kd_plugins.report.places import COSTS, caption, places
from kd_plugins.report.results import (
    Cell,
    ExperimentResults,
    ParityQuantity,
    Potential,
    Reference,
    RunResults,
    Series,
    Stiffness,
)
from kd_plugins.report.sweep_plots import draw_map, draw_over_axis, draw_over_weights
from kd_plugins.report.sweeps import Swept, best_points, swept_arms
from kd_plugins.report.training_plots import (
    CROSSING,
    draw_crossover,
    draw_learning_curve,
    draw_loss_terms,
)
from kd_plugins.report.verdicts import verdict

T = TypeVar("T")

MOST_ARMS = 12
"""Arms above which figures with a curve or a panel an arm are left out."""


def all_plots(experiment: ExperimentResults) -> list[Plot]:
    """Draw everything there is data for, no two with the same name.

    Of more than `MOST_ARMS` arms, only what stays readable: differences, costs and the sweep.
    """
    names = {arm: experiment.point_of(arm).arm for arm in experiment.arms}
    by_name = choose_styles(dict.fromkeys(names.values()), experiment.control)
    few = len(experiment.arms) <= MOST_ARMS
    if few and experiment.points:
        styles = choose_styles(experiment.arms, None)
    else:
        styles = {arm: by_name[name] for arm, name in names.items()}

    plots = [*_sweeps(experiment, by_name), *_differences(experiment, styles)]
    if few:
        plots += _accuracy(experiment, styles)
    plots += _cost(experiment, styles)
    if few:
        plots += [*_training(experiment, styles), *_physics(experiment, styles)]
    return _with_unique_names(plots)


# --- Sweeps -------------------------------------------------------------------------------------


def _sweeps(experiment: ExperimentResults, styles: ArmStyles) -> Iterator[Plot]:
    if not experiment.points:
        return

    measured = caption(places(experiment))

    def placed(name: str, plot: Plot) -> Plot:
        return replace(plot, caption=plot.caption + measured) if name in COSTS else plot

    for name in experiment.metrics:
        swept = swept_arms(experiment, name)
        levels = {one.arm: one.mean for one in swept if not one.at}
        teacher = [run.teacher[name] for run in experiment.runs.values() if name in run.teacher]
        if teacher:
            levels["teacher"] = teacher[0] * metric(name).factor

        for axis in dict.fromkeys(axis for one in swept for axis in one.at):
            on_axis = [one for one in swept if axis in one.at]
            if len({one.at[axis] for one in on_axis}) > 1:
                yield placed(name, draw_over_axis(axis, name, on_axis, levels, styles))
        for plot in _maps(name, best_points(swept, name, experiment.best_over)):
            yield placed(name, plot)

    for name in (*experiment.metrics, *COST_METRICS.values()):
        with_weights = [one for one in swept_arms(experiment, name) if one.weights is not None]
        if len({one.weights for one in with_weights}) > 1:
            yield placed(name, draw_over_weights(name, with_weights, styles))


def _maps(name: str, swept: Sequence[Swept]) -> Iterator[Plot]:
    """Draw a map for each arm that is swept over two axes."""
    for arm in dict.fromkeys(one.arm for one in swept):
        of_arm = [one for one in swept if one.arm == arm]
        labels = {axis: {one.at[axis] for one in of_arm} for axis in of_arm[0].at}
        axes = [axis for axis, of_axis in labels.items() if len(of_axis) > 1]
        if len(axes) == 2:
            yield draw_map((axes[0], axes[1]), name, of_arm)


# --- Accuracy -----------------------------------------------------------------------------------


def _differences(experiment: ExperimentResults, styles: ArmStyles) -> Iterator[Plot]:
    differences = {
        arm_verdict.arm: {
            name: difference
            for name, difference in arm_verdict.differences.items()
            if difference is not None
        }
        for arm_verdict in verdict(experiment)
    }
    differences = _without_empty(differences)
    if differences:
        plot = draw_differences(differences, styles)
        if set(COSTS) & set(experiment.metrics):
            plot = replace(plot, caption=plot.caption + caption(places(experiment)))
        yield plot


def _accuracy(experiment: ExperimentResults, styles: ArmStyles) -> Iterator[Plot]:
    for reference, quantity in _parities(experiment):
        pairs = {
            arm: run.parity[reference][quantity]
            for arm, run in _first_seeds(experiment).items()
            if quantity in run.parity.get(reference, {})
        }
        if any(of_arm.reference for of_arm in pairs.values()):
            yield draw_parity(reference, quantity, pairs, styles)

    embeddings = {
        name: _without_empty(
            {arm: list(experiment.values(arm, name).values()) for arm in experiment.arms}
        )
        for name in ("embedding_cosine", "embedding_mae")
    }
    embeddings = _without_empty(embeddings)
    if embeddings:
        yield draw_embeddings(embeddings, styles)


def _parities(experiment: ExperimentResults) -> list[tuple[Reference, ParityQuantity]]:
    """Return reference and quantity of all pairs of all runs, forces first."""
    parities: set[tuple[Reference, ParityQuantity]] = {
        (reference, quantity)
        for run in experiment.runs.values()
        for reference in run.parity
        for quantity in run.parity[reference]
    }
    return sorted(parities, key=lambda parity: (parity[1] != "forces", parity))


# --- Cost ---------------------------------------------------------------------------------------


def _cost(experiment: ExperimentResults, styles: ArmStyles) -> Iterator[Plot]:
    measured = places(experiment)

    for cost in COST_METRICS:
        teacher = _teacher_cost(experiment, cost)
        for error in experiment.metrics:
            points = _costs_and_errors(experiment, cost, error)
            # A single point is compared with nothing.
            if points and (len(points) > 1 or teacher is not None):
                yield draw_pareto(COST_METRICS[cost], error, points, teacher, styles, measured)

    for cost in COST_METRICS:
        cells = {arm: _cells(_seeds(experiment, arm), "student") for arm in experiment.arms}
        cells["teacher"] = _cells(list(experiment.runs.values()), "teacher")
        known = {arm: of_arm for arm, of_arm in cells.items() if mean_costs(cost, of_arm)}
        if known:
            yield draw_scaling(cost, known, styles, measured)


def _costs_and_errors(
    experiment: ExperimentResults, cost: str, error: str
) -> dict[str, CostsAndErrors]:
    """Return those of all arms with a run that has both."""
    points = {}
    for arm in experiment.arms:
        runs = [(_run_cost(run, cost), run.metrics.get(error)) for run in _seeds(experiment, arm)]
        known = [(c, e * metric(error).factor) for c, e in runs if c is not None and e is not None]
        if known:
            points[arm] = CostsAndErrors([c for c, _ in known], [e for _, e in known])
    return points


def _run_cost(run: RunResults, cost: str) -> float | None:
    """Return the cost in the largest cell or, without cells, the metric; in the page's unit."""
    means = mean_costs(cost, run.speed.get("student", ()))
    if means:
        return means[-1][1]

    cost_metric = COST_METRICS[cost]
    value = run.metrics.get(cost_metric)
    return None if value is None else value * metric(cost_metric).factor


def _teacher_cost(experiment: ExperimentResults, cost: str) -> float | None:
    means = mean_costs(cost, _cells(list(experiment.runs.values()), "teacher"))
    return means[-1][1] if means else None


def _cells(runs: Sequence[RunResults], side: Potential) -> list[Cell]:
    return [cell for run in runs for cell in run.speed.get(side, ())]


# --- Training -----------------------------------------------------------------------------------


def _training(experiment: ExperimentResults, styles: ArmStyles) -> Iterator[Plot]:
    names = dict.fromkeys(name for run in experiment.runs.values() for name in run.curves)
    for name in names:
        curves = {
            arm: [run.curves[name] for run in _seeds(experiment, arm) if name in run.curves]
            for arm in experiment.arms
        }
        curves = _without_empty(curves)
        # One epoch is no curve.
        if any(len(curve.epochs) > 1 for seeds in curves.values() for curve in seeds):
            yield draw_learning_curve(name, curves, styles)

    terms = _without_empty({arm: _terms(experiment, arm) for arm in experiment.arms})
    if terms:
        yield draw_loss_terms(terms)

    for quantity, pair in CROSSING.items():
        both = {arm: of_arm for arm, of_arm in terms.items() if set(pair) <= of_arm.keys()}
        if both:
            yield draw_crossover(quantity, both)


def _terms(experiment: ExperimentResults, arm: str) -> dict[str, list[Series]]:
    return _group_by_key([run.terms for run in _seeds(experiment, arm)])


# --- Physics ------------------------------------------------------------------------------------


def _physics(experiment: ExperimentResults, styles: ArmStyles) -> Iterator[Plot]:
    rdfs = {arm: run.rdf for arm, run in _first_seeds(experiment).items() if run.rdf is not None}
    if rdfs:
        yield draw_rdf(rdfs, styles)

    volumes = {
        arm: _group_by_key([run.volumes for run in _seeds(experiment, arm)])
        for arm in experiment.arms
    }
    for draw in (draw_volumes, draw_packing):
        plot = draw(volumes, styles)
        if plot is not None:
            yield plot

    elasticity_plot = draw_elasticity(_stiffness(experiment), styles)
    if elasticity_plot is not None:
        yield elasticity_plot


def _stiffness(experiment: ExperimentResults) -> dict[str, dict[str, list[Stiffness]]]:
    """Return arm, or ``teacher`` or ``reference``, to crystal to one stiffness a seed."""
    stiffness: dict[str, dict[str, list[Stiffness]]] = {}
    for arm in experiment.arms:
        for run in _seeds(experiment, arm):
            for crystal, sides in run.elasticity.items():
                for side, of_side in sides.items():
                    crystals = stiffness.setdefault(arm if side == "student" else side, {})
                    crystals.setdefault(crystal, []).append(of_side)
    return stiffness


# --- Shared -------------------------------------------------------------------------------------


def _seeds(experiment: ExperimentResults, arm: str) -> list[RunResults]:
    return list(experiment.of(arm).values())


def _first_seeds(experiment: ExperimentResults) -> dict[str, RunResults]:
    """Return the first run of each arm that has one."""
    runs = {arm: _seeds(experiment, arm) for arm in experiment.arms}
    return {arm: seeds[0] for arm, seeds in runs.items() if seeds}


def _group_by_key(mappings: Sequence[Mapping[str, T]]) -> dict[str, list[T]]:
    """Return each key with its values in all mappings that have it.

    >>> _group_by_key([{"a": 1}, {"a": 2, "b": 3}])
    {'a': [1, 2], 'b': [3]}
    """
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return {key: [mapping[key] for mapping in mappings if key in mapping] for key in keys}


def _without_empty(mapping: Mapping[str, T]) -> dict[str, T]:
    return {key: value for key, value in mapping.items() if value}


def _with_unique_names(plots: Sequence[Plot]) -> list[Plot]:
    """Number the plots whose name was there before, with numbers that no other name has."""
    taken: set[str] = set()
    named = []
    for plot in plots:
        name, number = plot.name, 1
        while name in taken:
            number += 1
            name = f"{plot.name}-{number}"
        taken.add(name)
        named.append(plot if number == 1 else replace(plot, name=name))
    return named
