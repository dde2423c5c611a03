"""Molecules are found whole, wherever their atoms were written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import natural_cutoffs, neighbor_list

from kd_plugins.sampling import Molecules, find_molecules
from tests.sampling.x23 import NAMES, crystal, molecules_in_cell, rewrapped

SharedFile = Callable[[str], Path]


def bond_lengths(atoms: Atoms, molecules: Molecules) -> np.ndarray:
    """Return how far bound atoms are from each other once molecules are whole."""
    whole = molecules.positions(atoms)
    i, j = molecules.bonds.T
    return np.linalg.norm(whole[j] - whole[i], axis=1)


def test_all_molecules_of_the_x23_crystals_are_found(shared_file: SharedFile) -> None:
    expected = molecules_in_cell(shared_file)
    assert sorted(expected) == sorted(NAMES)
    for name in NAMES:
        atoms = crystal(shared_file, name)
        molecules = find_molecules(atoms)
        assert len(molecules) == expected[name], name
        formulas = {atoms[members].get_chemical_formula() for members in molecules.members}
        assert len(formulas) == 1, name


@pytest.mark.parametrize("name", ["urea", "pyrazole", "adamantane", "co2"])
def test_molecules_are_whole(shared_file: SharedFile, name: str) -> None:
    atoms = crystal(shared_file, name)
    molecules = find_molecules(atoms)
    whole = Atoms(atoms.numbers, molecules.positions(atoms))  # without boundaries
    assert np.array_equal(find_molecules(whole).index, molecules.index)
    assert np.abs(np.round(molecules.offsets) - molecules.offsets).max() == 0
    assert bond_lengths(atoms, molecules).max() < 1.6
    assert len(molecules.bonds) == len(atoms) - len(molecules)


@pytest.mark.parametrize("name", ["urea", "pyrazole", "hexamine"])
@pytest.mark.parametrize("seed", range(3))
def test_molecules_do_not_depend_on_wrapping_or_order(
    shared_file: SharedFile, name: str, seed: int
) -> None:
    atoms = crystal(shared_file, name)
    molecules = find_molecules(atoms)
    wrapped = rewrapped(atoms, seed)
    assert np.array_equal(find_molecules(wrapped).index, molecules.index)
    lengths = bond_lengths(wrapped, find_molecules(wrapped))
    np.testing.assert_allclose(lengths, bond_lengths(atoms, molecules), atol=1e-10)
    order = np.random.default_rng(seed).permutation(len(atoms))
    rolled = find_molecules(atoms[order])
    parts = {frozenset(order[members].tolist()) for members in rolled.members}
    assert parts == {frozenset(members.tolist()) for members in molecules.members}


def test_every_bond_is_inside_a_molecule(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "uracil")
    molecules = find_molecules(atoms)
    atoms.positions = molecules.positions(atoms)
    i, j, shifts = neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=1.25))
    assert not shifts.any()
    assert np.array_equal(molecules.index[i], molecules.index[j])


def test_molecules_without_a_box_and_atoms_alone() -> None:
    pair = molecule("H2O") + Atoms("Ar", positions=[[9.0, 0.0, 0.0]])
    molecules = find_molecules(pair)
    assert molecules.index.tolist() == [0, 0, 0, 1]
    assert find_molecules(Atoms("Ar")).bonds.shape == (0, 2)
    centroids = molecules.centroids(molecules.positions(pair))
    np.testing.assert_allclose(centroids, [pair.positions[:3].mean(axis=0), [9, 0, 0]])


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (bulk("Cu"), r"Cu: expected separate molecules, but Cu0 are bound to their own"),
        (bulk("NaCl", "rocksalt", 5.64), r"Na0, Cl1 are bound"),
        (Atoms("CH2", [[0, 0, 0], [0, 0, 1.1], [0, 0, -1.1]], cell=[1.5, 9, 9], pbc=True), "C0, H"),
        (Atoms(), "expected a structure with atoms"),
    ],
    ids=["metal", "salt", "polymer", "nothing"],
)
def test_periodic_networks_are_refused(atoms: Atoms, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_molecules(atoms)


def test_message_names_six_atoms_of_a_large_network() -> None:
    with pytest.raises(ValueError, match=r"Cu5 and 21 more are bound .* lower the tolerance"):
        find_molecules(bulk("Cu") * (3, 3, 3))


def test_molecules_of_another_structure_are_refused() -> None:
    with pytest.raises(ValueError, match="the structure of 3 atoms .* got HO with 2"):
        find_molecules(molecule("H2O")).positions(molecule("OH"))
