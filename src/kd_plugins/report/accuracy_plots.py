"""Figures of accuracy: parity, embeddings, differences from the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kd_plugins.report.figures import (
    GREY,
    INK,
    ArmStyle,
    ArmStyles,
    Plot,
    add_legend,
    escape_text,
    make_panels,
    slug,
    styled,
)
from kd_plugins.report.metrics import metric
from kd_plugins.report.results import Pairs
from kd_plugins.report.statistics import Difference

QUANTITY_NAMES = {"forces": ("force", "meV/Å"), "energy_per_atom": ("energy", "meV/atom")}
"""Quantity to its word and the unit of its error, a thousandth of the quantity's unit."""
REFERENCE_NAMES = {"labels": "labels", "teacher": "the teacher"}
LINE_HEIGHT, ARM_GAP = 0.34, 0.2
"""Inches from one difference to the next, and more between two arms."""


# --- Parity -------------------------------------------------------------------------------------


@styled
def draw_parity(
    reference: str, quantity: str, pairs: Mapping[str, Pairs], styles: ArmStyles
) -> Plot:
    """Draw student over reference, a panel an arm.

    Args:
        reference: ``labels`` or ``teacher``.
        quantity: ``forces`` or ``energy_per_atom``, in eV/Å or eV/atom.
        pairs: arm to the pairs of one of its seeds.
        styles: of the arms.
    """
    word, unit = QUANTITY_NAMES.get(quantity, (quantity.replace("_", " "), ""))
    reference_name = REFERENCE_NAMES.get(reference, reference)
    figure, grid = make_panels(len(pairs), height=3.0 if len(pairs) > 1 else 4.2, columns=2)

    # All panels have the same limits, so that their points can be compared.
    values = [value for of_arm in pairs.values() for value in (*of_arm.reference, *of_arm.student)]
    for axes, (arm, of_arm) in zip(grid, pairs.items(), strict=True):
        _scatter(axes, of_arm, styles[arm].colour, min(values), max(values))
        axes.set_title(f"{escape_text(arm)}\n{_rmse_text(of_arm, unit)}")

    # Axes are in eV, errors in meV.
    axis_text = f"{word} ({unit.lstrip('m')})"
    figure.supxlabel(escape_text(f"{reference_name}: {axis_text}"), fontsize=11)
    figure.supylabel(f"student: {axis_text}", fontsize=11)

    caption = (
        "The first seed of each arm; on the line both agree. The title tells the error of what is "
        "drawn, of large data a sample."
    )
    head = ["arm", "reference", "student"]
    rows = [
        [arm, *pair]
        for arm, of_arm in pairs.items()
        for pair in zip(of_arm.reference, of_arm.student, strict=True)
    ]
    return Plot(
        name=f"parity-{slug(quantity)}-{slug(reference)}",
        title=f"Parity: {word} against {reference_name}",
        caption=caption,
        figure=figure,
        rows=[head, *rows],
    )


def _scatter(axes: Axes, pairs: Pairs, colour: str, low: float, high: float) -> None:
    axes.axline((low, low), slope=1, color=GREY, linewidth=0.8)
    axes.plot(
        pairs.reference,
        pairs.student,
        ".",
        color=colour,
        alpha=0.5,
        markersize=3.5,
        rasterized=True,  # thousands of points as vectors make a page slow
    )

    margin = 0.05 * (high - low) or 1.0
    axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    axes.set_aspect("equal")
    axes.locator_params(nbins=4)


def _rmse_text(pairs: Pairs, unit: str) -> str:
    if not pairs.reference:
        return "no pairs"
    errors = np.subtract(pairs.student, pairs.reference)
    rmse = np.sqrt(np.mean(np.square(errors)))
    return f"RMSE {1000 * rmse if unit else rmse:.3g} {unit}".strip()


# --- Embeddings ---------------------------------------------------------------------------------


