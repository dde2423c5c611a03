"""Repeat a crystal to a number of atoms, in a cell that is as cubic as possible."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.build.supercells import eval_shape_deviation
from numpy.typing import NDArray

SLACK = 1.25
"""By how much a supercell may exceed the least number of cells, to be more cubic."""
MOST_SIZES = 16
"""Numbers of cells that are tried."""

_FCC = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
_BCC = ((0, 1, 1), (1, 0, 1), (1, 1, 0))
_OFFSETS = np.moveaxis(np.indices([3] * 9), 0, -1).reshape(-1, 3, 3) - 1
"""(19683, 3, 3) all matrices of -1, 0 and 1."""


def supercell(atoms: Atoms, n_atoms: int) -> Atoms:
    """Return a crystal with at least so many atoms, in the most cubic cell that is found.

    Up to a quarter more cells than necessary are tried. The search goes over integer matrices
    around those that would make a cube: of the Cartesian axes, of the crystal's own lattice
    vectors, and of the cubic ones of a primitive fcc or bcc cell. How far a cell is from a cube is
    measured by ASE (`ase.build.supercells.eval_shape_deviation`).

    Args:
        atoms: periodic along all three lattice vectors.
        n_atoms: the least number.

    Raises:
        ValueError: for a structure that is not periodic along all three lattice vectors.

    >>> from ase.build import bulk
    >>> supercell(bulk("Cu"), 32).cell.cellpar().round(2).tolist()
    [7.22, 7.22, 7.22, 90.0, 90.0, 90.0]
    """
    if len(atoms) >= n_atoms:
        return atoms.copy()
    if not atoms.pbc.all():
        raise ValueError(
            f"{atoms.get_chemical_formula()} has {len(atoms)} atoms and is periodic along "
            f"{atoms.pbc.tolist()}; only what is periodic along all three lattice vectors can be "
            f"repeated to {n_atoms} atoms, so sample it without `atoms`"
        )

    cell = atoms.cell.array
    fewest = math.ceil(n_atoms / len(atoms))
    most = min(math.floor(SLACK * fewest), fewest + MOST_SIZES)
    found = [matrix for size in range(fewest, most + 1) for matrix in _most_cubic(cell, size)]

    # The first of those that are as cubic, which has the fewest atoms.
    deviations = np.array([eval_shape_deviation(matrix @ cell) for matrix in found]).round(6)
    return make_supercell(atoms, found[int(np.argmin(deviations))])


def _most_cubic(cell: NDArray[np.float64], size: int) -> list[NDArray[np.int64]]:
    """Return the best transformation for a number of cells, if there is one near a cube."""
    length = np.cbrt(size * abs(np.linalg.det(cell)))
    starts = [np.rint(length * np.linalg.inv(cell))]
    for basis in (np.eye(3), np.array(_FCC), np.array(_BCC)):
        lengths = np.linalg.norm(basis @ cell, axis=1)
        starts.append(np.diag(np.rint(length / lengths)) @ basis)

    matrices = (np.array(starts)[:, None] + _OFFSETS).reshape(-1, 3, 3)
    # Of positive determinant, so that the crystal keeps its hand.
    matrices = matrices[np.rint(np.linalg.det(matrices)) == size].astype(np.int64)
    if not len(matrices):
        return []

    deviations = np.atleast_1d(eval_shape_deviation(matrices @ cell)).round(6)
    best = matrices[deviations == deviations.min()]
    # Of the cells of one shape, the one that is nearest to the Cartesian axes.
    distances = ((best @ cell - length * np.eye(3)) ** 2).sum(axis=(1, 2)).round(6)
    return [best[int(np.argmin(distances))]]
