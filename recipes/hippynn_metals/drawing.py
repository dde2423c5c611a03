"""How the recipe's figures look, and how they are kept."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from report import ERRORS, interval, records
from study import Study

LOOKS = {
    "teacher": ("#000000", "*"),
    "control_10": ("#0072B2", "s"),
    "control_30": ("#56B4E9", "D"),
    "student": ("#D55E00", "o"),
}
"""Method to colour (Okabe and Ito's, distinct for the colour-blind) and marker."""
LABELS = {"force_rmse": "force RMSE (meV/Å)", "energy_rmse": "energy RMSE (meV/atom)"}
DPI = 150

Rows = list[dict[str, Any]]

plt.rcParams.update(
    {
        "svg.hashsalt": "hippynn_metals",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "font.size": 10,
    }
)


def save(figure: Figure, out: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a figure as png and svg, the same bytes every time, and its numbers as csv."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=DPI)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def missing(study: Study, what: str, command: str) -> SystemExit:
    """Return the error for records that a figure needs."""
    return SystemExit(
        f"{study.out}: expected {what}, got none; "
        f"run python recipes/hippynn_metals/{command.format(out=study.out)}"
    )


def mean_and_half(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and half of the 95 % interval, None of one value.

    >>> mean_and_half([2.0])
    {'mean': 2.0, 'half': None}
    """
    mean, low, _ = interval(values)
    return {"mean": mean, "half": mean - low if len(values) > 1 else None}


def summary(study: Study, error: str, split: str) -> Rows:
    """Return a row a method and size: an error over seeds, from all structures."""
    factor = ERRORS[error][0]
    return [
        {
            "method": method,
            "size": size,
            "weights": next(iter(by_seed.values()))["weights"],
            "seeds": len(by_seed),
            "error": error,
            "split": split,
            **mean_and_half([factor * one["errors"][split][error] for one in by_seed.values()]),
        }
        for (size, share), methods in records(study).items()
        if share == 1
        for method, by_seed in methods.items()
        if method in LOOKS
    ]
