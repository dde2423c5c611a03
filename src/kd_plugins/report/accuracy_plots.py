"""Figures of accuracy: parity, embeddings, differences from the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kd_plugins.report.figures import (
    GREY,
    INK,
    Look,
    Looks,
    Plot,
    legend,
    panels,
    plain,
    slug,
    styled,
)
from kd_plugins.report.metrics import metric
from kd_plugins.report.results import Pairs
from kd_plugins.report.statistics import Difference

SHOWN = {"forces": ("force", "meV/Å"), "energy_per_atom": ("energy", "meV/atom")}
"""Quantity to its word and the unit of its spread, a thousandth of its own unit."""

AGAINST = {"labels": "labels", "teacher": "the teacher"}


@styled
def parity(against: str, quantity: str, pairs: Mapping[str, Pairs], looks: Looks) -> Plot:
    """Draw student over reference, a panel an arm.

    Args:
        against: ``labels`` or ``teacher``.
        quantity: ``forces`` or ``energy_per_atom``, in eV/Å or eV/atom.
        pairs: arm to the pairs of one of its seeds.
        looks: arm to its look.
    """
    word, unit = SHOWN.get(quantity, (quantity.replace("_", " "), ""))
    figure, grid = panels(len(pairs), height=3.0 if len(pairs) > 1 else 4.2, columns=2)
    every = [v for found in pairs.values() for v in (*found.reference, *found.student)]
    for axes, (arm, found) in zip(grid, pairs.items(), strict=True):
        _scatter(axes, found, looks[arm].colour, min(every), max(every))
        axes.set_title(f"{plain(arm)}\n{_rmse(found, unit)}")
    figure.supxlabel(
        plain(f"{AGAINST.get(against, against)}: {word} ({unit.lstrip('m')})"), fontsize=11
    )
    figure.supylabel(f"student: {word} ({unit.lstrip('m')})", fontsize=11)
    title = f"Parity: {word} against {AGAINST.get(against, against)}"
    caption = (
        "The first seed of each arm; on the line both agree. The title tells the error of what is "
        "drawn, of large data a sample."
    )
    head = ["arm", "reference", "student"]
    rows = [
        [arm, *pair]
        for arm, found in pairs.items()
        for pair in zip(found.reference, found.student, strict=True)
    ]
    return Plot(f"parity-{slug(quantity)}-{slug(against)}", title, caption, figure, [head, *rows])


@styled
def embeddings(values: Mapping[str, Mapping[str, Sequence[float]]], looks: Looks) -> Plot:
    """Draw how alike student's and teacher's embeddings are.

    Args:
        values: metric to arm to one value a seed.
        looks: arm to its look.
    """
    arms = list(dict.fromkeys(arm for found in values.values() for arm in found))
    figure, grid = panels(len(values), height=0.9 + 0.38 * len(arms))
    for axes, (name, found) in zip(grid, values.items(), strict=True):
        for place, arm in enumerate(arms):
            _bar(axes, len(arms) - place, found.get(arm, ()), looks[arm].colour)
        axes.set_yticks(range(len(arms), 0, -1), [plain(arm) for arm in arms])
        axes.set_xlabel(plain(metric(name).title))
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
    head = ["metric", "arm", "value"]
    rows = [[m, arm, v] for m, found in values.items() for arm in found for v in found[arm]]
    caption = "Student's against teacher's embeddings: mean over the seeds, the line its spread."
    return Plot("embeddings", "Likeness of embeddings", caption, figure, [head, *rows])


@styled
def forest(differences: Mapping[str, Mapping[str, Difference]], looks: Looks) -> Plot:
    """Draw the paired differences in percent with their intervals.

    Args:
        differences: arm to metric to its difference from the control.
        looks: arm to its look.
    """
    lines = [
        (arm, name, -0.34 * line - 0.2 * group)
        for line, (group, arm, name) in enumerate(
            (group, arm, name) for group, arm in enumerate(differences) for name in differences[arm]
        )
    ]
    figure, (axes,) = panels(1, height=1.3 - lines[-1][2])
    for arm, name, place in lines:
        _whisker(axes, place, differences[arm][name], looks[arm], plain(arm))
    axes.axvline(0, color=GREY, linewidth=1)
    labels = [plain(metric(name).label) for _, name, _ in lines]
    axes.set_yticks([place for *_, place in lines], labels)
    axes.set_ylim(lines[-1][2] - 0.25, 0.25)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("difference from the control (%)")
    legend(figure, axes)
    caption = (
        "Left of the line is lower than the control. Filled: shown, both 95 % intervals leave out "
        "zero. Hollow: not shown. The line joins the outer ends of both intervals."
    )
    return Plot(
        "differences", "Differences from the control", caption, figure, _forest(differences)
    )


def _scatter(axes: Axes, found: Pairs, colour: str, low: float, high: float) -> None:
    axes.axline((low, low), slope=1, color=GREY, linewidth=0.8)
    axes.plot(
        found.reference,
        found.student,
        ".",
        color=colour,
        alpha=0.5,
        markersize=3.5,
        rasterized=True,
    )
    margin = 0.05 * (high - low) or 1.0
    axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    axes.set_aspect("equal")
    axes.locator_params(nbins=4)


def _rmse(found: Pairs, unit: str) -> str:
    if not found.reference:
        return "no pairs"
    rmse = np.sqrt(np.mean(np.square(np.subtract(found.student, found.reference))))
    return f"RMSE {1000 * rmse if unit else rmse:.3g} {unit}".strip()


def _bar(axes: Axes, place: float, values: Sequence[float], colour: str) -> None:
    if not values:
        return
    mean = float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    axes.barh(place, mean, height=0.6, color=colour, alpha=0.85)
    if deviation is not None:
        axes.errorbar(mean, place, xerr=deviation, color=INK, linewidth=1.2, capsize=3)


def _whisker(axes: Axes, place: float, found: Difference, look: Look, label: str) -> None:
    if found.interval is not None:
        axes.plot(found.interval, [place, place], color=look.colour, linewidth=2)
    axes.plot(
        found.percent,
        place,
        look.marker,
        color=look.colour,
        markersize=8,
        markerfacecolor=look.colour if found.is_significant else "none",
        markeredgewidth=1.6,
        label=label,
    )


def _forest(differences: Mapping[str, Mapping[str, Difference]]) -> list[list[object]]:
    head: list[object] = ["arm", "metric", "percent", "pairs", "bootstrap low", "bootstrap high"]
    return [
        [*head, "t low", "t high", "shown"],
        *(
            [arm, name, d.percent, d.pairs, *(d.bootstrap or ("", "")), *(d.student or ("", ""))]
            + [d.is_significant]
            for arm, found in differences.items()
            for name, d in found.items()
        ),
    ]
