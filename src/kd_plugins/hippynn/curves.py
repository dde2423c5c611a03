"""Learning curves of a training, for reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_plugins.files import write_json


def write_curves(metrics: Any, path: str | Path) -> Path:
    """Write each metric of hippynn's training over its epochs, as `kd-plugins report` reads them.

    Args:
        metrics: the ``MetricTracker`` that ``train_model`` gives back.
        path: of the JSON, ``curves.json`` in the folder of a run.

    Raises:
        ValueError: for a training without an epoch.
    """
    if not hasattr(metrics, "epoch_metric_values"):
        raise ValueError(
            "metrics: expected the MetricTracker that train_model gives back, got "
            f"{type(metrics).__name__}"
        )
    epochs = metrics.epoch_metric_values
    if not epochs:
        raise ValueError("the training has no epoch yet, so there are no curves")
    found = {
        f"{split} {name}": _curve([epoch[split][name] for epoch in epochs])
        for split in ("train", "valid")
        if split in epochs[0]
        for name in epochs[0][split]
    }
    return write_json(Path(path), found)


def _curve(values: list[Any]) -> Mapping[str, list[float]]:
    """Return epochs and values, without those that are not finite."""
    pairs = [(epoch, float(value)) for epoch, value in enumerate(values, start=1)]
    kept = [(epoch, value) for epoch, value in pairs if math.isfinite(value)]
    return {"epochs": [epoch for epoch, _ in kept], "values": [value for _, value in kept]}
