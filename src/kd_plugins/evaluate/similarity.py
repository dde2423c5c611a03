"""Similarity of the packing of two molecular crystals: the RMSD of a cluster of 15 molecules."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from kd_plugins.sampling.molecules import Molecules, find_molecules

Floats = NDArray[np.float64]

N_MOLECULES = 15
"""Molecules of a cluster in Chisholm and Motherwell's comparison, which Taniguchi 2024 uses."""
SAME_DISTANCE = 1e-3
"""Å by which two distances of one shell may differ."""


def rmsd15(
    reference: Atoms,
    relaxed: Atoms,
    molecules: Molecules | None = None,
    n_molecules: int = N_MOLECULES,
) -> float:
    """Return the root mean square distance, in Å, of the heavy atoms of a cluster of molecules.

    A cluster is a molecule of the reference and the molecules with the nearest centroids. The same
    molecules of the relaxed crystal are superimposed by the best rotation and translation. The
    result is the mean over all molecules of the cell as the central one.

    Both crystals have the same order of atoms and the same choice of lattice vectors, as a
    relaxation leaves them, so no atoms have to be matched. The result does not change if the
    relaxed crystal is shifted or turned as a whole, or atoms are moved by lattice vectors. Of
    molecules at the same distance, the first in the order of atoms and cells are taken. A molecule
    corresponds to the nearest image in fractional coordinates, so none may move by half a lattice
    vector with respect to another. Hydrogen counts only in a molecule that has nothing else.

    Args:
        reference: a crystal, say of the experiment.
        relaxed: the same one after a relaxation.
        molecules: of the reference, if they are known already.
        n_molecules: of a cluster.

    Raises:
        ValueError: if the two differ in their atoms, are not periodic in three directions or have
            no molecules, or for less than one molecule.
    """
    _check(reference, relaxed, n_molecules)
    molecules = molecules or find_molecules(reference)

    # In fractional coordinates, the same molecule in another cell is a shift by whole numbers.
    before = molecules.positions(reference) @ np.linalg.inv(reference.cell.array)
    after = _matching_images(before, relaxed, molecules)
    counted = _counted_atoms(reference, molecules)

    errors = []
    for images in _cluster_images(reference, molecules, n_molecules):
        one = _cluster(before, images, molecules, counted) @ reference.cell.array
        two = _cluster(after, images, molecules, counted) @ relaxed.cell.array
        errors.append(_rmsd(one, two))
    return float(np.mean(errors))


def _check(reference: Atoms, relaxed: Atoms, n_molecules: int) -> None:
    if len(reference) != len(relaxed) or np.any(reference.numbers != relaxed.numbers):
        is_permuted = sorted(reference.numbers) == sorted(relaxed.numbers)
        raise ValueError(
            "rmsd15: expected the same atoms in the same order, got "
            f"{reference.get_chemical_formula()} and {relaxed.get_chemical_formula()}"
            f"{' in another order' if is_permuted else ''}"
        )

    for name, atoms in (("reference", reference), ("relaxed", relaxed)):
        if not (atoms.pbc.all() and atoms.cell.rank == 3):
            raise ValueError(
                f"rmsd15: expected a crystal with three periodic lattice vectors, but the {name} "
                f"structure has pbc {atoms.pbc.tolist()} and {atoms.cell.rank} vectors"
            )

    if n_molecules < 1:
        raise ValueError(f"n_molecules: expected 1 or more, got {n_molecules}")


# --- Which atoms are compared -------------------------------------------------------------------


def _matching_images(before: Floats, relaxed: Atoms, molecules: Molecules) -> Floats:
    """Return fractional positions (N, 3) of the relaxed crystal in the images of the reference.

    Args:
        before: (N, 3) fractional positions of the reference, molecules unwrapped.
        relaxed: the other crystal.
        molecules: of the reference.
    """
    after = relaxed.positions @ np.linalg.inv(relaxed.cell.array)

    # Within a molecule: each bond is as in the reference, up to half a lattice vector. Bonds are
    # in an order in which the first atom has its place already.
    for i, j in molecules.bonds:
        after[j] += np.round((before[j] - before[i]) - (after[j] - after[i]))

    # Among molecules: each moves as the first one does, up to half a lattice vector.
    drift = molecules.centroids(after) - molecules.centroids(before)
    return after - np.round(drift - drift[0])[molecules.index]


def _counted_atoms(atoms: Atoms, molecules: Molecules) -> NDArray[np.bool_]:
    """Return a mask (N,): all but hydrogen, and hydrogen in molecules of nothing else."""
    is_heavy = atoms.numbers > 1
    has_heavy = np.bincount(molecules.index, weights=is_heavy) > 0
    return is_heavy | ~has_heavy[molecules.index]


def _cluster_images(
    atoms: Atoms, molecules: Molecules, n_molecules: int
) -> Iterator[NDArray[np.int64]]:
    """Yield for each central molecule the molecules of its cluster, (n_molecules, 4).

    A row is the number of a molecule and the cell that its image is in.
    """
    centroids = molecules.centroids(molecules.positions(atoms))
    points = Atoms(f"H{len(molecules)}", positions=centroids, cell=atoms.cell, pbc=True)

    # Start with the sphere that holds the cluster on average, and widen it until all clusters fit.
    volume = n_molecules * atoms.get_volume() / len(molecules)
    cutoff = (3 / (4 * np.pi) * volume) ** (1 / 3)
    while True:
        i, j, shifts, distances = neighbor_list("ijSd", points, cutoff)
        if np.bincount(i, minlength=len(molecules)).min() >= n_molecules - 1:
            break
        cutoff *= 1.25

    for centre in range(len(molecules)):
        is_neighbour = i == centre
        images = np.column_stack([j[is_neighbour], shifts[is_neighbour]])
        nearest = _sort_by_shell(images, distances[is_neighbour])[: n_molecules - 1]
        yield np.vstack([[centre, 0, 0, 0], nearest])


def _sort_by_shell(images: NDArray[np.int64], distances: Floats) -> NDArray[np.int64]:
    """Sort by shells of the same distance, and within a shell by molecule and cell.

    Distances that are equal by symmetry differ by rounding, which would choose at random.
    """
    by_distance = np.argsort(distances, kind="stable")
    images, distances = images[by_distance], distances[by_distance]
    shells = np.cumsum(np.diff(distances, prepend=0.0) > SAME_DISTANCE)

    # `lexsort` sorts by its last key first.
    return images[np.lexsort([*images.T[::-1], shells])]


def _cluster(
    fractional: Floats,
    images: NDArray[np.int64],
    molecules: Molecules,
    counted: NDArray[np.bool_],
) -> Floats:
    """Return the fractional positions of a cluster's atoms that count."""
    return np.vstack(
        [fractional[(molecules.index == molecule) & counted] + cell for molecule, *cell in images]
    )


# --- The distance of two clusters ---------------------------------------------------------------


def _rmsd(one: Floats, two: Floats) -> float:
    """Return the root mean square distance after the best rotation (Kabsch 1976).

    Args:
        one: (N, 3) positions of a cluster in Å.
        two: (N, 3) positions of the same atoms.
    """
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    left, _, right = np.linalg.svd(one.T @ two)

    # The best orthogonal matrix may be a reflection, which is no rigid motion. Reversing the
    # direction of the smallest singular value gives the best rotation.
    is_reflection = np.linalg.det(left @ right) < 0
    rotation = left @ np.diag([1.0, 1.0, -1.0 if is_reflection else 1.0]) @ right
    return float(np.sqrt(np.mean(np.sum((one @ rotation - two) ** 2, axis=1))))
