"""The X23 crystals, and ways to write one crystal differently."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from kd_plugins.structures.readers import LabelledStructure

NAMES = (
    "14-cyclohexanedione",
    "acetic_acid",
    "adamantane",
    "ammonia",
    "anthracene",
    "benzene",
    "co2",
    "cyanamide",
    "cytosine",
    "ethylcarbamate",
    "formamide",
    "hexamine",
    "imidazole",
    "naphthalene",
    "oxalic_acid_alpha",
    "oxalic_acid_beta",
    "pyrazine",
    "pyrazole",
    "succinic_acid",
    "triazine",
    "trioxane",
    "uracil",
    "urea",
)
FOLDER = "molecular_crystals/x23"


def crystal(shared_file: Callable[[str], Path], name: str) -> Atoms:
    """Read one; the experiment on hexamine tells no hydrogen, so it is a computed one."""
    file = "hexamine_dftH.extxyz" if name == "hexamine" else f"{name}.cif"
    atoms = ase.io.read(shared_file(f"{FOLDER}/{file}"))
    atoms.calc = None
    return atoms


def frame(shared_file: Callable[[str], Path], name: str) -> LabelledStructure:
    """Read one as a frame."""
    return LabelledStructure(name, crystal(shared_file, name))


def molecules_in_cell(shared_file: Callable[[str], Path]) -> dict[str, int]:
    """Return how many molecules each has according to its index."""
    with open(shared_file(f"{FOLDER}/index.csv")) as rows:
        return {row["name"]: int(row["molecules"].split()[0]) for row in csv.DictReader(rows)}


def rewrapped(atoms: Atoms, seed: int) -> Atoms:
    """Return the same crystal with every atom in some other cell."""
    moved = atoms.copy()
    cells = np.random.default_rng(seed).integers(-2, 3, size=(len(atoms), 3))
    moved.positions += cells @ atoms.cell.array
    return moved
