"""Draw a study's records: OUT/figures/<name>.png, .svg, and the numbers as .csv.

    python recipes/hippynn_metals/figures.py --out runs/mo --only map

Without --only all of them: weights (errors over the number of weights), curves (validation over
training), map (student against controls), pareto (errors over time and memory) and rdf (liquids).
The last two need dynamics.py, the others train.py alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from drawing import LABELS, LOOKS, Rows, mean_and_half, missing, save, summary
from dynamics_figures import pareto, rdf
from matplotlib.axes import Axes
from report import ERRORS, Group, Methods, paired, records
from study import Study, open_study

TRAIN = "train.py --data DATA --out {out} --methods control_10 control_30 student"
SPLITS = {
    "test": {"alpha": 1.0, "ls": "-"},
    "valid": {"alpha": 0.35, "ls": "--"},
    "train": {"alpha": 0.35, "ls": ":"},
}


def weights(study: Study) -> None:
    """Draw errors over the number of weights, with 95 % intervals (Matin et al. 2025, Figure 3)."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    rows: Rows = []
    for axes, error in zip(panels, ERRORS, strict=True):
        for split in SPLITS:
            found = summary(study, error, split)
            capacity(axes, found, split)
            rows += found
        axes.set(xscale="log", xlabel="weights", ylabel=LABELS[error])
    if not rows:
        raise missing(study, "runs of all structures", TRAIN)
    panels[0].legend(title="test; faint: -- validation, ·· training", title_fontsize=9)
    save(figure, study.out, "weights", rows)


def capacity(axes: Axes, rows: Rows, split: str) -> None:
    """Draw one split of one error; methods of a size stand side by side."""
    for place, (method, (colour, marker)) in enumerate(LOOKS.items()):
        chosen = [row for row in rows if row["method"] == method]
        axes.errorbar(
            [row["weights"] * 1.06 ** (place - 2) for row in chosen],
            [row["mean"] for row in chosen],
            [row["half"] or 0 for row in chosen],
            color=colour,
            marker=marker,
            ms=10 if marker == "*" else 6,
            capsize=3 if split == "test" else 0,
            label=method if split == "test" and chosen else None,
            **SPLITS[split],
        )


def curves(study: Study) -> None:
    """Draw the validation force error over epochs: median and extremes of the seeds."""
    groups = {group: one for group, one in records(study).items() if group[1] == 1}
    if not groups:
        raise missing(study, "runs of all structures", TRAIN)
    figure, panels = plt.subplots(
        1,
        len(groups),
        figsize=(1 + 4 * len(groups), 4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    rows: Rows = []
    for axes, ((size, _), methods) in zip(panels[0], groups.items(), strict=True):
        rows += [row | {"size": size} for row in size_curves(axes, methods)]
        axes.set(title=size, xlabel="epoch", yscale="log")
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_minor_formatter("{x:.0f}")
        axes.legend()
    panels[0][0].set_ylabel("validation force RMSE (meV/Å)")
    save(figure, study.out, "curves", rows)


def size_curves(axes: Axes, methods: Methods) -> Rows:
    """Draw the curves of one size, and return them."""
    rows: Rows = []
    for method, (colour, _) in LOOKS.items():
        if method not in methods:
            continue
        held = 1000 * np.array([one["curve"] for one in methods[method].values()])
        epochs = np.arange(1, held.shape[1] + 1)
        low, middle, high = held.min(axis=0), np.median(held, axis=0), held.max(axis=0)
        axes.plot(epochs, middle, color=colour, label=f"{method} ({len(held)} seeds)")
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
        rows += [
            {"method": method, "epoch": n, "median": m, "lowest": a, "highest": b}
            for n, m, a, b in zip(epochs, middle, low, high, strict=True)
        ]
    return rows


def pairs(group: Group, methods: Methods) -> Rows:
    """Return a row a control and error: the student's relative difference, paired by seed."""
    return [
        {
            "size": group[0],
            "share": group[1],
            "control": control,
            "error": error,
            "seeds": len(found),
            **mean_and_half(found),
        }
        for control in ("control_10", "control_30")
        for error in ERRORS
        if (found := paired(methods, "student", control, error))
    ]


def forest(study: Study) -> None:
    """Draw how much better or worse the student is than each control, size and share."""
    rows = [row for group, one in records(study).items() for row in pairs(group, one)]
    if not rows:
        raise missing(study, "a student and a control of one size, share and seed", TRAIN)
    groups = list(dict.fromkeys((row["size"], row["share"]) for row in rows))
    height = 1.6 + 0.55 * len(groups)
    figure, panels = plt.subplots(1, 2, figsize=(9.5, height), sharey=True, layout="constrained")
    for axes, error in zip(panels, ERRORS, strict=True):
        for control, shift in (("control_10", -0.15), ("control_30", 0.15)):
            chosen = [row for row in rows if (row["control"], row["error"]) == (control, error)]
            axes.errorbar(
                [row["mean"] for row in chosen],
                [groups.index((row["size"], row["share"])) + shift for row in chosen],
                xerr=[row["half"] or 0 for row in chosen],
                fmt=LOOKS[control][1],
                color=LOOKS[control][0],
                capsize=3,
                label=f"against {control}",
            )
        axes.axvline(0, color="black", lw=1)
        label = LABELS[error].partition(" (")[0]
        axes.set_xlabel(f"test {label}, student against control (%)\n← student better")
    ticks = [f"{size}, {share:.0%} of structures" for size, share in groups]
    panels[0].set_yticks(range(len(groups)), ticks)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    save(figure, study.out, "map", rows)


DRAWINGS: dict[str, Callable[[Study], None]] = {
    "weights": weights,
    "curves": curves,
    "map": forest,
    "pareto": pareto,
    "rdf": rdf,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--only", choices=list(DRAWINGS), help="one figure")
    options = parser.parse_args()
    study = open_study(options.out)
    for name in [options.only] if options.only else DRAWINGS:
        DRAWINGS[name](study)
        print(study.out / "figures" / f"{name}.png")


if __name__ == "__main__":
    main()
