"""Figures of a training: learning curves, loss terms, where hard and soft errors cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_plugins.report.figures import (
    DASHES,
    GREY,
    PALETTE,
    ArmStyles,
    Plot,
    add_legend,
    escape_text,
    make_panels,
    slug,
    styled,
    use_log_scale,
)
from kd_plugins.report.results import Series

Floats = NDArray[np.float64]
TermSeries = Mapping[str, Sequence[Series]]
"""Loss term to one series a seed."""

CROSSING = {name: (f"hard {name}", f"soft {name}") for name in ("energy", "forces")}
"""Quantity to the terms that are its error against labels and against the teacher."""


# --- Mean and range over seeds ------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value over the seeds, at every epoch that any of them has."""

    epochs: Floats
    mean: Floats
    low: Floats
    high: Floats


def average_seeds(series: Sequence[Series]) -> Band:
    """Return mean and range over seeds, which may have logged other epochs than each other."""
    by_epoch: dict[float, list[float]] = {}
    for of_seed in series:
        for epoch, value in zip(of_seed.epochs, of_seed.values, strict=True):
            by_epoch.setdefault(epoch, []).append(value)

    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return Band(
        epochs=np.array(epochs),
        mean=np.array([np.mean(v) for v in values]),
        low=np.array([min(v) for v in values]),
        high=np.array([max(v) for v in values]),
    )


def find_crossings(first: Band, second: Band) -> list[float]:
    """Return the epochs at which the higher one of two mean curves becomes the lower one."""
    epochs, in_first, in_second = np.intersect1d(first.epochs, second.epochs, return_indices=True)
    sign = np.sign(first.mean[in_first] - second.mean[in_second])

    # Curves that only touch do not cross, so epochs with equal values do not count.
    epochs, sign = epochs[sign != 0], sign[sign != 0]
    return [float(epoch) for epoch in epochs[1:][sign[1:] != sign[:-1]]]


# --- Figures ------------------------------------------------------------------------------------


@styled
def draw_learning_curve(
    name: str, series: Mapping[str, Sequence[Series]], styles: ArmStyles
) -> Plot:
    """Draw a quantity over the epochs, arm by arm, and the range of its seeds.

    Args:
        name: the quantity with its unit.
        series: arm to one series a seed.
        styles: of the arms.
    """
    figure, (axes,) = make_panels(1)
    bands = {arm: average_seeds(seeds) for arm, seeds in series.items()}

    for arm, band in bands.items():
        _draw_band(axes, band, escape_text(arm), styles[arm].colour, styles[arm].dashes)
    use_log_scale(axes.yaxis, [value for band in bands.values() for value in band.low])
    axes.set(xlabel="epoch", ylabel=escape_text(name))
    add_legend(figure, axes)

    rows = [[arm, *row] for arm, band in bands.items() for row in _band_rows(band)]
    return Plot(
        name=f"curve-{slug(name)}",
        title=f"Learning curve: {name}",
        caption="Mean over the seeds; the band is from the lowest seed to the highest.",
        figure=figure,
        rows=[["arm", "epoch", "mean", "lowest", "highest"], *rows],
    )


@styled
def draw_loss_terms(terms: Mapping[str, TermSeries]) -> Plot:
    """Draw the terms of the loss over the epochs, a panel an arm, mean and range of the seeds.

    Args:
        terms: arm to each term's series, one a seed, as the host logs them.
    """
    names = sorted({name for of_arm in terms.values() for name in of_arm})
    bands = {
        arm: {name: average_seeds(series) for name, series in of_arm.items()}
        for arm, of_arm in terms.items()
    }

    figure, grid = make_panels(len(terms), height=2.6)
    for axes, (arm, of_arm) in zip(grid, bands.items(), strict=True):
        # A term has the same colour in all panels, also where an arm does without another term.
        for place, name in enumerate(names):
            if name in of_arm:
                colour, dashes = PALETTE[place % len(PALETTE)], DASHES[place % len(DASHES)]
                _draw_band(axes, of_arm[name], escape_text(name), colour, dashes)
        use_log_scale(axes.yaxis, [value for band in of_arm.values() for value in band.low])
        axes.set(title=escape_text(arm), xlabel="epoch", ylabel="loss term")
    _add_longest_legend(figure, grid)

    return Plot(
        name="terms",
        title="Balance of the loss terms",
        caption="Each term as the host logs it: mean over the seeds, and their range.",
        figure=figure,
        rows=_term_rows(bands),
    )


@styled
def draw_crossover(quantity: str, terms: Mapping[str, TermSeries]) -> Plot:
    """Draw an error against labels and against the teacher, and where they cross.

    Args:
        quantity: a key of `CROSSING`.
        terms: arm to its two terms, one series a seed.
    """
    hard, soft = CROSSING[quantity]
    bands = {
        arm: {name: average_seeds(of_arm[name]) for name in (hard, soft)}
        for arm, of_arm in terms.items()
    }

    figure, grid = make_panels(len(terms), height=2.6)
    sentences = []
    for axes, (arm, of_arm) in zip(grid, bands.items(), strict=True):
        _draw_band(axes, of_arm[hard], "against labels (hard)", PALETTE[0], "-")
        _draw_band(axes, of_arm[soft], "against the teacher (soft)", PALETTE[1], DASHES[1])
        use_log_scale(axes.yaxis, [*of_arm[hard].low, *of_arm[soft].low])
        axes.set(title=escape_text(arm), xlabel="epoch", ylabel=f"{quantity} error")

        crossings = find_crossings(of_arm[hard], of_arm[soft])
        for epoch in crossings[:1]:
            axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
        sentences.append(_crossing_sentence(arm, crossings))
    _add_longest_legend(figure, grid)

    return Plot(
        name="crossover" if quantity == "energy" else f"crossover-{quantity}",
        title=f"Hard and soft errors of the {quantity}",
        caption=f"Errors over the training. {' '.join(sentences)}",
        figure=figure,
        rows=_term_rows(bands),
    )


def _crossing_sentence(arm: str, epochs: Sequence[float]) -> str:
    if not epochs:
        return f"{arm}: they do not cross."
    more = f", {len(epochs)} times in all" if len(epochs) > 1 else ""
    return f"{arm}: they first cross at epoch {epochs[0]:g}{more}."


def _draw_band(axes: Axes, band: Band, label: str, colour: str, dashes: object) -> None:
    axes.plot(band.epochs, band.mean, label=label, color=colour, linestyle=dashes)
    if np.any(band.high > band.low):
        axes.fill_between(band.epochs, band.low, band.high, color=colour, alpha=0.22, linewidth=0)


def _add_longest_legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """Add the legend of the panel with the most labels, which stands for all panels."""
    longest = max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    add_legend(figure, longest)


# --- Numbers for the CSV ------------------------------------------------------------------------


def _term_rows(bands: Mapping[str, Mapping[str, Band]]) -> list[list[object]]:
    rows: list[list[object]] = [["arm", "term", "epoch", "mean", "lowest", "highest"]]
    for arm, of_arm in bands.items():
        for name, band in of_arm.items():
            rows += [[arm, name, *row] for row in _band_rows(band)]
    return rows


def _band_rows(band: Band) -> list[list[float]]:
    columns = np.stack([band.epochs, band.mean, band.low, band.high], axis=1)
    return columns.tolist()
