"""Relax the test crystals with the teacher, the pretrained student and every student.

    python recipes/chgnet_organic/evaluate.py --out runs/organic

Students as they are after their last epoch, as in the paper. Cells and atoms, L-BFGS to 0.03 eV/Å,
or to --force-tolerance; a record a crystal and model, so that it can be stopped and several may
work on one folder (--models chooses, --runs adds the students of a ``kd-plugins compare``). Then
report.py makes the tables.
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

LOOSE = 0.03
"""eV/Å, as in the paper."""


def relaxed_folder(out: Path, force_tolerance: float) -> Path:
    """Return where the relaxations to some forces are."""
    return out / ("relaxed" if force_tolerance == LOOSE else f"relaxed_{force_tolerance:g}")


def models(study: Study, runs: Path | None = None) -> dict[str, Path | None]:
    """Return the name of each model, and the checkpoint where it is a student.

    Args:
        study: with the students of train.py.
        runs: folder of a comparison, with the students of its arms and seeds.
    """
    students = sorted((study.out / "students").glob("*/record.json"))
    compared = [] if runs is None else sorted((runs / "runs").glob("*/seed*/curves.json"))
    return (
        {"teacher": None, "pretrained": None}
        | {path.parent.name: path.parent / "last.pth.tar" for path in students}
        | {
            f"{path.parts[-3]}-{path.parent.name}": path.parent / "last.pth.tar"
            for path in compared
        }
    )


def calculator(study: Study, name: str, checkpoint: Path | None) -> Any:
    """Return a model as an ASE calculator."""
    with contextlib.redirect_stdout(io.StringIO()):  # CHGNet says how large it is
        if checkpoint is not None:
            return CHGNetCalculator(CHGNet.from_file(checkpoint))
        named = study.settings.teacher if name == "teacher" else study.settings.labels
        return load_teacher(named).calculator


def evaluate(start: Atoms, model: Any, reference: float, force_tolerance: float) -> dict[str, Any]:
    """Relax one crystal and return what the tables need."""
    found = relax(start, model, force_tolerance=force_tolerance)
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
    parser.add_argument("--runs", type=Path, help="folder of a comparison, with its students")
    parser.add_argument("--force-tolerance", type=float, default=LOOSE, help="eV/Å")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.out)
    known, references = models(study, options.runs), study.volumes()
    folder = relaxed_folder(study.out, options.force_tolerance)
    crystals = list(study.crystals(["test"]))
    todo = [(name, crystal) for name in options.models or known for crystal in crystals]
    for name, crystal in (bar := tqdm(todo, unit=" relaxations")):
        bar.set_description(f"{name}: {crystal.structure_id}")
        record = folder / name / f"{crystal.structure_id}.json"
        if not record.is_file():
            model = calculator(study, name, known[name])
            reference = references[crystal.structure_id]
            write_json(record, evaluate(crystal.atoms, model, reference, options.force_tolerance))


if __name__ == "__main__":
    main()
