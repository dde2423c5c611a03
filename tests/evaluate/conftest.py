"""Structures of copper, and a folder in which a potential has been measured on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from kd_plugins.cli import main
from tests.evaluate.fixtures import dynamics_and_crystals


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of labelled copper, a cell for dynamics and a crystal to relax."""
    folder = tmp_path_factory.mktemp("copper")

    structures = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["structure_id"] = f"cu/{seed}"
        structures.append(atoms)

    write(folder / "labelled.extxyz", structures)
    write(folder / "cell.extxyz", bulk("Cu", cubic=True) * (2, 2, 2))
    write(folder / "crystal.extxyz", bulk("Cu", cubic=True, a=3.7))
    return {name: str(folder / f"{name}.extxyz") for name in ("labelled", "cell", "crystal")}


@pytest.fixture(scope="session")
def measured_once(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dynamics and crystals of EMT; tests work on a copy of it."""
    out = tmp_path_factory.mktemp("measured") / "out"
    words = ["evaluate", "--student", "emt", "--out", out, *dynamics_and_crystals(files)]
    assert main([str(word) for word in words]) == 0
    return out
