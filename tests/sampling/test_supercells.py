"""Supercells have the atoms that were wanted, the same crystal, and the shape of a cube."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from scipy.spatial.transform import Rotation

from kd_plugins.sampling.supercells import supercell


@pytest.mark.parametrize(
    ("crystal", "n_atoms", "expected"),
    [
        (bulk("Cu", cubic=True), 32, 32),
        (bulk("Cu"), 32, 32),
        (bulk("Cu"), 30, 32),
        (bulk("Cu", cubic=True), 100, 108),
        (bulk("Fe"), 54, 54),
        (bulk("Fe", cubic=True), 54, 54),
        (bulk("NaCl", "rocksalt", a=5.64), 64, 64),
    ],
    ids=str,
)
def test_cubic_crystals_become_cubes(crystal: Atoms, n_atoms: int, expected: int) -> None:
    turned = crystal.copy()
    turned.set_cell(turned.cell.array @ Rotation.random(rng=0).as_matrix(), scale_atoms=True)

    for atoms in (crystal, turned):
        repeated = supercell(atoms, n_atoms)
        lengths, angles = np.split(repeated.cell.cellpar(), 2)
        assert len(repeated) == expected
        assert np.allclose(lengths, lengths[0]) and np.allclose(angles, 90)


def test_conventional_fcc_cell_is_repeated_twice_along_each_axis() -> None:
    crystal = bulk("Al", a=4.04, cubic=True)
    assert np.allclose(supercell(crystal, 32).cell.array, 8.08 * np.eye(3))


@pytest.mark.parametrize("crystal", [bulk("Ti"), bulk("In"), bulk("Sb")], ids=str)
def test_repeated_crystal_has_the_same_neighbours(crystal: Atoms) -> None:
    repeated = supercell(crystal, 40)
    one, many = (np.sort(neighbor_list("d", atoms, 5.0)) for atoms in (crystal, repeated))
    copies = len(repeated) // len(crystal)
    assert 40 <= len(repeated) <= 50 + len(crystal)
    assert np.allclose(np.repeat(one, copies), many)
    # No lattice vector is more than twice as long as another.
    assert repeated.cell.lengths().max() < 2 * repeated.cell.lengths().min()


def test_large_enough_structure_stays_as_it_is() -> None:
    assert supercell(molecule("H2O"), 3) == molecule("H2O")


def test_molecule_cannot_be_repeated() -> None:
    with pytest.raises(ValueError, match="H2O has 3 atoms and is periodic along"):
        supercell(molecule("H2O"), 4)
