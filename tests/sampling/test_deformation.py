"""Rigid deformations move molecules and leave them as they are; random ones can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry import cell_to_cellpar
from numpy.typing import NDArray

from kd_plugins.sampling import (
    Deformation,
    deformation,
    deformed,
    deformed_frames,
    find_molecules,
    scale_rigidly,
)
from kd_plugins.structures.readers import LabelledStructure
from tests.sampling.x23 import NAMES, crystal, frame, rewrapped

SharedFile = Callable[[str], Path]
STILL = Deformation(linear_strain=(0.0, 0.0), shear_std=0.0, rotation_degrees=0.0, rattle=0.0)
SKEW = np.array([[1.05, 0.02, 0.0], [0.01, 0.97, 0.03], [0.0, -0.02, 1.08]])


def inner_distances(positions: NDArray[np.float64], members: NDArray[np.int64]) -> np.ndarray:
    """Return all distances within one molecule."""
    mine = positions[members]
    return np.linalg.norm(mine[:, None] - mine[None], axis=2)


@pytest.mark.parametrize("name", ["urea", "pyrazole", "adamantane", "hexamine"])
def test_molecules_stay_rigid_and_their_centroids_scale(shared_file: SharedFile, name: str) -> None:
    atoms = crystal(shared_file, name)
    molecules = find_molecules(atoms)
    whole = molecules.positions(atoms)
    scaled = scale_rigidly(atoms, molecules, SKEW)
    for members in molecules.members:
        np.testing.assert_allclose(
            inner_distances(scaled.positions, members), inner_distances(whole, members), atol=1e-10
        )
    centroids = molecules.centroids(scaled.positions)
    np.testing.assert_allclose(centroids, molecules.centroids(whole) @ SKEW.T, atol=1e-10)
    np.testing.assert_allclose(scaled.cell.array, atoms.cell.array @ SKEW.T, atol=1e-12)
    assert np.isclose(scaled.get_volume(), atoms.get_volume() * np.linalg.det(SKEW))


def test_zero_deformation_changes_nothing(shared_file: SharedFile) -> None:
    atoms = rewrapped(crystal(shared_file, "urea"), seed=1)
    molecules = find_molecules(atoms)
    same = scale_rigidly(atoms, molecules, np.eye(3))
    np.testing.assert_allclose(same.positions, molecules.positions(atoms), atol=1e-12)
    still = deformed(atoms, np.random.default_rng(0), STILL)
    np.testing.assert_allclose(still.positions, same.positions, atol=1e-10)
    assert same.positions is not atoms.positions


def test_deformation_does_not_depend_on_wrapping(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "urea")
    one, other = (
        deformed(structure, np.random.default_rng(3))
        for structure in (atoms, rewrapped(atoms, seed=1))
    )
    cells = (other.positions - one.positions) @ np.linalg.inv(one.cell.array)
    np.testing.assert_allclose(cells, np.round(cells), atol=1e-9)


def test_random_deformations_keep_to_their_settings(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "urea")
    settings = Deformation(shear_std=0.0, rattle=0.0)
    strains = []
    for seed in range(60):
        strained = deformed(atoms, np.random.default_rng(seed), settings)
        assert cell_to_cellpar(strained.cell.array)[3:] == pytest.approx(90.0)
        strains.append(np.diag(strained.cell.array) / np.diag(atoms.cell.array) - 1)
    low, high = settings.linear_strain
    assert low <= np.min(strains) < low + 0.01
    assert high - 0.01 < np.max(strains) <= high
    assert np.mean(strains) == pytest.approx((low + high) / 2, abs=0.015)
    assert np.abs(np.corrcoef(np.transpose(strains)) - np.eye(3)).max() < 0.4


def test_rotation_stays_below_its_limit(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "co2")
    molecules = find_molecules(atoms)
    settings = Deformation((0.0, 0.0), shear_std=0.0, rotation_degrees=5.0, rattle=0.0)
    before = bond_directions(molecules.positions(atoms), molecules.bonds)
    largest = 0.0
    for seed in range(25):
        turned = deformed(atoms, np.random.default_rng(seed), settings, molecules)
        after = bond_directions(turned.positions, molecules.bonds)
        angles = np.degrees(np.arccos(np.clip(np.sum(before * after, axis=1), -1, 1)))
        largest = max(largest, angles.max())
    assert 3.5 < largest <= 5.0 + 1e-6


def bond_directions(positions: NDArray[np.float64], bonds: NDArray[np.int64]) -> np.ndarray:
    """Return unit vectors along bonds."""
    vectors = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_rattle_has_its_standard_deviation(shared_file: SharedFile) -> None:
    atoms = crystal(shared_file, "anthracene")
    still = deformed(atoms, np.random.default_rng(0), STILL).positions
    settings = Deformation((0.0, 0.0), shear_std=0.0, rotation_degrees=0.0, rattle=0.05)
    spreads = [
        np.std(deformed(atoms, np.random.default_rng(seed), settings).positions - still)
        for seed in range(25)
    ]
    assert 0.04 < np.max(spreads) < 0.06
    assert np.mean(spreads) == pytest.approx(0.025, abs=0.008)


def test_deformed_crystal_has_the_same_molecules(shared_file: SharedFile) -> None:
    frames = [frame(shared_file, name) for name in NAMES[::2]]
    for made in deformed_frames(frames, count=1, seed=5):
        original = crystal(shared_file, made.structure_id.partition("/")[0])
        found = find_molecules(made.atoms)
        assert np.array_equal(found.index, find_molecules(original).index), made.structure_id
        assert not found.offsets.any()


def test_deformation_depends_on_seed_crystal_and_number_only(shared_file: SharedFile) -> None:
    urea, co2 = frame(shared_file, "urea"), frame(shared_file, "co2")
    both = {made.structure_id: made.atoms for made in deformed_frames([urea, co2], 3, seed=1)}
    assert list(both) == [f"{name}/{number:03d}" for name in ("urea", "co2") for number in range(3)]
    for made in deformed_frames([co2], 2, seed=1):
        assert np.array_equal(made.atoms.positions, both[made.structure_id].positions)
        assert made.labels == {}
    other = next(deformed_frames([co2], 1, seed=2)).atoms
    assert not np.allclose(other.cell.array, both["co2/000"].cell.array)
    assert not np.allclose(both["co2/000"].cell.array, both["co2/001"].cell.array)
    renamed = next(deformed_frames([LabelledStructure("co2'", co2.atoms)], 1, seed=1)).atoms
    assert not np.allclose(renamed.cell.array, both["co2/000"].cell.array)


def test_structures_are_read_as_they_are_needed(shared_file: SharedFile) -> None:
    def endless():
        while True:
            yield frame(shared_file, "co2")

    assert len(list(islice(deformed_frames(endless(), 2, seed=0), 5))) == 5


def test_draw_with_a_contact_is_repeated(
    shared_file: SharedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = crystal(shared_file, "urea")
    crush = Deformation((-0.35, 0.1), shear_std=0.0, rotation_degrees=0.0, rattle=0.0)
    kept = deformed(atoms, np.random.default_rng(0), crush)
    assert deformation._contact(kept, find_molecules(atoms)) is None
    monkeypatch.setattr(deformation, "TRIALS", 1)
    with pytest.raises(ValueError, match="none of 1 random deformations"):
        for seed in range(20):
            deformed(atoms, np.random.default_rng(seed), crush)


def test_molecules_that_always_touch_are_named(shared_file: SharedFile) -> None:
    crush = Deformation((-0.4, -0.4), shear_std=0.0, rotation_degrees=0.0, rattle=0.0)
    message = r"urea: C2H8N4O2: none of 50 .* of different molecules are 0\.\d\d Å apart"
    with pytest.raises(ValueError, match=message):
        list(deformed_frames([frame(shared_file, "urea")], 1, 0, crush))


def test_a_molecule_that_touches_its_own_image_is_seen() -> None:
    monoxide = Atoms("CO", [[0, 0, 0], [1.13, 0, 0]], cell=[3.0, 9.0, 9.0], pbc=True)
    with pytest.raises(ValueError, match="(C0 and O1|O1 and C0) of different molecules are 1.87"):
        deformed(monoxide, np.random.default_rng(0), STILL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"linear_strain": (0.1, -0.1)}, r"linear_strain: expected .* got \(0.1, -0.1\)"),
        ({"linear_strain": (-1.0, 0.0)}, "above -1"),
        ({"shear_std": -0.1}, "shear_std: expected a number of 0 or more, got -0.1"),
        ({"rotation_degrees": float("nan")}, "number of 0 or more, got nan"),
        ({"rattle": -1.0}, "rattle: expected"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Deformation(**arguments)


@pytest.mark.parametrize("bad", [np.eye(2), -np.eye(3), np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_matrix_without_positive_determinant_is_refused(bad: NDArray[np.float64]) -> None:
    atoms = Atoms("Ar", cell=[5, 5, 5], pbc=True)
    with pytest.raises(ValueError, match=r"expected a \(3, 3\) matrix with a positive determinant"):
        scale_rigidly(atoms, find_molecules(atoms), bad)


def test_bad_counts_and_crystals_are_refused() -> None:
    with pytest.raises(ValueError, match="count: expected a whole number of 1 or more, got 0"):
        deformed_frames([], count=0, seed=1)
    with pytest.raises(ValueError, match="seed: .* from 0 to 4294967295, got -1"):
        deformed_frames([], count=1, seed=-1)
    with pytest.raises(ValueError, match="copper: Cu: expected separate molecules"):
        list(deformed_frames([LabelledStructure("copper", bulk("Cu"))], 1, 0))
