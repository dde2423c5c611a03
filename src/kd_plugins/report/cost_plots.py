"""Figures of cost: error against time and memory, time and memory over growing cells."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from kd_plugins.report.figures import (
    INK,
    ArmStyle,
    ArmStyles,
    Plot,
    add_legend,
    capitalize,
    escape_text,
    make_panels,
    slug,
    styled,
    use_log_scale,
)
from kd_plugins.report.metrics import metric
from kd_plugins.report.places import Place, caption, differ
from kd_plugins.report.results import Cell

COST_METRICS = {"microseconds": "microseconds_per_atom", "bytes": "bytes_per_atom"}
"""A cost of a `Cell` to the metric that holds it for one cell."""
TEACHER_STYLE = ArmStyle(INK, "*", (0, (3, 2)))
LABEL_WIDTH = 26
"""Letters of a line of an axis's label."""


@dataclass(frozen=True)
class CostsAndErrors:
    """An arm's costs and errors, one a seed, in the units of the page."""

    costs: Sequence[float]
    errors: Sequence[float]


@styled
def draw_pareto(
    cost: str,
    error: str,
    points: Mapping[str, CostsAndErrors],
    teacher: float | None,
    styles: ArmStyles,
    places: Mapping[str, Place],
) -> Plot:
    """Draw an error over a cost, a point an arm; left and low is good.

    Args:
        cost: name of a metric.
        error: name of a metric.
        points: arm to its costs and errors.
        teacher: its cost, in the unit of the page.
        styles: of the arms.
        places: arm, or ``teacher``, to where its costs were measured.
    """
    figure, (axes,) = make_panels(1)
    for arm, point in points.items():
        _draw_point(axes, point, escape_text(_with_place(arm, arm, places)), styles[arm])

    costs = [value for point in points.values() for value in point.costs]
    if teacher is not None:
        label = _with_place("teacher's cost", "teacher", places)
        axes.axvline(teacher, color=INK, linestyle=TEACHER_STYLE.dashes, linewidth=1, label=label)
        costs.append(teacher)

    use_log_scale(axes.xaxis, costs)
    ylabel = textwrap.fill(escape_text(metric(error).title), LABEL_WIDTH)
    axes.set(xlabel=metric(cost).title, ylabel=ylabel)
    add_legend(figure, axes)

    rows: list[list[object]] = [["arm", metric(cost).title, metric(error).title]]
    for arm, point in points.items():
        rows += [[arm, *pair] for pair in zip(point.costs, point.errors, strict=True)]
    if teacher is not None:
        rows.append(["teacher", teacher, ""])

    return Plot(
        name=f"pareto-{slug(error)}-{slug(cost)}",
        title=f"{capitalize(metric(error).label)} against {metric(cost).label}",
        caption="One point an arm: mean over the seeds, the bars one standard deviation."
        + caption(places),
        figure=figure,
        rows=rows,
    )


@styled
def draw_scaling(
    cost: str,
    cells: Mapping[str, Sequence[Cell]],
    styles: ArmStyles,
    places: Mapping[str, Place],
) -> Plot:
    """Draw a cost over the number of atoms; both axes logarithmic.

    Args:
        cost: ``microseconds`` or ``bytes``.
        cells: arm, or ``teacher``, to the cells of all its seeds.
        styles: of the arms.
        places: arm, or ``teacher``, to where its costs were measured.
    """
    figure, (axes,) = make_panels(1)
    means = {arm: mean_costs(cost, of_arm) for arm, of_arm in cells.items()}

    for arm, points in means.items():
        style = styles.get(arm, TEACHER_STYLE)
        n_atoms, values = zip(*points, strict=True)
        axes.plot(
            n_atoms,
            values,
            color=style.colour,
            marker=style.marker,
            linestyle=style.dashes,
            label=escape_text(_with_place(arm, arm, places)),
        )

    cost_metric = metric(COST_METRICS[cost])
    use_log_scale(axes.xaxis, [n for points in means.values() for n, _ in points])
    use_log_scale(axes.yaxis, [value for points in means.values() for _, value in points])
    axes.set(xlabel="atoms in the cell", ylabel=cost_metric.title)
    add_legend(figure, axes)

    rows = [[arm, n, value] for arm, points in means.items() for n, value in points]
    return Plot(
        name=f"growth-{cost}",
        title=f"{capitalize(cost_metric.label)} in growing cells",
        caption="Mean over the seeds." + caption(places),
        figure=figure,
        rows=[["arm", "atoms", cost_metric.title], *rows],
    )


def mean_costs(cost: str, cells: Sequence[Cell]) -> list[tuple[int, float]]:
    """Return number of atoms and mean cost over seeds, from small cells to large ones.

    Args:
        cost: ``microseconds`` or ``bytes``; cells without it are left out.
        cells: of all seeds of an arm.

    Returns:
        costs in the unit of the page.
    """
    factor = metric(COST_METRICS[cost]).factor
    by_size: dict[int, list[float]] = {}
    for cell in cells:
        value = getattr(cell, cost)
        if value is not None:
            by_size.setdefault(cell.atoms, []).append(value * factor)

    return [(n_atoms, float(np.mean(by_size[n_atoms]))) for n_atoms in sorted(by_size)]


def _with_place(label: str, name: str, places: Mapping[str, Place]) -> str:
    """Return the label of a series, with its place where not all have the same."""
    if name not in places or not differ(places.values()):
        return label
    return f"{label} ({places[name]})"


def _draw_point(axes: Axes, point: CostsAndErrors, label: str, style: ArmStyle) -> None:
    axes.errorbar(
        float(np.mean(point.costs)),
        float(np.mean(point.errors)),
        xerr=_deviation(point.costs),
        yerr=_deviation(point.errors),
        color=style.colour,
        marker=style.marker,
        markersize=8,
        linestyle="none",
        elinewidth=1.2,
        label=label,
    )


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
