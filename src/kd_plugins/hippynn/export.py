"""A trained student as hippynn alone loads it."""

from __future__ import annotations

import os
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

STRUCTURE, WEIGHTS = "experiment_structure.pt", "best_model.pt"
OURS = "kd_plugins"


def export_student(run: str | Path, out: str | Path, weights: str = WEIGHTS) -> Path:
    """Write a folder that ``load_model_from_cwd`` takes where ``kd_plugins`` is not installed.

    hippynn's ``make_ensemble``, ASE calculator and LAMMPS interface start from that as well. Of the
    run's structure file the controller is left out, in which a `LossSchedule` may be; the model and
    its loss are hippynn's own. The run stays as it is.

    Args:
        run: folder that hippynn trained in.
        out: folder to make; it must not hold anything.
        weights: file of the run with the weights, the best ones if left out.

    Raises:
        FileNotFoundError: if the run lacks a file, and naming it.
        FileExistsError: if ``out`` holds something.
        ValueError: if something of this package is in the model; nothing is then written.
    """
    run, out = Path(run), Path(out)
    for name in (STRUCTURE, weights):
        if not (run / name).is_file():
            raise FileNotFoundError(
                f"{run} has no {name}; expected a folder that hippynn's train_model has run in, "
                "with store_best"
            )
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds something already; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(run, partial, weights)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write(run: Path, folder: Path, weights: str) -> None:
    structure = torch.load(run / STRUCTURE, map_location="cpu", weights_only=False)
    torch.save({**structure, "controller": None}, folder / STRUCTURE)
    state = torch.load(run / weights, map_location="cpu", weights_only=False)
    torch.save(state.get("model", state), folder / WEIGHTS)
    found = sorted(set(_modules(folder / STRUCTURE)))
    if found:
        raise ValueError(
            f"the model or its loss needs {', '.join(found)}; expected hippynn's nodes alone, as "
            "distillation_loss makes them"
        )


def _modules(path: Path) -> Iterator[str]:
    """Yield the modules of this package that a file's pickle names."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("/data.pkl"))
        for _, argument, _ in pickletools.genops(archive.read(name)):
            if isinstance(argument, str) and argument.split(" ")[0].partition(".")[0] == OURS:
                yield argument.split(" ")[0]
