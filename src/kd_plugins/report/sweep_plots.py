"""Figures of a sweep: metrics over an axis, over two axes, and over the number of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kd_plugins.report.figures import (
    INK,
    MARKERS,
    PALETTE,
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
from kd_plugins.report.sweeps import Swept

BRIGHT = 0.6
"""Part of the colour scale above which black text is easier to read than white."""


@styled
def draw_over_axis(
    axis: str, name: str, swept: Sequence[Swept], levels: Mapping[str, float], styles: ArmStyles
) -> Plot:
    """Draw a metric over one axis: a panel a label of a second axis, a line a label of a third.

    Args:
        axis: of the sweep.
        name: of the metric.
        swept: arms that have a point on the axis.
        levels: arms that are not swept, and the teacher, to their value, drawn as horizontal lines.
        styles: of the arms by their names in the experiment.
    """
    all_axes = list(dict.fromkeys(other for one in swept for other in one.at))
    others = [other for other in all_axes if other != axis]
    panel_axis, line_axes = (others[0], others[1:]) if len(others) > 1 else ("", others)
    # An arm that is not swept over the axis of the panels is drawn in each of them.
    panels = list(dict.fromkeys(one.at[panel_axis] for one in swept if panel_axis in one.at)) or [
        ""
    ]
    labels = list(dict.fromkeys(one.at[axis] for one in swept))
    place_of = _places(labels)

    figure, grid = make_panels(len(panels), height=3.4 if len(panels) == 1 else 2.8)
    for axes, panel in zip(grid, panels, strict=True):
        in_panel = [one for one in swept if one.at.get(panel_axis, panel) == panel]
        _draw_lines(axes, in_panel, axis, line_axes, place_of, styles)
        for arm, value in levels.items():
            style = styles.get(arm, ArmStyle(INK, "*", (0, (3, 2))))
            line = {"color": style.colour, "linestyle": style.dashes, "linewidth": 1.2}
            axes.axhline(value, label=escape_text(arm), **line)
        _label_axis(axes, axis, labels)
        shown = [*(one.mean for one in in_panel), *levels.values()]
        use_log_scale(axes.yaxis, shown)
        title = escape_text(f"{panel_axis} {panel}") if panel_axis else ""
        axes.set(ylabel=escape_text(metric(name).title), title=title)
    add_legend(figure, grid[0])

    head = ["arm", *all_axes, "seed", metric(name).title]
    return Plot(
        name=f"sweep-{slug(axis)}-{slug(name)}",
        title=f"{capitalize(metric(name).label)} over {axis}",
        caption="Mean over the seeds, the bars one standard deviation.",
        figure=figure,
        rows=[head, *_rows(swept, all_axes)],
    )


@styled
def draw_map(axes_names: tuple[str, str], name: str, swept: Sequence[Swept]) -> Plot:
    """Draw a metric of one arm over two axes, as coloured points with their values.

    Args:
        axes_names: of the sweep, horizontal and vertical.
        name: of the metric.
        swept: the arm at each point.
    """
    figure, (axes,) = make_panels(1, height=4.2)
    places = [_places(list(dict.fromkeys(one.at[axis] for one in swept))) for axis in axes_names]
    xs, ys = ([places[k][one.at[axes_names[k]]] for one in swept] for k in (0, 1))
    means = [one.mean for one in swept]

    points = axes.scatter(xs, ys, c=means, s=420, cmap="viridis", marker="s")
    for x, y, mean in zip(xs, ys, means, strict=True):
        is_bright = mean > min(means) + BRIGHT * (max(means) - min(means))
        place = {"ha": "center", "va": "center", "fontsize": 8}
        axes.annotate(f"{mean:.3g}", (x, y), color="black" if is_bright else "white", **place)
    figure.colorbar(points, label=escape_text(metric(name).title))
    for k, which in enumerate((axes.xaxis, axes.yaxis)):
        labels = list(places[k])
        if all(map(_is_number, labels)):
            use_log_scale(which, places[k].values())
        which.set_ticks(list(places[k].values()), labels=[escape_text(one) for one in labels])
    axes.set(xlabel=escape_text(axes_names[0]), ylabel=escape_text(axes_names[1]))
    axes.margins(0.15)

    arm = swept[0].arm
    head = ["arm", *axes_names, "seed", metric(name).title]
    return Plot(
        name=f"map-{slug(arm)}-{slug(name)}",
        title=f"{arm}: {metric(name).label} over {axes_names[0]} and {axes_names[1]}",
        caption="Mean over the seeds.",
        figure=figure,
        rows=[head, *_rows(swept, axes_names)],
    )


@styled
def draw_over_weights(name: str, swept: Sequence[Swept], styles: ArmStyles) -> Plot:
    """Draw a metric over the number of weights, a line an arm.

    Args:
        name: of the metric.
        swept: arms with a number of weights.
        styles: of the arms by their names in the experiment.
    """
    figure, (axes,) = make_panels(1)
    for arm in dict.fromkeys(one.arm for one in swept):
        points = sorted((one for one in swept if one.arm == arm), key=lambda one: one.weights or 0)
        _draw_line(axes, [one.weights or 0 for one in points], points, arm, styles[arm])
    use_log_scale(axes.xaxis, [one.weights or 0 for one in swept])
    use_log_scale(axes.yaxis, [one.mean for one in swept])
    axes.set(xlabel="number of weights", ylabel=escape_text(metric(name).title))
    add_legend(figure, axes)

    rows = [
        [one.arm, one.weights, place, value]
        for one in swept
        for place, value in enumerate(one.values)
    ]
    return Plot(
        name=f"weights-{slug(name)}",
        title=f"{capitalize(metric(name).label)} over the number of weights",
        caption="Mean over the seeds, the bars one standard deviation.",
        figure=figure,
        rows=[["arm", "weights", "run", metric(name).title], *rows],
    )


# --- Lines and axes -----------------------------------------------------------------------------


def _draw_lines(
    axes: Axes,
    swept: Sequence[Swept],
    axis: str,
    line_axes: Sequence[str],
    place_of: Mapping[str, float],
    styles: ArmStyles,
) -> None:
    """Draw a line an arm and label of the other axes; with such labels, the colour is theirs."""
    by_line: dict[tuple[str, str], list[Swept]] = {}
    for one in swept:
        label = ", ".join(f"{other} {one.at[other]}" for other in line_axes if other in one.at)
        by_line.setdefault((one.arm, label), []).append(one)

    labels = list(dict.fromkeys(label for _, label in by_line if label))
    arms = list(dict.fromkeys(arm for arm, _ in by_line))
    for (arm, label), points in by_line.items():
        style = styles[arm]
        if label and len(labels) > 1:
            colour = PALETTE[labels.index(label) % len(PALETTE)]
            style = ArmStyle(colour, MARKERS[arms.index(arm) % len(MARKERS)], style.dashes)
        places = [place_of[one.at[axis]] for one in points]
        _draw_line(axes, places, points, f"{arm} {label}".strip(), style)


def _draw_line(
    axes: Axes, places: Sequence[float], points: Sequence[Swept], label: str, style: ArmStyle
) -> None:
    axes.errorbar(
        places,
        [one.mean for one in points],
        [one.deviation for one in points],
        color=style.colour,
        marker=style.marker,
        linestyle=style.dashes,
        capsize=3,
        label=escape_text(label),
    )


def _places(labels: Sequence[str]) -> dict[str, float]:
    """Return where labels stand: at their number if all are numbers, else one after another.

    >>> _places(["10", "100"]), _places(["tiny", "large"])
    ({'10': 10.0, '100': 100.0}, {'tiny': 0.0, 'large': 1.0})
    """
    if all(map(_is_number, labels)):
        return {label: float(label) for label in labels}
    return {label: float(place) for place, label in enumerate(labels)}


def _is_number(label: str) -> bool:
    try:
        return np.isfinite(float(label))
    except ValueError:
        return False


def _label_axis(axes: Axes, axis: str, labels: Sequence[str]) -> None:
    if all(map(_is_number, labels)):
        use_log_scale(axes.xaxis, [float(label) for label in labels])
    else:
        axes.set_xticks(range(len(labels)), [escape_text(label) for label in labels])
    axes.set_xlabel(escape_text(axis))


def _rows(swept: Sequence[Swept], axes_names: Sequence[str]) -> list[list[object]]:
    return [
        [one.arm, *(one.at.get(axis, "") for axis in axes_names), place, value]
        for one in swept
        for place, value in enumerate(one.values)
    ]
