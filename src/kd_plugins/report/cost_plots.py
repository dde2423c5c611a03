"""Figures of cost: error against time and memory, time and memory over growing cells."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from kd_plugins.report.figures import (
    INK,
    Look,
    Looks,
    Plot,
    legend,
    logarithmic,
    panels,
    plain,
    slug,
    styled,
)
from kd_plugins.report.metrics import metric
from kd_plugins.report.results import Cell

COSTS = {"microseconds": "microseconds_per_atom", "bytes": "bytes_per_atom"}
"""A cost of a cell and the metric that is the same for one cell."""

TEACHER = Look(INK, "*", (0, (3, 2)))


@dataclass(frozen=True)
class Spot:
    """An arm's costs and errors, one a seed, in the units shown."""

    costs: Sequence[float]
    errors: Sequence[float]


@styled
def pareto(
    cost: str, error: str, spots: Mapping[str, Spot], teacher: float | None, looks: Looks
) -> Plot:
    """Draw an error over a cost, a point an arm; left and low is good.

    Args:
        cost: name of a metric.
        error: name of a metric.
        spots: arm to its costs and errors.
        teacher: its cost, in the unit shown.
        looks: arm to its look.
    """
    figure, (axes,) = panels(1)
    for arm, spot in spots.items():
        _point(axes, spot, plain(arm), looks[arm])
    costs = [*(value for spot in spots.values() for value in spot.costs)]
    if teacher is not None:
        axes.axvline(
            teacher, color=INK, linestyle=TEACHER.dashes, linewidth=1, label="teacher's cost"
        )
        costs.append(teacher)
    logarithmic(axes.xaxis, costs)
    ylabel = textwrap.fill(plain(metric(error).title), 26)
    axes.set(xlabel=metric(cost).title, ylabel=ylabel)
    legend(figure, axes)
    caption = "One point an arm: mean over the seeds, the bars one standard deviation."
    title = f"{_capital(metric(error).label)} against {metric(cost).label}"
    rows = [
        [arm, c, e]
        for arm, spot in spots.items()
        for c, e in zip(spot.costs, spot.errors, strict=True)
    ]
    head = ["arm", metric(cost).title, metric(error).title]
    last = [["teacher", teacher, ""]] if teacher is not None else []
    return Plot(f"pareto-{slug(error)}-{slug(cost)}", title, caption, figure, [head, *rows, *last])


@styled
def growth(cost: str, cells: Mapping[str, Sequence[Cell]], looks: Looks) -> Plot:
    """Draw a cost over the number of atoms; both axes logarithmic.

    Args:
        cost: ``microseconds`` or ``bytes``.
        cells: arm, or ``teacher``, to the cells of all its seeds.
        looks: arm to its look.
    """
    figure, (axes,) = panels(1)
    means = {arm: averaged(cost, found) for arm, found in cells.items()}
    for arm, found in means.items():
        look = looks.get(arm, TEACHER)
        atoms, values = zip(*found, strict=True)
        axes.plot(
            atoms,
            values,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            label=plain(arm),
        )
    logarithmic(axes.xaxis, [n for found in means.values() for n, _ in found])
    logarithmic(axes.yaxis, [value for found in means.values() for _, value in found])
    shown = metric(COSTS[cost])
    axes.set(xlabel="atoms in the cell", ylabel=shown.title)
    legend(figure, axes)
    rows = [[arm, n, value] for arm, found in means.items() for n, value in found]
    title = f"{_capital(shown.label)} in growing cells"
    caption = "Mean over the seeds."
    return Plot(f"growth-{cost}", title, caption, figure, [["arm", "atoms", shown.title], *rows])


def averaged(cost: str, cells: Sequence[Cell]) -> list[tuple[int, float]]:
    """Return number of atoms and mean cost in the unit shown, from small cells to large ones."""
    found: dict[int, list[float]] = {}
    for cell in cells:
        value = getattr(cell, cost)
        if value is not None:
            found.setdefault(cell.atoms, []).append(value * metric(COSTS[cost]).factor)
    return [(atoms, float(np.mean(found[atoms]))) for atoms in sorted(found)]


def _point(axes: Axes, spot: Spot, label: str, look: Look) -> None:
    axes.errorbar(
        float(np.mean(spot.costs)),
        float(np.mean(spot.errors)),
        xerr=_deviation(spot.costs),
        yerr=_deviation(spot.errors),
        color=look.colour,
        marker=look.marker,
        markersize=8,
        linestyle="none",
        elinewidth=1.2,
        label=label,
    )


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
