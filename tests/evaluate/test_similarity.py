"""RMSD15 depends on how molecules moved, not on orientation, wrapping or order of cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from kd_plugins.evaluate import rmsd15
from kd_plugins.sampling import Deformation, deformed, find_molecules, scale_rigidly
from tests.sampling.x23 import NAMES, crystal, rewrapped

SharedFile = Callable[[str], Path]
SMALL = ["urea", "co2", "hexamine", "pyrazole", "ammonia"]
SAME = 1e-9
"""Å that rounding leaves."""


def turned(atoms: Atoms, seed: int) -> Atoms:
    """Return the crystal turned and shifted as a whole."""
    generator = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ rotation, scale_atoms=False)
    moved.positions = atoms.positions @ rotation + generator.normal(size=3) * 5
    return moved


def relaxed_like(atoms: Atoms, seed: int) -> Atoms:
    """Return a crystal as a relaxation might leave it."""
    return deformed(atoms, np.random.default_rng(seed), Deformation())


def test_rmsd_of_a_crystal_to_itself_is_zero(shared_file: SharedFile) -> None:
    for name in NAMES:
        atoms = crystal(shared_file, name)
        assert rmsd15(atoms, atoms) < SAME, name


@pytest.mark.parametrize("name", SMALL)
def test_rotation_and_wrapping_do_not_change_the_rmsd(shared_file: SharedFile, name: str) -> None:
    atoms = crystal(shared_file, name)
    relaxed = relaxed_like(atoms, seed=1)
    expected = rmsd15(atoms, relaxed)
    assert expected > 0.05
    assert rmsd15(atoms, turned(relaxed, 2)) == pytest.approx(expected, abs=SAME)
    assert rmsd15(atoms, rewrapped(relaxed, 3)) == pytest.approx(expected, abs=SAME)
    assert rmsd15(rewrapped(atoms, 4), relaxed) == pytest.approx(expected, abs=SAME)
    shifted = turned(relaxed, 5)
    shifted.wrap()
    assert rmsd15(atoms, shifted) == pytest.approx(expected, abs=SAME)
    assert rmsd15(turned(atoms, 6), relaxed) == pytest.approx(expected, abs=SAME)


@pytest.mark.parametrize("name", SMALL)
def test_rmsd_is_proportional_to_expansion(shared_file: SharedFile, name: str) -> None:
    atoms = crystal(shared_file, name)
    molecules = find_molecules(atoms)
    errors = [
        rmsd15(atoms, scale_rigidly(atoms, molecules, (1 + strain) * np.eye(3)), molecules)
        for strain in (-0.02, 0.02, 0.04, 0.08)
    ]
    assert errors[0] > 0.05
    assert np.divide(errors, errors[1]) == pytest.approx([1.0, 1.0, 2.0, 4.0], rel=1e-4)


def test_rmsd_equals_that_of_a_naive_cluster() -> None:
    """Atoms on a cubic lattice, scaled by 1.1: every neighbour moves out by a tenth of its way."""
    reference = Atoms("Ar", cell=[4.0, 4.0, 4.0], pbc=True)
    relaxed = Atoms("Ar", cell=[4.4, 4.4, 4.4], pbc=True)
    cells = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    cluster = 4.0 * cells[np.sum(cells**2, axis=1) <= 1]
    expected = 0.1 * np.sqrt(np.mean(np.sum(cluster**2, axis=1)))
    assert rmsd15(reference, relaxed, n_molecules=7) == pytest.approx(expected, rel=1e-12)
    assert rmsd15(reference, relaxed, n_molecules=1) == 0.0


def test_mirror_image_has_an_rmsd(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "urea")
    mirrored = atoms.copy()
    mirrored.set_cell(atoms.cell.array * [1, 1, -1])
    mirrored.positions = relaxed_like(atoms, 0).positions * [1, 1, -1]
    assert rmsd15(atoms, mirrored) > 1.0


def test_one_rotated_molecule_has_an_rmsd(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "urea")
    molecules = find_molecules(atoms)
    whole = molecules.positions(atoms)
    first = molecules.members[0]
    middle = whole[first].mean(axis=0)
    relaxed = atoms.copy()
    turn = Rotation.from_rotvec([0, 0, np.radians(30)]).as_matrix()
    relaxed.positions[first] = (whole[first] - middle) @ turn + middle
    assert 0.1 < rmsd15(atoms, relaxed) < 1.0


def test_hydrogen_counts_only_in_molecules_of_hydrogen(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "urea")
    moved = atoms.copy()
    moved.positions[atoms.numbers == 1] += [0.0, 0.0, 0.1]
    assert rmsd15(atoms, moved) < SAME
    hydrogen = molecule("H2", cell=[4, 4, 4], pbc=True)
    stretched = hydrogen.copy()
    stretched.positions *= 1.2
    assert rmsd15(hydrogen, stretched) > 0.05


def test_a_broken_bond_does_not_change_the_matching(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "oxalic_acid_alpha")
    moved = atoms.copy()
    moved.positions[atoms.numbers == 1] += 0.6  # into another molecule's reach
    assert rmsd15(atoms, moved) < SAME


@pytest.mark.parametrize(
    ("reference", "relaxed", "message"),
    [
        ("CO", "OC", "got CO and CO in another order"),
        ("CO", "CO2", "got CO and CO2$"),
        ("CO", "CN", "got CO and CN$"),
    ],
)
def test_different_atoms_are_refused(reference: str, relaxed: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rmsd15(Atoms(reference), Atoms(relaxed))


def test_a_structure_without_molecules_is_refused() -> None:
    copper, gas = bulk("Cu"), molecule("H2O")
    with pytest.raises(ValueError, match="the reference structure has pbc"):
        rmsd15(gas, gas)
    with pytest.raises(ValueError, match="expected separate molecules"):
        rmsd15(copper, copper)
    with pytest.raises(ValueError, match="n_molecules: expected 1 or more, got 0"):
        rmsd15(copper, copper, n_molecules=0)
