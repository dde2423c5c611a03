"""Draw one structure of a crystal at random: strained, rattled, with vacancies, or a slab."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import surface
from numpy.typing import NDArray

from kd_plugins.sampling.deformation import deformed
from kd_plugins.sampling.packing import packed
from kd_plugins.sampling.settings import (
    Packing,
    Rattle,
    RigidMolecules,
    Strain,
    Surfaces,
    Vacancies,
)

Info = dict[str, Any]
"""Where a structure comes from, for its ``info``."""


def with_strain(
    cell: Atoms, settings: Strain, generator: np.random.Generator
) -> tuple[Atoms, Info]:
    """Return a structure with six independent strains and rattled atoms."""
    xx, yy, zz = generator.uniform(*settings.linear, size=3)
    yz, xz, xy = generator.uniform(-settings.shear, settings.shear, size=3)
    strain = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])

    atoms = _bare(cell)
    # Vectors are rows, and the tensor is symmetric. Positions by themselves, since a molecule has
    # no cell that they could follow.
    atoms.set_cell(cell.cell.array @ (np.eye(3) + strain))
    atoms.positions = cell.positions @ (np.eye(3) + strain)
    std = _rattle(atoms, settings.rattle, generator)
    return atoms, {"strain": np.array([xx, yy, zz, yz, xz, xy]), "rattle": std}


def with_rattle(
    cell: Atoms, settings: Rattle, generator: np.random.Generator
) -> tuple[Atoms, Info]:
    """Return a crystal or molecule with normally displaced atoms."""
    atoms = _bare(cell)
    return atoms, {"rattle": _rattle(atoms, settings.std, generator)}


def with_rigid_molecules(
    cell: Atoms, settings: RigidMolecules, generator: np.random.Generator
) -> tuple[Atoms, Info]:
    """Return a molecular crystal, strained and with rotated and rattled molecules.

    Raises:
        ValueError: if the crystal has no molecules, or no draw keeps them apart.
    """
    return deformed(cell, generator, settings), {}


def with_packing(
    cell: Atoms, settings: Packing, generator: np.random.Generator
) -> tuple[Atoms, Info]:
    """Return a crystal of randomly turned and packed copies of a molecule, rattled.

    Raises:
        ValueError: as `packed`.
    """
    contact = float(generator.uniform(*settings.contact))
    atoms = packed(cell, settings.copies, contact, settings.trials, generator)
    return atoms, {"contact": contact, "rattle": _rattle(atoms, settings.rattle, generator)}


def with_vacancies(
    cell: Atoms, settings: Vacancies, generator: np.random.Generator
) -> tuple[Atoms, Info]:
    """Return a crystal without some of its atoms, the others rattled.

    Raises:
        ValueError: if no atom would be left.
    """
    if settings.missing >= len(cell):
        raise ValueError(
            f"missing: expected fewer than the {len(cell)} atoms of "
            f"{cell.get_chemical_formula()}, got {settings.missing}; repeat it (`atoms`)"
        )

    atoms = _bare(cell)
    missing = generator.choice(len(atoms), size=settings.missing, replace=False)
    del atoms[np.sort(missing)]
    return atoms, {"rattle": _rattle(atoms, settings.rattle, generator)}


def slab(crystal: Atoms, indices: tuple[int, ...], settings: Surfaces, n_atoms: int) -> Atoms:
    """Return a slab with vacuum on both sides, repeated to a number of atoms.

    Args:
        crystal: not repeated, because the indices are relative to its lattice vectors.
        indices: Miller's.
        settings: layers and vacuum.
        n_atoms: the least number; the slab is repeated along the surface only.

    Raises:
        ValueError: for a structure that is not periodic along all three lattice vectors.
    """
    if not crystal.pbc.all():
        raise ValueError(
            f"{crystal.get_chemical_formula()} is periodic along {crystal.pbc.tolist()}; a surface "
            "is cut from what is periodic along all three lattice vectors"
        )
    atoms = surface(_bare(crystal), indices, settings.layers, settings.vacuum, periodic=True)

    # The most square of the repetitions that are large enough.
    fewest = math.ceil(n_atoms / len(atoms))
    lengths = atoms.cell.lengths()[:2]
    sizes = [(a, math.ceil(fewest / a)) for a in range(1, fewest + 1)]
    a, b = min(sizes, key=lambda size: abs(np.log(size[0] * lengths[0] / size[1] / lengths[1])))
    return atoms.repeat((a, b, 1))


def rattled_slab(
    atoms: Atoms, settings: Surfaces, generator: np.random.Generator
) -> tuple[Atoms, Info]:
    """Return a slab with rattled atoms."""
    atoms = atoms.copy()
    return atoms, {"rattle": _rattle(atoms, settings.rattle, generator)}


DRAWS: Mapping[str, Callable[[Atoms, Any, np.random.Generator], tuple[Atoms, Info]]] = {
    "strain": with_strain,
    "rattle": with_rattle,
    "molecules": with_rigid_molecules,
    "packing": with_packing,
    "vacancy": with_vacancies,
    "surface": rattled_slab,
}
"""Method to what draws one structure from a cell, settings and random numbers."""


def _rattle(atoms: Atoms, std_range: tuple[float, float], generator: np.random.Generator) -> float:
    """Displace all atoms in place, and return the standard deviation, Å."""
    std = float(generator.uniform(*std_range))
    displacements: NDArray[np.float64] = generator.normal(size=(len(atoms), 3))
    atoms.positions += std * displacements
    return std


def _bare(atoms: Atoms) -> Atoms:
    """Return a structure without constraints, info, labels and calculator."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
