"""Experiments on a few cells of aluminium, and command lines that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ase.build import bulk
from ase.io import write

from kd_plugins.cli import main
from tests.house import ROOT

QUICKSTART = ROOT / "recipes" / "quickstart"
SOFTER = "tests.evaluate.calculators:softer"
ARMS: dict[str, Any] = {"control": {}, "student": {}}
CUTOFF = 4
"""Å. The cell for dynamics, 32 atoms, holds a sphere of half its length of 8.1 Å."""

MAIN = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
"""Code of `kd-plugins` in a process of its own."""
READ_SETTINGS = "import sys, time, yaml; given = yaml.safe_load(open(sys.argv[1]))"
"""First line of a training script."""


def write_aluminium(folder: Path, count: int = 26) -> None:
    """Write distorted cells, the last two of them for the test, and a cell for dynamics."""
    structures = []
    for seed in range(count):
        atoms = bulk("Al", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.info["structure_id"] = f"al/{seed}"
        structures.append(atoms)

    write(folder / "train.extxyz", structures[:-2])
    write(folder / "test.extxyz", structures[-2:])
    write(folder / "cell.extxyz", bulk("Al", cubic=True) * (2, 2, 2))


def write_taught(folder: Path) -> None:
    """Write the structures of the quickstart's experiment, and their targets by EMT."""
    write_aluminium(folder)
    targets = str(folder / "targets")
    words = ["label", str(folder / "train.extxyz"), "--teacher", "emt", "--store", targets]
    assert main([*words, "--quantities", "energy", "forces", "atomic_energies"]) == 0


def experiment_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the quickstart's experiment on a few cells: two arms, and EMT as its teacher."""
    settings = yaml.safe_load((QUICKSTART / "experiment.yml").read_text())

    settings["settings"] |= {
        "structures": [str(folder / "train.extxyz")],
        "store": str(folder / "targets"),
        "epochs": 2,
    }
    dynamics = {"structure": str(folder / "cell.extxyz"), "temperature": 600, "steps": 40}
    measure = {
        "structures": [str(folder / "test.extxyz")],
        "dynamics": {**dynamics, "repeats": [1], "cutoff": CUTOFF, "seeds": [0, 1]},
    }
    arms = {"control": {}, "student": {"loss.atomic_energies": 100}}
    settings |= {"arms": arms, "control": "control"}
    base = str(QUICKSTART / settings["base"])
    small = {"base": base, "teacher": "emt", "measure": measure, "seeds": [0]}
    return {**settings, **small, **changes}


def write_experiment(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yml"
    path.write_text(yaml.safe_dump(experiment_settings(folder, **changes), sort_keys=False))
    return path


def write_scripted(folder: Path, lines: str = "", **changes: Any) -> list[str]:
    """Write an experiment whose trainings are some lines of Python; return the command line."""
    write_aluminium(folder, count=3)
    (folder / "script.py").write_text(f"{READ_SETTINGS}\n{lines}\n")
    settings = {
        "base": str(folder / "script.py"),
        "model": SOFTER,
        "measure": {"structures": [str(folder / "test.extxyz")]},
        "settings": {},
    }
    path = write_experiment(folder, **{**settings, **changes})
    return ["compare", str(path), "--out", str(folder / "out")]


def write_without_training(folder: Path, **changes: Any) -> list[str]:
    """Write an experiment that only measures, by two workers.

    Returns:
        the command line without the folder, which comes last.
    """
    write_aluminium(folder, count=3)
    (folder / "script.py").write_text("")
    dynamics = {"structure": str(folder / "cell.extxyz"), "temperature": 300, "steps": 60}
    settings = {
        "base": str(folder / "script.py"),
        "model": SOFTER,
        "measure": {
            "structures": [str(folder / "test.extxyz")],
            "dynamics": {**dynamics, "repeats": [1], "cutoff": CUTOFF},
            "crystals": {"structures": [str(folder / "cell.extxyz")]},
        },
        "settings": {},
        "teacher": "emt",
    }
    path = write_experiment(folder, **{**settings, **changes})
    return ["compare", str(path), "--workers", "2", "--out"]