@styled
def draw_embeddings(values: Mapping[str, Mapping[str, Sequence[float]]], styles: ArmStyles) -> Plot:
    """Draw how similar the student's embeddings are to the teacher's.

    Args:
        values: metric to arm to one value a seed.
        styles: of the arms.
    """
    arms = list(dict.fromkeys(arm for by_arm in values.values() for arm in by_arm))
    figure, grid = make_panels(len(values), height=0.9 + 0.38 * len(arms))

    for axes, (name, by_arm) in zip(grid, values.items(), strict=True):
        for place, arm in enumerate(arms):
            _bar(axes, len(arms) - place, by_arm.get(arm, ()), styles[arm].colour)
        axes.set_yticks(range(len(arms), 0, -1), [escape_text(arm) for arm in arms])
        axes.set_xlabel(escape_text(metric(name).title))
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)

    rows = [
        [name, arm, value]
        for name, by_arm in values.items()
        for arm, of_arm in by_arm.items()
        for value in of_arm
    ]
    return Plot(
        name="embeddings",
        title="Likeness of embeddings",
        caption="Student's against teacher's embeddings: mean over the seeds, the line its spread.",
        figure=figure,
        rows=[["metric", "arm", "value"], *rows],
    )


def _bar(axes: Axes, place: float, values: Sequence[float], colour: str) -> None:
    if not values:
        return
    mean = float(np.mean(values))
    axes.barh(place, mean, height=0.6, color=colour, alpha=0.85)
    if len(values) > 1:
        deviation = float(np.std(values, ddof=1))
        axes.errorbar(mean, place, xerr=deviation, color=INK, linewidth=1.2, capsize=3)


# --- Differences from the control ---------------------------------------------------------------


@styled
def draw_differences(
    differences: Mapping[str, Mapping[str, Difference]], styles: ArmStyles
) -> Plot:
    """Draw the paired differences in percent with their intervals, a forest plot.

    Args:
        differences: arm to metric to its difference from the control.
        styles: of the arms.
    """
    lines = _places(differences)
    lowest = lines[-1][2]
    figure, (axes,) = make_panels(1, height=1.3 - lowest)

    for arm, name, place in lines:
        _draw_interval(axes, place, differences[arm][name], styles[arm], escape_text(arm))

    axes.axvline(0, color=GREY, linewidth=1)
    labels = [escape_text(metric(name).label) for _, name, _ in lines]
    axes.set_yticks([place for *_, place in lines], labels)
    axes.set_ylim(lowest - 0.25, 0.25)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("difference from the control (%)")
    add_legend(figure, axes)

    caption = (
        "Left of the line is lower than the control. Filled: shown, both 95 % intervals leave out "
        "zero. Hollow: not shown. The line joins the outer ends of both intervals."
    )
    return Plot(
        name="differences",
        title="Differences from the control",
        caption=caption,
        figure=figure,
        rows=_difference_rows(differences),
    )


def _places(
    differences: Mapping[str, Mapping[str, Difference]],
) -> list[tuple[str, str, float]]:
    """Return arm, metric and place from top to bottom; the first is at 0."""
    pairs = [
        (group, arm, name) for group, arm in enumerate(differences) for name in differences[arm]
    ]
    return [
        (arm, name, -LINE_HEIGHT * line - ARM_GAP * group)
        for line, (group, arm, name) in enumerate(pairs)
    ]


def _draw_interval(
    axes: Axes, place: float, difference: Difference, style: ArmStyle, label: str
) -> None:
    if difference.interval is not None:
        axes.plot(difference.interval, [place, place], color=style.colour, linewidth=2)
    axes.plot(
        difference.percent,
        place,
        style.marker,
        color=style.colour,
        markersize=8,
        markerfacecolor=style.colour if difference.is_significant else "none",
        markeredgewidth=1.6,
        label=label,
    )


def _difference_rows(
    differences: Mapping[str, Mapping[str, Difference]],
) -> list[list[object]]:
    rows: list[list[object]] = [
        [
            "arm",
            "metric",
            "percent",
            "pairs",
            "bootstrap low",
            "bootstrap high",
            "t low",
            "t high",
            "shown",
        ]
    ]
    no_interval = ("", "")
    for arm, by_metric in differences.items():
        for name, difference in by_metric.items():
            bootstrap = difference.bootstrap or no_interval
            student = difference.student or no_interval
            numbers = [difference.percent, difference.pairs, *bootstrap, *student]
            rows.append([arm, name, *numbers, difference.is_significant])
    return rows
