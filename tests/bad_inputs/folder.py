"""The small folder in which bad inputs are tried: structures, stores, runs, an experiment."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import ase.io
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.cli import main
from kd_plugins.structures import import_labels, read_structures
from kd_plugins.teachers import label
from tests.report import fixtures as report_fixtures

SCRIPT = """
import sys
from pathlib import Path
Path("trained").touch()
"""
"""Of an experiment; it learns nothing and tells that it was called."""

EXPERIMENT = {
    "title": "A tiny experiment",
    "host": "script",
    "base": "train.py",
    "model": "emt",
    "teacher": "emt",
    "control": "control",
    "seeds": [0, 1],
    "arms": {"control": {"weight": 0}, "student": {"weight": 1}},
    "measure": {"structures": ["test.extxyz"]},
}


def build(folder: Path) -> None:
    """Write everything; nothing here is changed by a case, which gets a copy."""
    folder.mkdir(parents=True)
    with _chdir(folder):
        _structures()
        _stores()
        _results()


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    """Be in a folder for a while, as contextlib can from Python 3.11 on."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def metal(seed: int) -> Atoms:
    """Return a rattled cell of copper and silver with EMT's energy and forces."""
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[: seed % 4] = "Ag"
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    atoms.info["structure_id"] = f"metal/{seed}"
    return atoms


def _structures() -> None:
    ase.io.write("train.extxyz", [metal(seed) for seed in range(12)])
    ase.io.write("test.extxyz", [metal(seed) for seed in range(20, 23)])
    ase.io.write("cell.extxyz", bulk("Cu", cubic=True) * (3, 3, 3))
    ase.io.write("crystal.extxyz", bulk("Cu", cubic=True))
    ase.io.write("molecule.extxyz", molecule("H2O"))
    bare = bulk("Cu", cubic=True)
    ase.io.write("bare.extxyz", [bare, bulk("Ag", cubic=True)])
    Path("train.py").write_text(SCRIPT)
    Path("experiment.yml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))


def _stores() -> None:
    label(read_structures(["train.extxyz"]), "emt", "targets", progress=False)
    both = read_structures(["train.extxyz", "test.extxyz"])
    label(both, "emt", "both", progress=False)
    import_labels(["train.extxyz"], "imported", "PFP")


def _results() -> None:
    report_fixtures.write_experiment(Path("runs"), seeds=(0,))
    Path("alone").mkdir()
    first = next(Path("runs").rglob("evaluation.json"))
    (Path("alone") / "evaluation.json").write_bytes(first.read_bytes())
    _run("evaluate", "--student", "emt", "--reference", "test.extxyz", "--out", "evaluated")
    _run("compare", "experiment.yml", "--out", "compared")
    for trace in Path().rglob("trained"):
        trace.unlink()


def _run(*words: str) -> None:
    said = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
    if code:
        raise RuntimeError(f"{' '.join(words)}: exit code {code}: {said.getvalue()[-500:]}")


def changed(source: str, key: str, value: object) -> str:
    """Return a JSON or YAML text with a dotted key set, or taken away by ``...``."""
    raw = yaml.safe_load(source)
    *way, last = key.split(".")
    inner = raw
    for step in way:
        inner = inner[int(step)] if isinstance(inner, list) else inner.setdefault(step, {})
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return json.dumps(raw)
