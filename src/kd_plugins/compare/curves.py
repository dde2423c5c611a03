"""Learning curves and loss terms of a run, from the files that its host leaves."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_plugins.report.reading import read_curves

Curves = Mapping[str, Mapping[str, Any]]
"""``curves`` and ``terms``, each a name to ``epochs`` and ``values``."""
FILES = ("curves", "terms")
MOST_POINTS = 1000
"""Of a curve; a long training logs more than a page can show."""


def from_files(run: Path) -> Curves:
    """Return what stands in ``curves.json`` and ``terms.json``.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    found = {name: run / f"{name}.json" for name in FILES}
    return {name: read_curves(path) for name, path in found.items() if path.exists()}


def from_tensorboard(run: Path) -> Curves:
    """Return what fairchem has logged.

    Curves are the mean absolute errors of training and all of validation; terms are ``loss`` and
    ``kd_*`` of training.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    logs = sorted({path.parent for path in run.glob("logs/tensorboard/**/*tfevents*")})
    if not logs:
        return {}
    held = EventAccumulator(str(logs[0]), size_guidance={"scalars": 0}).Reload()
    scalars = {
        name: {event.step: event.value for event in held.Scalars(name)}
        for name in held.Tags()["scalars"]
    }
    epochs = scalars.get("train/epoch", {})
    curves, terms = {}, {}
    for name, values in scalars.items():
        split, _, bare = name.partition("/")
        if split == "val" and bare != "epoch":
            curves[f"valid {bare}"] = _series(values, epochs)
        elif split == "train" and bare.endswith("_mae"):
            curves[f"train {bare}"] = _series(values, epochs)
        elif split == "train" and (bare == "loss" or bare.startswith("kd_")):
            terms[bare] = _series(values, epochs)
    return {"curves": curves, "terms": terms}


def _series(values: Mapping[int, float], epochs: Mapping[int, float]) -> dict[str, list[float]]:
    """Return finite values over epochs; of a step without one, over the nearest before it.

    Of many, every second is left, or third and so on, the last always.
    """
    known = sorted(epochs)
    finite = sorted(step for step, value in values.items() if math.isfinite(value))
    every = max(1, math.ceil(len(finite) / MOST_POINTS))
    kept = finite[::-1][::every][::-1]
    return {
        "epochs": [_epoch(step, known, epochs) for step in kept],
        "values": [values[step] for step in kept],
    }


def _epoch(step: int, known: Sequence[int], epochs: Mapping[int, float]) -> float:
    """Return the epoch of a step, given the sorted steps whose epochs are known.

    >>> epochs = {2: 0.5, 6: 1.5, 8: 2.0}
    >>> _epoch(7, [2, 6, 8], epochs), _epoch(1, [2, 6, 8], epochs), _epoch(7, [], {})
    (1.5, 1, 7)
    """
    place = bisect.bisect_right(known, step)
    return epochs[known[place - 1]] if place else step
