"""A trained student for hippynn alone, and a training's learning curves for reports."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_plugins.files import write_json
from kd_plugins.hippynn.folder import (
    STRUCTURE,
    WEIGHTS,
    find_unread,
    load_model,
    load_structure,
)
from kd_plugins.hippynn.unpickler import HIPPYNN_PICKLES
from kd_plugins.torch_files import load_torch_file, pickled_names

REMEDY = "give export_student(..., trust_pickle=True)"
PACKAGE = "kd_plugins"


def export_student(
    run: str | Path,
    out: str | Path,
    weights: str = WEIGHTS,
    *,
    trust_pickle: bool = False,
    lammps: bool = False,
    energy_unit: str = "eV",
    device: str = "auto",
    dtype: str = "float32",
) -> Path:
    """Write a folder that ``load_model_from_cwd`` reads where ``kd_plugins`` is not installed.

    hippynn's ``make_ensemble``, ASE calculator and LAMMPS interface start from that as well. The
    model and its loss are hippynn's own. Left out are the run's controller, which may hold a
    `LossSchedule`, and the path of its database. The run stays as it is.

    Args:
        run: folder that hippynn trained in.
        out: folder to make; it must not hold anything.
        weights: file of the run with the weights; the best ones if left out.
        trust_pickle: let the run's files run any code, which parts that are not hippynn's own need;
            for runs that you trust.
        lammps: also write ``lammps/`` there: hippynn's object for LAMMPS, which LAMMPS unpickles,
            an input, and a README.
        energy_unit: of the model, for LAMMPS, see `kd_plugins.hippynn.lammps.write_lammps`.
        device: where LAMMPS is to compute, likewise.
        dtype: in which LAMMPS is to compute, likewise.

    Raises:
        ImportError: for ``lammps`` without LAMMPS' Python package.
        FileNotFoundError: if the run lacks a file, and naming it.
        FileExistsError: if ``out`` holds something.
        ValueError: if something of this package is in the model, or something that is not hippynn's
            and not trusted, or a file is damaged; nothing is then written.
    """
    if not lammps and (energy_unit, device, dtype) != ("eV", "auto", "float32"):
        raise ValueError("energy_unit, device and dtype are LAMMPS'; leave them out, or set lammps")
    run, out = Path(run).expanduser(), Path(out).expanduser()
    structure = _read_structure(run, weights, trust_pickle)
    state = _read_weights(run / weights, trust_pickle)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds something already; choose another folder")

    # Written beside its place and moved there as a whole, so that no half-written folder is left.
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        torch.save(structure, partial / STRUCTURE)
        torch.save(state, partial / WEIGHTS)
        _check_names(set(pickled_names(partial / STRUCTURE)))
        if lammps:
            from kd_plugins.hippynn.lammps import write_lammps

            model = load_model(partial, trust_pickle=trust_pickle, remedy=REMEDY)
            write_lammps(partial / "lammps", model, energy_unit, device, dtype)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _read_structure(run: Path, weights: str, trust_pickle: bool) -> Mapping[str, Any]:
    """Return a run's structure file without what loading a model does not need."""
    content = load_structure(run, weights=weights, trust_pickle=trust_pickle, remedy=REMEDY)
    modules = content["training_modules"]

    foreign = set(find_unread(tuple(modules)))
    _check_names(foreign)
    if foreign:
        raise ValueError(
            f"{run / STRUCTURE}: the model or its loss has a part of class {min(foreign)}, which "
            "is not hippynn's own and so was not read: its code would be run. If you trust where "
            f"the file comes from, {REMEDY}"
        )
    return {"training_modules": modules, "controller": None}


def _read_weights(path: Path, trust_pickle: bool) -> Mapping[str, Any]:
    """Return the model's weights from a file that holds them alone, or from a checkpoint."""
    content = load_torch_file(
        path, trust_pickle=trust_pickle, remedy=REMEDY, pickle_module=HIPPYNN_PICKLES
    )
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or next(find_unread(state), None) is not None:
        raise ValueError(f"{path}: holds no weights; expected a checkpoint that hippynn wrote")
    return state


def _check_names(names: set[str]) -> None:
    """Refuse classes of this package, which the reader of the student may not have."""
    found = sorted(name for name in names if name.partition(".")[0] == PACKAGE)
    if found:
        raise ValueError(
            f"the model or its loss needs {', '.join(found)}; expected hippynn's nodes alone, as "
            "distillation_loss makes them"
        )


def write_curves(metrics: Any, path: str | Path) -> Path:
    """Write each metric of hippynn's training over its epochs, as `kd-plugins report` reads them.

    Args:
        metrics: the ``MetricTracker`` that ``train_model`` returns.
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

    curves = {
        f"{split} {name}": _curve([epoch[split][name] for epoch in epochs])
        for split in ("train", "valid")
        if split in epochs[0]
        for name in epochs[0][split]
    }
    return write_json(Path(path), curves)


def _curve(values: list[Any]) -> Mapping[str, list[float]]:
    """Return epochs and values, without those that are not finite: JSON has no NaN."""
    pairs = [(epoch, float(value)) for epoch, value in enumerate(values, start=1)]
    finite = [(epoch, value) for epoch, value in pairs if math.isfinite(value)]
    return {"epochs": [epoch for epoch, _ in finite], "values": [value for _, value in finite]}
