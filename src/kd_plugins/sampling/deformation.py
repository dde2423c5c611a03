"""Strain crystals and rotate and rattle their molecules, as training structures for a teacher."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from kd_plugins.names import renamed_argument
from kd_plugins.numbers import check_number, check_seed, check_whole, is_number
from kd_plugins.sampling.molecules import Molecules, find_molecules
from kd_plugins.structures.readers import LabelledStructure

NEAREST = 1.4
"""The least distance of atoms of different molecules, over the sum of their covalent radii.

A bond has about 1.0 and the shortest hydrogen bonds 1.5."""

TRIALS = 50
"""How often a deformation is drawn before the crystal is given up."""


@dataclass(frozen=True)
class Deformation:
    """The ranges of random deformations; each draw is uniform unless noted otherwise.

    The defaults are those of this project's study on the X23 crystals; no paper gives any.

    Args:
        linear_strain: range of the strain along each Cartesian axis, the three independent.
        shear_std: standard deviation of the normally distributed strains e_yz, e_xz, e_xy, as
            components of the symmetric strain tensor.
        rotation_degrees: largest angle of each molecule's rotation about a random axis through its
            centroid.
        rattle: largest standard deviation, in Å, of the normal displacement of every atom.

    Raises:
        ValueError: for a range that is reversed or reaches -1, or a size below 0.
    """

    linear_strain: tuple[float, float] = (-0.035, 0.09)
    shear_std: float = 0.02
    rotation_degrees: float = 5.0
    rattle: float = 0.05

    def __post_init__(self) -> None:
        strain = self.linear_strain
        is_pair = (
            isinstance(strain, (tuple, list)) and len(strain) == 2 and all(map(is_number, strain))
        )
        # At a strain of -1 the cell has no volume.
        if not (is_pair and -1 < strain[0] <= strain[1]):
            raise ValueError(
                f"linear_strain: expected (lowest, highest) above -1, got {self.linear_strain}"
            )

        for name in ("shear_std", "rotation_degrees", "rattle"):
            check_number(name, getattr(self, name), least=0)


def scale_rigidly(atoms: Atoms, molecules: Molecules, deformation: NDArray[np.float64]) -> Atoms:
    """Return a structure with another cell, in which each molecule is moved as a rigid body.

    Args:
        atoms: the crystal.
        molecules: of this crystal.
        deformation: (3, 3) matrix F with x' = F x for lattice vectors and molecules' centroids.

    Returns:
        The structure with whole molecules; without constraints, info and calculator.

    Raises:
        ValueError: for a deformation of another shape or without a positive determinant.
    """
    deformation = np.asarray(deformation, dtype=np.float64)
    is_matrix = deformation.shape == (3, 3) and np.isfinite(deformation).all()
    if not (is_matrix and np.linalg.det(deformation) > 0):
        raise ValueError(
            "deformation: expected a (3, 3) matrix with a positive determinant, got "
            f"{deformation.tolist()} of shape {deformation.shape}; a strain needs the identity "
            "added"
        )

    positions = molecules.positions(atoms)
    centroids = molecules.centroids(positions)
    moves = centroids @ deformation.T - centroids
    return _structure(atoms, positions + moves[molecules.index], atoms.cell.array @ deformation.T)


def deformed(
    atoms: Atoms,
    generator: np.random.Generator,
    settings: Deformation = Deformation(),  # noqa: B008 - frozen
    molecules: Molecules | None = None,
) -> Atoms:
    """Return a randomly strained crystal with randomly rotated and rattled molecules.

    A draw in which molecules come too near (`NEAREST`) is rejected, up to `TRIALS` times.

    Args:
        atoms: the crystal.
        generator: of the random numbers.
        settings: ranges of the deformation.
        molecules: of this crystal, if they are known already.

    Raises:
        ValueError: if the crystal has no molecules, or no draw keeps them apart.
    """
    molecules = molecules or find_molecules(atoms)
    contact = None
    for _ in range(TRIALS):
        trial = _draw(atoms, generator, settings, molecules)
        contact = _contact(trial, molecules)
        if contact is None:
            return trial

    raise ValueError(
        f"{atoms.get_chemical_formula()}: none of {TRIALS} random deformations keeps its molecules "
        f"apart; in the last, {contact}. Check the crystal itself, or lower {settings}"
    )


@renamed_argument("frames", "structures")
def deformed_frames(
    structures: Iterable[LabelledStructure],
    count: int,
    seed: int,
    settings: Deformation = Deformation(),  # noqa: B008 - frozen
) -> Iterator[LabelledStructure]:
    """Yield random deformations of each crystal, called ``<id>/000``, ``<id>/001``, ...

    Each depends on the seed, its crystal and its own number alone: not on the other crystals, nor
    on how many deformations there are.

    Args:
        structures: the crystals; their labels are left out, since they would be wrong.
        count: deformations of each crystal.
        seed: 0 or more.
        settings: ranges of the deformations.

    Raises:
        ValueError: for a count or seed below its least; with the crystal's id, as `deformed` does.
    """
    # Checked here and not in the generator, which would raise only when it is used.
    check_whole("count", count, least=1)
    check_seed("seed", seed)
    return _deform_each(structures, count, seed, settings)


def _deform_each(
    structures: Iterable[LabelledStructure], count: int, seed: int, settings: Deformation
) -> Iterator[LabelledStructure]:
    for crystal in structures:
        # A stable hash of the id: Python's own differs from process to process.
        stream = zlib.crc32(crystal.structure_id.encode())
        try:
            molecules = find_molecules(crystal.atoms)
            for number in range(count):
                generator = np.random.default_rng([seed, stream, number])
                atoms = deformed(crystal.atoms, generator, settings, molecules)
                yield LabelledStructure(f"{crystal.structure_id}/{number:03d}", atoms)
        except ValueError as error:
            raise ValueError(f"{crystal.structure_id}: {error}") from error


def _draw(
    atoms: Atoms, generator: np.random.Generator, settings: Deformation, molecules: Molecules
) -> Atoms:
    """Return one random deformation: strain, then rotations, then rattling.

    The order of the draws is part of the result: another order gives other structures for a seed.
    """
    strained = scale_rigidly(atoms, molecules, np.eye(3) + _draw_strain(generator, settings))

    # Each molecule is rotated about its own centroid.
    centroids = molecules.centroids(strained.positions)[molecules.index]
    rotations = _draw_rotations(generator, settings, len(molecules))[molecules.index]
    rotated = np.einsum("nij,nj->ni", rotations, strained.positions - centroids) + centroids

    rattle_std = generator.uniform(0, settings.rattle)
    return _structure(strained, rotated + rattle_std * generator.normal(size=rotated.shape))


def _draw_strain(generator: np.random.Generator, settings: Deformation) -> NDArray[np.float64]:
    """Return a symmetric strain tensor (3, 3)."""
    strain = np.diag(generator.uniform(*settings.linear_strain, size=3))
    for i, j in ((1, 2), (0, 2), (0, 1)):
        strain[i, j] = strain[j, i] = settings.shear_std * generator.normal()
    return strain


def _draw_rotations(
    generator: np.random.Generator, settings: Deformation, count: int
) -> NDArray[np.float64]:
    """Return rotation matrices (count, 3, 3) about random axes."""
    # A normal vector has no preferred direction; one of uniform components would.
    axes = generator.normal(size=(count, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.radians(generator.uniform(0, settings.rotation_degrees, size=(count, 1)))
    return Rotation.from_rotvec(axes * angles).as_matrix()


def _contact(atoms: Atoms, molecules: Molecules) -> str | None:
    """Describe the nearest atoms of different molecules if they are too near, otherwise None.

    In a structure of whole molecules, an atom's neighbour in another cell is of another molecule.
    """
    cutoffs = natural_cutoffs(atoms, mult=NEAREST)
    i, j, shifts, distances = neighbor_list("ijSd", atoms, cutoffs)
    is_contact = (molecules.index[i] != molecules.index[j]) | shifts.any(axis=1)
    if not is_contact.any():
        return None

    radii = covalent_radii[atoms.numbers]
    ratios = distances / (radii[i] + radii[j])
    worst = np.flatnonzero(is_contact)[np.argmin(ratios[is_contact])]
    one, other = (f"{atoms.symbols[end[worst]]}{end[worst]}" for end in (i, j))
    return (
        f"{one} and {other} of different molecules are {distances[worst]:.2f} Å apart, which is "
        f"{ratios[worst]:.2f} times the sum of their covalent radii and less than {NEAREST}"
    )


def _structure(
    atoms: Atoms, positions: NDArray[np.float64], cell: NDArray[np.float64] | None = None
) -> Atoms:
    """Return the same atoms elsewhere, without constraints, info and labels."""
    cell = atoms.cell.array if cell is None else cell
    return Atoms(atoms.numbers, positions=positions, cell=cell, pbc=atoms.pbc)
