"""The figures of dynamics.py's records: what a step costs, and how the liquid looks."""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from drawing import LABELS, LOOKS, Rows, missing, save, summary
from dynamics_table import Models, apart, largest, measured, teacher_of
from matplotlib.axes import Axes
from study import Study

COSTS = {"microseconds": (1.0, "time per MD step (µs/atom)"), "bytes": (1e-3, "memory (KB/atom)")}
MODELS = "dynamics.py --out {out} --models teacher-large-1-seed0 student-tiny-1-seed0"
LINES = {"tiny": "-", "small": "--", "large": "-", "paper": ":"}


def pareto(study: Study) -> None:
    """Draw the test force error over time and memory per atom (Matin et al. 2025, Figure 2)."""
    rows = summary(study, "force_rmse", "test")
    held = [row | cost for row in rows if (cost := costs(study, row["method"], row["size"]))]
    if not held:
        raise missing(study, "times of models trained on all structures", MODELS)
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, layout="constrained")
    for axes, (key, (_, label)) in zip(panels, COSTS.items(), strict=True):
        for method, (colour, marker) in LOOKS.items():
            chosen = [row for row in held if row["method"] == method]
            xs, ys = [row[key] for row in chosen], [row["mean"] for row in chosen]
            bars = [row["half"] or 0 for row in chosen]
            if chosen:
                axes.errorbar(
                    xs, ys, bars, color=colour, marker=marker, ms=8, capsize=3, label=method
                )
            for x, y, row in zip(xs, ys, chosen, strict=True):
                axes.annotate(row["size"], (x, y), (7, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    panels[0].set_ylabel(f"test {LABELS['force_rmse']}")
    panels[1].legend()
    save(figure, study.out, "pareto", held)


def costs(study: Study, method: str, size: str) -> dict[str, float]:
    """Return the mean costs of a method's models in the largest cell, or nothing."""
    models = of(measured(study), method, size).values()
    found = [largest(one) for one in models if "costs" in one]
    return {
        key: scale * statistics.mean(one[key] for one in found)
        for key, (scale, _) in COSTS.items()
        if found
    }


def of(models: Models, method: str, size: str) -> Models:
    """Return a method's models of one size, trained on all structures."""
    return {
        name: one
        for name, one in models.items()
        if (one["method"], one["size"], one["share"]) == (method, size, 1)
    }


def rdf(study: Study) -> None:
    """Draw the liquids, and their distances from the teacher's (Matin et al. 2025, Figure 3 C)."""
    models = {
        name: one
        for name, one in measured(study).items()
        if one["liquids"] and one["method"] in LOOKS and one["share"] == 1
    }
    rows = distances(models)
    if not any(row["method"] == "teacher" for row in rows):
        what = "liquids of a teacher, with two velocity seeds or more"
        raise missing(study, what, f"{MODELS} --velocity-seeds 0 1 2")
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    kinds = list(dict.fromkeys((one["method"], one["size"]) for one in models.values()))
    for method, size in kinds:
        liquids = [run for one in of(models, method, size).values() for run in one["liquids"]]
        draw_liquid(panels[0], liquids, method, size)
    panels[0].set(xlabel="r (Å)", ylabel="g(r) of the liquid", xlim=(1, None))
    panels[0].legend(loc="upper right", fontsize=8)
    draw_distances(panels[1], rows)
    save(figure, study.out, "rdf", rows)


def distances(models: Models) -> Rows:
    """Return a row a model: how far its liquid is from the teacher's; a teacher's, by chance."""
    rows = []
    for name, model in models.items():
        teacher = teacher_of(models, model)
        distance = apart(model, teacher) if teacher else None
        if distance is not None:
            kind = {key: model[key] for key in ("method", "size", "seed")}
            rows.append({"model": name, **kind, "distance": distance})
    return rows


def draw_liquid(axes: Axes, liquids: list[dict[str, Any]], method: str, size: str) -> None:
    """Draw the mean over a kind of models, and for teachers the extremes."""
    values = np.array([one["values"] for one in liquids])
    xs, colour = liquids[0]["distances"], LOOKS[method][0]
    if method == "teacher":
        axes.fill_between(xs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
    label = f"{method}, {size} ({len(values)} liquids)"
    axes.plot(xs, values.mean(axis=0), color=colour, ls=LINES[size], lw=1.4, label=label)


def draw_distances(axes: Axes, rows: Rows) -> None:
    """Draw a point a model, and the mean of the teachers' own distances as a line."""
    kinds = list(dict.fromkeys((row["method"], row["size"]) for row in rows))
    for row in rows:
        colour, marker = LOOKS[row["method"]]
        place = kinds.index((row["method"], row["size"])) + 0.06 * (row["seed"] - 2)
        axes.plot(place, row["distance"], marker, color=colour, ms=7, alpha=0.8)
    floor = [row["distance"] for row in rows if row["method"] == "teacher"]
    axes.axhline(statistics.mean(floor), color="black", ls="--", lw=1)
    names = [f"{method}, {size}" for method, size in kinds]
    axes.set_xticks(range(len(kinds)), names, rotation=30, ha="right")
    axes.set_ylabel("∫ |g(r) − teacher's g(r)| dr (Å)")
    axes.set_ylim(bottom=0)
    axes.set_title("dashed: the teacher with other velocities", fontsize=10)
