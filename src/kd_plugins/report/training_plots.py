"""Figures of a training: learning curves, loss terms, where hard and soft energy errors cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_plugins.report.figures import (
    DASHES,
    PALETTE,
    Looks,
    Plot,
    legend,
    logarithmic,
    panels,
    plain,
    slug,
    styled,
)
from kd_plugins.report.results import Series

Floats = NDArray[np.float64]
Terms = Mapping[str, Sequence[Series]]

HARD, SOFT = "hard energy", "soft energy"
"""Terms that are the energy's error against labels and against the teacher."""


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest over the seeds, at every epoch that any of them has."""

    epochs: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(series: Sequence[Series]) -> Band:
    """Return mean and range over seeds."""
    found: dict[float, list[float]] = {}
    for one in series:
        for epoch, value in zip(one.epochs, one.values, strict=True):
            found.setdefault(epoch, []).append(value)
    epochs = sorted(found)
    values = [found[epoch] for epoch in epochs]
    return Band(
        np.array(epochs),
        np.array([np.mean(v) for v in values]),
        np.array([min(v) for v in values]),
        np.array([max(v) for v in values]),
    )


@styled
def learning_curve(name: str, series: Mapping[str, Sequence[Series]], looks: Looks) -> Plot:
    """Draw a quantity over the epochs, arm by arm, and the range of its seeds.

    Args:
        name: the quantity with its unit.
        series: arm to one series a seed.
        looks: arm to its look.
    """
    figure, (axes,) = panels(1)
    bands = {arm: band(found) for arm, found in series.items()}
    for arm, found in bands.items():
        _draw(axes, found, plain(arm), looks[arm].colour, looks[arm].dashes)
    logarithmic(axes.yaxis, [value for found in bands.values() for value in found.low])
    axes.set(xlabel="epoch", ylabel=plain(name))
    legend(figure, axes)
    caption = "Mean over the seeds; the band is from the lowest seed to the highest."
    return Plot(f"curve-{slug(name)}", f"Learning curve: {name}", caption, figure, _rows(bands))


@styled
def balance(terms: Mapping[str, Terms]) -> Plot:
    """Draw the terms of the loss over the epochs, a panel an arm, mean and range of the seeds.

    Args:
        terms: arm to each term's series, one a seed, as the host logs them.
    """
    names = sorted({name for found in terms.values() for name in found})
    figure, grid = panels(len(terms), height=2.6)
    bands = {
        arm: {name: band(series) for name, series in found.items()} for arm, found in terms.items()
    }
    for axes, (arm, found) in zip(grid, bands.items(), strict=True):
        for place, name in enumerate(names):
            if name in found:
                _draw(axes, found[name], plain(name), _colour(place), _dashes(place))
        logarithmic(axes.yaxis, [value for one in found.values() for value in one.low])
        axes.set(title=plain(arm), xlabel="epoch", ylabel="loss term")
    _legend_of_all(figure, grid)
    caption = "Each term as the host logs it: mean over the seeds, and their range."
    return Plot("terms", "Balance of the loss terms", caption, figure, _rows_of_terms(bands))


@styled
def crossover(terms: Mapping[str, Terms]) -> Plot:
    """Draw the energy's error against labels and against the teacher, and where they cross.

    Args:
        terms: arm to the two terms `HARD` and `SOFT`, one series a seed.
    """
    figure, grid = panels(len(terms), height=2.6)
    bands = {
        arm: {name: band(found[name]) for name in (HARD, SOFT)} for arm, found in terms.items()
    }
    said = []
    for axes, (arm, found) in zip(grid, bands.items(), strict=True):
        _draw(axes, found[HARD], "against labels (hard)", PALETTE[0], "-")
        _draw(axes, found[SOFT], "against the teacher (soft)", PALETTE[1], DASHES[1])
        logarithmic(axes.yaxis, [*found[HARD].low, *found[SOFT].low])
        axes.set(title=plain(arm), xlabel="epoch", ylabel="energy error")
        said.append(_mark(axes, arm, crossings(found[HARD], found[SOFT])))
    _legend_of_all(figure, grid)
    caption = f"The energy's error over the training. {' '.join(said)}"
    title = "Hard and soft energy errors"
    return Plot("crossover", title, caption, figure, _rows_of_terms(bands))


def crossings(first: Band, second: Band) -> list[float]:
    """Return the epochs from which on the other of two mean curves is the higher one."""
    shared, ours, theirs = np.intersect1d(first.epochs, second.epochs, return_indices=True)
    sign = np.sign(first.mean[ours] - second.mean[theirs])
    epochs, sign = shared[sign != 0], sign[sign != 0]
    return [float(epoch) for epoch in epochs[1:][sign[1:] != sign[:-1]]]


def _mark(axes: Axes, arm: str, epochs: list[float]) -> str:
    for epoch in epochs[:1]:
        axes.axvline(epoch, color="#808080", linewidth=0.8, linestyle=":")
    if not epochs:
        return f"{arm}: they do not cross."
    more = f", {len(epochs)} times in all" if len(epochs) > 1 else ""
    return f"{arm}: they first cross at epoch {epochs[0]:g}{more}."


def _draw(axes: Axes, found: Band, label: str, colour: str, dashes: object) -> None:
    axes.plot(found.epochs, found.mean, label=label, color=colour, linestyle=dashes)
    if np.any(found.high > found.low):
        axes.fill_between(
            found.epochs, found.low, found.high, color=colour, alpha=0.22, linewidth=0
        )


def _legend_of_all(figure: Figure, grid: Sequence[Axes]) -> None:
    most = max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    legend(figure, most)


def _colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def _dashes(place: int) -> object:
    return DASHES[place % len(DASHES)]


def _rows(bands: Mapping[str, Band]) -> list[list[object]]:
    head: list[object] = ["arm", "epoch", "mean", "lowest", "highest"]
    return [head, *([arm, *line] for arm, found in bands.items() for line in _lines(found))]


def _rows_of_terms(bands: Mapping[str, Mapping[str, Band]]) -> list[list[object]]:
    head: list[object] = ["arm", "term", "epoch", "mean", "lowest", "highest"]
    return [
        head,
        *(
            [arm, name, *line]
            for arm, found in bands.items()
            for name, one in found.items()
            for line in _lines(one)
        ),
    ]


def _lines(found: Band) -> list[list[float]]:
    columns = np.stack([found.epochs, found.mean, found.low, found.high], axis=1)
    return columns.tolist()
