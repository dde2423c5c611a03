"""Relax the test crystals with the teacher, the pretrained student and every student.

    python recipes/chgnet_organic/evaluate.py --out runs/organic

Students as they are after their last epoch, as in the paper. Cells and atoms, L-BFGS to 0.03 eV/Å;
a record a crystal and model, so that it can be stopped and several may work on one folder
(--models chooses). Then report.py makes the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator
from study import Study, open_study, write_json
from tqdm import tqdm

from kd_plugins.evaluate import relax, rmsd15, volume_error_percent
from kd_plugins.teachers import load_teacher


def models(study: Study) -> dict[str, Path | None]:
    """Return the name of each model, and the checkpoint where it is a student."""
    students = sorted((study.out / "students").glob("*/record.json"))
    return {"teacher": None, "pretrained": None} | {
        path.parent.name: path.parent / "last.pth.tar" for path in students
    }


def calculator(study: Study, name: str, checkpoint: Path | None) -> Any:
    """Return a model as an ASE calculator."""
    with contextlib.redirect_stdout(io.StringIO()):  # CHGNet says how large it is
        if checkpoint is not None:
            return CHGNetCalculator(CHGNet.from_file(checkpoint))
        named = study.settings.teacher if name == "teacher" else study.settings.labels
        return load_teacher(named).calculator


def evaluate(start: Atoms, model: Any, reference: float) -> dict[str, Any]:
    """Relax one crystal and return what the tables need."""
    found = relax(start, model)
    return {
        "volume": found.volume,
        "error_percent": volume_error_percent(found.volume, reference),
        "rmsd15": rmsd15(start, found.atoms),
        "converged": found.converged,
        "reason": found.reason,
        "steps": found.steps,
        "seconds": found.seconds,
        "pressure": found.pressure,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--models", nargs="+", help="teacher, pretrained, ARM-seedK; default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.out)
    known, references = models(study), study.volumes()
    crystals = list(study.crystals(["test"]))
    todo = [(name, crystal) for name in options.models or known for crystal in crystals]
    for name, crystal in (bar := tqdm(todo, unit=" relaxations")):
        bar.set_description(f"{name}: {crystal.structure_id}")
        record = study.out / "relaxed" / name / f"{crystal.structure_id}.json"
        if not record.is_file():
            model = calculator(study, name, known[name])
            found = evaluate(crystal.atoms, model, references[crystal.structure_id])
            write_json(record, found)


if __name__ == "__main__":
    main()
