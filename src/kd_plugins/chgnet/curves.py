"""Learning curves and loss terms of a training, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_plugins.files import write_json

QUANTITIES = {"e": "energy", "f": "forces", "s": "stress", "m": "magmoms"}


def write_curves(errors: Sequence[Mapping[str, float]], folder: str | Path) -> None:
    """Write what `kd-plugins report` draws: ``curves.json`` and ``terms.json``.

    Mean absolute errors in CHGNet's units (eV/atom, eV/Å, GPa, µB), against labels (hard) and the
    teacher (soft): of validation as learning curves, of training as terms.

    Args:
        errors: an epoch each, of `Fitted.errors`.
        folder: of the run.

    Raises:
        ValueError: for a training without an epoch.
    """
    if not errors:
        raise ValueError("the training has no epoch yet, so there are no curves")
    sides = {
        split: {
            _title(name): _series([epoch[name] for epoch in errors])
            for name in errors[0]
            if name.startswith(f"{split}_")
        }
        for split in ("train", "val")
    }
    curves = {f"valid {title}": series for title, series in sides["val"].items()}
    write_json(Path(folder) / "curves.json", curves)
    write_json(Path(folder) / "terms.json", sides["train"])


def _title(name: str) -> str:
    """Return a name in words.

    >>> _title("train_soft_e"), _title("val_score")
    ('soft energy', 'score')
    """
    _, *words = name.split("_")
    return " ".join(QUANTITIES.get(word, word) for word in words)


def _series(values: Sequence[float]) -> Mapping[str, Sequence[float]]:
    return {"epochs": list(range(1, len(values) + 1)), "values": list(values)}
