"""The figures of a study: relaxed volumes, Table 1 as a map, loss curves, N_train."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Sweep = dict[str, list[dict[str, Any]]]
DPI = 150


def draw(out: Path, relaxed: dict[str, Any], ratios: Sweep, sizes: Sweep) -> None:
    """Write every figure for which there are records."""
    if "teacher" in relaxed:
        volumes(relaxed, out / "volumes.png")
    if ratios:
        ratio_map(ratios, out / "ratios.png")
        curves(ratios, out / "curves.png")
    if sizes:
        learning(sizes, out / "sizes.png")


def volumes(relaxed: dict[str, Any], path: Path) -> None:
    """Draw each crystal's volume error with every model; seeds of an arm share a colour."""
    arms = list(dict.fromkeys(name.rpartition("-seed")[0] or name for name in relaxed))
    crystals = sorted(relaxed["teacher"])
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for place, arm in enumerate(arms):
        members = [
            one
            for name, one in relaxed.items()
            if name.rpartition("-seed")[0] == arm or name == arm
        ]
        shift = 0.8 * (place + 0.5) / len(arms) - 0.4
        for number, member in enumerate(members):
            errors = [member[crystal]["error_percent"] for crystal in crystals]
            xs = [index + shift for index in range(len(crystals))]
            label = arm if number == 0 else None
            axes.plot(xs, errors, "o", ms=4, color=f"C{place}", alpha=0.7, label=label)
    axes.axhline(0, color="grey", lw=0.8)
    axes.set_xticks(range(len(crystals)), crystals, rotation=20)
    axes.set_ylabel("volume error after relaxation (%)")
    axes.legend(ncols=3, frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def scanned(record: dict[str, Any], reference: str = "teacher") -> float:
    """Return a student's mean absolute volume error by scans, in percent."""
    return statistics.mean(abs(one[reference]) for one in record["volumes"].values())


def ratio_map(ratios: Sweep, path: Path) -> None:
    """Draw the volume error over both hard ratios, Taniguchi 2024, Figure 5a."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    rows = [one[0] | {"mean": statistics.mean(map(scanned, one))} for one in ratios.values()]
    rows = [row for row in rows if row["hard"] and row["soft"]]
    if rows:
        points = axes.scatter(
            [row["hard"]["energy"] for row in rows],
            [row["hard"]["forces"] for row in rows],
            c=[row["mean"] for row in rows],
            s=300,
            cmap="viridis",
        )
        figure.colorbar(points, label="from the teacher's volume (%)")
    axes.set(xscale="log", yscale="log", xlabel="hard energy ratio", ylabel="hard force ratio")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def curves(ratios: Sweep, path: Path) -> None:
    """Draw soft and hard energy errors over training, Taniguchi 2024, Figure 6, at r_HF = 1."""
    chosen = {arm: ratios[arm][0] for arm in ratios if arm == "soft" or arm.endswith("_1")}
    if not chosen:
        return
    figure, panels = plt.subplots(
        1,
        len(chosen),
        figsize=(2.4 * len(chosen), 2.8),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axes, (arm, record) in zip(panels[0], chosen.items(), strict=True):
        steps = record["steps_taken"] / len(record["errors"])
        for source, colour in (("soft", "C0"), ("hard", "C1")):
            errors = [1000 * one[f"train_{source}_e"] for one in record["errors"]]
            axes.semilogy([steps * n for n in range(len(errors))], errors, colour, label=source)
        axes.set(title=arm.replace("_", " "), xlabel="step")
    panels[0][0].set_ylabel("energy MAE (meV/atom)")
    panels[0][0].legend(frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def learning(sizes: Sweep, path: Path) -> None:
    """Draw the volume error over N_train at fixed epochs and at fixed steps, all seeds."""
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    styles = {"ef_epochs": "C0o-", "ef_steps": "C0s--", "efs_epochs": "C1o-", "efs_steps": "C1s--"}
    for kind, style in styles.items():
        arms = [one for arm, one in sizes.items() if arm.rpartition("_")[0] == kind]
        points = sorted((one[0]["structures"], list(map(scanned, one))) for one in arms)
        means = [statistics.mean(errors) for _, errors in points]
        bars = [statistics.stdev(errors) if len(errors) > 1 else 0 for _, errors in points]
        label = kind.replace("efs", "E + F + 0.1 S").replace("ef_", "E + F_").replace("_", ", ")
        axes.errorbar([size for size, _ in points], means, bars, fmt=style, capsize=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="training structures")
    axes.set_ylabel("from the teacher's volume (%)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
