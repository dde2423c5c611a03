"""Radial distribution functions against sums over pairs, in cells of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry import cellpar_to_cell

from kd_plugins.evaluate import rdf

CUTOFF, BINS = 4.0, 40


def gas(seed: int, cell: np.ndarray, count: int = 60) -> Atoms:
    generator = np.random.default_rng(seed)
    return Atoms(f"Ar{count}", scaled_positions=generator.random((count, 3)), cell=cell, pbc=True)


def by_images(atoms: Atoms) -> np.ndarray:
    """Return the same from all images of all atoms, one by one."""
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ atoms.cell.array
    apart = atoms.positions[:, None, None] - atoms.positions[None, :, None] - shifts
    lengths = np.linalg.norm(apart, axis=-1).ravel()
    counts, edges = np.histogram(lengths[lengths > 1e-9], bins=BINS, range=(0, CUTOFF))
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    return counts / len(atoms) / shells / (len(atoms) / atoms.get_volume())


@pytest.mark.parametrize("angles", [(90, 90, 90), (75, 80, 100), (60, 60, 60)])
def test_rdf_equals_the_sum_over_all_images(angles: tuple[int, int, int]) -> None:
    atoms = gas(0, cellpar_to_cell([11, 12, 13, *angles]))
    np.testing.assert_allclose(rdf([atoms], CUTOFF, BINS).values, by_images(atoms), atol=1e-9)


def test_frames_are_averaged_and_rdf_of_a_gas_is_one() -> None:
    frames = [gas(seed, np.eye(3) * 12, 150) for seed in range(20)]
    whole = rdf(frames, CUTOFF, BINS)
    parts = np.mean([rdf([frame], CUTOFF, BINS).values for frame in frames], axis=0)
    np.testing.assert_allclose(whole.values, parts)
    assert whole.values[20:].mean() == pytest.approx(1.0, abs=0.05)


def test_distance_is_zero_to_itself_and_grows_with_displacement() -> None:
    cold = bulk("Cu", cubic=True) * (3, 3, 3)
    warm = cold.copy()
    warm.rattle(0.1, seed=0)
    hot = cold.copy()
    hot.rattle(0.3, seed=0)
    first, second, third = (rdf([one], CUTOFF, BINS) for one in (cold, warm, hot))
    assert first.distance(first) == 0
    assert 0 < second.distance(first) == first.distance(second) < third.distance(first)
    with pytest.raises(ValueError, match="same cutoff and bins"):
        first.distance(rdf([cold], CUTOFF, BINS + 1))


@pytest.mark.parametrize(
    ("frames", "bins", "message"),
    [
        ([], 10, "expected one frame or more"),
        ([Atoms("Ar")], 10, "not periodic"),
        ([bulk("Cu")], 1, "bins: expected a whole number of 2 or more"),
    ],
)
def test_wrong_input_of_rdf_is_refused(frames: list[Atoms], bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rdf(frames, CUTOFF, bins)
