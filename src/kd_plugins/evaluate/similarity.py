"""How far the packing of molecules has moved: the RMSD of a cluster of fifteen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from kd_plugins.sampling.molecules import Molecules, find_molecules

N_MOLECULES = 15
"""Molecules of a cluster in Chisholm and Motherwell's comparison, which Taniguchi 2024 uses."""
SAME_DISTANCE = 1e-3
"""Å by which two distances may differ and count as the same shell."""


def rmsd15(
    reference: Atoms,
    relaxed: Atoms,
    molecules: Molecules | None = None,
    n_molecules: int = N_MOLECULES,
) -> float:
    """Return the root mean square distance, in Å, of the heavy atoms of a cluster of molecules.

    The cluster is a molecule of the reference with its nearest by centroid. The same molecules of
    the relaxed crystal are laid over it by the best rotation and translation. The result is the
    mean over all molecules of the cell as the central one, so that it depends on no choice.

    Both have their atoms in the same order and the same choice of lattice vectors, as a relaxation
    leaves them, so nothing has to be searched. Moved by lattice vectors, shifted or turned as a
    whole, the relaxed crystal stays the same. Of molecules at the same distance, the first in the
    order of atoms and cells are taken. Which periodic image of a molecule is meant is the nearest
    in fractional coordinates, so a molecule must not move by half a lattice vector with respect to
    another. Hydrogen counts only in a molecule that has nothing else.

    Args:
        reference: a crystal, say of the experiment.
        relaxed: the same one after a relaxation.
        molecules: of the reference, if they are known already.
        n_molecules: how many make a cluster.

    Raises:
        ValueError: if the two differ in their atoms, are not periodic in three directions or have
            no molecules, or for less than one molecule.
    """
    _check(reference, relaxed, n_molecules)
    molecules = molecules or find_molecules(reference)
    before = molecules.positions(reference) @ np.linalg.inv(reference.cell.array)
    after = _followed(before, relaxed, molecules)
    kept = _counted(reference, molecules)
    errors = [
        _rmsd(
            _cluster(before, images, molecules, kept) @ reference.cell.array,
            _cluster(after, images, molecules, kept) @ relaxed.cell.array,
        )
        for images in _clusters(reference, molecules, n_molecules)
    ]
    return float(np.mean(errors))


def _check(reference: Atoms, relaxed: Atoms, n_molecules: int) -> None:
    if len(reference) != len(relaxed) or np.any(reference.numbers != relaxed.numbers):
        raise ValueError(
            "rmsd15: expected the same atoms in the same order, got "
            f"{reference.get_chemical_formula()} and {relaxed.get_chemical_formula()}"
            f"{' in another order' if sorted(reference.numbers) == sorted(relaxed.numbers) else ''}"
        )
    for name, atoms in (("reference", reference), ("relaxed", relaxed)):
        if not (atoms.pbc.all() and atoms.cell.rank == 3):
            raise ValueError(
                f"rmsd15: expected a crystal with three periodic lattice vectors, but the {name} "
                f"structure has pbc {atoms.pbc.tolist()} and {atoms.cell.rank} vectors"
            )
    if n_molecules < 1:
        raise ValueError(f"n_molecules: expected 1 or more, got {n_molecules}")


def _followed(
    before: NDArray[np.float64], relaxed: Atoms, molecules: Molecules
) -> NDArray[np.float64]:
    """Return fractional positions of the relaxed crystal in the images of the reference's.

    Bond by bond from the first atom of each molecule, and molecule by molecule from the first.
    """
    after = relaxed.positions @ np.linalg.inv(relaxed.cell.array)
    for i, j in molecules.bonds:
        after[j] += np.round((before[j] - before[i]) - (after[j] - after[i]))
    drift = molecules.centroids(after) - molecules.centroids(before)
    return after - np.round(drift - drift[0])[molecules.index]


def _counted(atoms: Atoms, molecules: Molecules) -> NDArray[np.bool_]:
    """Say which atoms count: all but hydrogen, and hydrogen in molecules of nothing else."""
    heavy = atoms.numbers > 1
    has_heavy = np.bincount(molecules.index, weights=heavy) > 0
    return heavy | ~has_heavy[molecules.index]


def _clusters(atoms: Atoms, molecules: Molecules, n_molecules: int) -> Iterator[NDArray[np.int64]]:
    """Yield, for each central molecule, rows of a molecule and the cell that it is taken from."""
    centroids = molecules.centroids(molecules.positions(atoms))
    points = Atoms(f"H{len(molecules)}", positions=centroids, cell=atoms.cell, pbc=True)
    cutoff = (3 / (4 * np.pi) * n_molecules * atoms.get_volume() / len(molecules)) ** (1 / 3)
    while True:
        i, j, shifts, distances = neighbor_list("ijSd", points, cutoff)
        if np.bincount(i, minlength=len(molecules)).min() >= n_molecules - 1:
            break
        cutoff *= 1.25
    for centre in range(len(molecules)):
        mine = i == centre
        rows = np.column_stack([j[mine], shifts[mine]])
        nearest = _in_order(rows, distances[mine])[: n_molecules - 1]
        yield np.vstack([[centre, 0, 0, 0], nearest])


def _in_order(rows: NDArray[np.int64], distances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Sort by shells of the same distance, and within a shell by molecule and cell."""
    by_distance = np.argsort(distances, kind="stable")
    rows, distances = rows[by_distance], distances[by_distance]
    shells = np.cumsum(np.diff(distances, prepend=0.0) > SAME_DISTANCE)
    return rows[np.lexsort([*rows.T[::-1], shells])]


def _cluster(
    fractional: NDArray[np.float64],
    images: NDArray[np.int64],
    molecules: Molecules,
    kept: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the fractional positions of a cluster's atoms that count."""
    return np.vstack(
        [fractional[(molecules.index == molecule) & kept] + cell for molecule, *cell in images]
    )


def _rmsd(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return what is left after the best rotation (Kabsch 1976) of one cluster onto another."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    left, _, right = np.linalg.svd(one.T @ other)
    mirrored = np.linalg.det(left @ right) < 0
    rotation = left @ np.diag([1.0, 1.0, -1.0 if mirrored else 1.0]) @ right
    return float(np.sqrt(np.mean(np.sum((one @ rotation - other) ** 2, axis=1))))
