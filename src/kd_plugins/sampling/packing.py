"""Pack copies of one molecule into crystals, for molecules whose crystals nobody has measured."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.vdw_alvarez import vdw_radii
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from kd_plugins.sampling.deformation import scale_rigidly
from kd_plugins.sampling.molecules import Molecules, find_molecules

STEPS = (0.85, 0.98)
"""Factors by which one axis shrinks at a time, first the coarse one; a gap of 2 % may remain."""
ROOM = 4.0
"""Å between the molecules of the loose crystal from which packing starts."""

SITES = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 0.5]])
"""Fractional coordinates of the first, second, ... molecule; two make a body-centred cell."""
MOST_COPIES = len(SITES)


def packed(
    molecule: Atoms, copies: int, contact: float, trials: int, generator: np.random.Generator
) -> Atoms:
    """Return the densest of several random packings of copies of one molecule.

    The copies are turned at random and stand far apart in a rectangular cell; then one axis after
    the other, drawn at random, shrinks until atoms of different molecules touch.

    Args:
        molecule: one molecule, not periodic.
        copies: molecules in the cell, 1 to 4.
        contact: atoms of different molecules touch at this times the sum of their van der Waals
            radii (Alvarez 2013). Molecular crystals have 0.8 to 1, hydrogen bonds 0.6 to 0.7.
        trials: packings of which the densest is taken.
        generator: of the random numbers.

    Raises:
        ValueError: for what is not one molecule, or an element without a van der Waals radius.
    """
    if molecule.pbc.any():
        raise ValueError(
            f"{molecule.get_chemical_formula()} is periodic; packing takes one molecule that is "
            "not, and a crystal has --molecules"
        )
    bare = Atoms(molecule.numbers, positions=molecule.positions)
    found = len(find_molecules(bare))
    if found != 1:
        raise ValueError(
            f"{bare.get_chemical_formula()}: packing copies one molecule, and these are {found}; "
            "give each in a structure of its own"
        )
    radii = contact * vdw_radii[bare.numbers]
    if not np.isfinite(radii).all():
        lacking = bare.symbols[int(np.argmin(np.isfinite(radii)))]
        raise ValueError(f"{lacking}: no van der Waals radius is known, which packing needs")

    crystals = [_pack(bare, copies, radii, generator) for _ in range(trials)]
    return min(crystals, key=lambda crystal: crystal.get_volume())


def _pack(
    bare: Atoms, copies: int, radii: NDArray[np.float64], generator: np.random.Generator
) -> Atoms:
    crystal, molecules = _loose_crystal(bare, copies, generator)
    radii = np.tile(radii, copies)

    for step in STEPS:
        free = [0, 1, 2]
        while free:
            axis = int(generator.choice(free))
            strain = np.eye(3)
            strain[axis, axis] = step
            denser = scale_rigidly(crystal, molecules, strain)
            if _touch(denser, molecules, radii):
                free.remove(axis)
            else:
                crystal = denser
    return crystal


def _loose_crystal(
    bare: Atoms, copies: int, generator: np.random.Generator
) -> tuple[Atoms, Molecules]:
    """Return randomly turned copies that are far apart, and the molecules of that crystal."""
    positions = bare.positions - bare.positions.mean(axis=0)
    extent = np.linalg.norm(positions, axis=1).max() + covalent_radii[bare.numbers].max()
    # The nearest two sites are half an edge apart.
    edge = (2 if copies > 1 else 1) * (2 * extent + ROOM)

    rotations = Rotation.random(copies, random_state=generator).as_matrix()
    turned = [
        positions @ rotation.T + edge * site
        for rotation, site in zip(rotations, SITES, strict=False)
    ]
    numbers = np.tile(bare.numbers, copies)
    crystal = Atoms(numbers, np.concatenate(turned), cell=edge * np.eye(3), pbc=True)

    index = np.repeat(np.arange(copies), len(bare))
    no_offsets = np.zeros((len(crystal), 3), dtype=np.int64)
    return crystal, Molecules(index, no_offsets, np.empty((0, 2), dtype=np.int64))


def _touch(crystal: Atoms, molecules: Molecules, radii: NDArray[np.float64]) -> bool:
    """Return whether atoms of different molecules are nearer than the sum of their radii."""
    i, j, shifts = neighbor_list("ijS", crystal, radii)
    # Of whole molecules, so that a neighbour in another cell is of another molecule.
    return bool(((molecules.index[i] != molecules.index[j]) | shifts.any(axis=1)).any())
