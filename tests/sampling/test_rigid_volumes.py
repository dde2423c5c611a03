"""A volume scan keeps molecules as they are and finds the right one of several minima."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from kd_plugins.sampling import find_molecules, minimum_volume, volume_scan
from tests.sampling.x23 import crystal

VOLUMES = np.linspace(80.0, 160.0, 14)
SPLINE = 3e-3
"""What fourteen points tell about a binding curve, near an end of the scan."""


def test_fourteen_volumes_of_rigid_molecules(shared_file: Callable[[str], Path]) -> None:
    atoms = crystal(shared_file, "urea")
    molecules = find_molecules(atoms)
    scan = volume_scan(atoms, molecules)
    ratios = [scaled.get_volume() / atoms.get_volume() for scaled in scan]
    np.testing.assert_allclose(ratios, np.linspace(0.8, 1.6, 14))
    i, j = molecules.bonds.T
    whole = molecules.positions(atoms)
    for scaled in scan:
        vectors = scaled.positions[j] - scaled.positions[i]
        np.testing.assert_allclose(vectors, whole[j] - whole[i], atol=1e-10)


def morse(volumes: np.ndarray, best: float) -> np.ndarray:
    """Return a binding curve over volume, with its minimum of -1 at ``best``."""
    x = np.exp(-4 * (np.cbrt(volumes / best) - 1) * 3)
    return x**2 - 2 * x


@pytest.mark.parametrize("best", [85.0, 101.3, 120.0, 155.0])
def test_the_minimum_of_a_binding_curve_is_found(best: float) -> None:
    found = minimum_volume(VOLUMES, morse(VOLUMES, best), reference_volume=100.0)
    assert found.where == "inside"
    assert found.volume == pytest.approx(best, rel=SPLINE)
    assert found.energy == pytest.approx(-1.0, abs=SPLINE)
    order = np.random.default_rng(0).permutation(len(VOLUMES))
    again = minimum_volume(VOLUMES[order], morse(VOLUMES, best)[order], 100.0)
    assert again == found


def test_nearest_of_two_minima_is_found_not_the_lowest() -> None:
    energies = morse(VOLUMES, 120.0) - 20 * np.exp(-(((VOLUMES - 92.0) / 8) ** 2))
    assert minimum_volume(VOLUMES, energies, 125.0).volume == pytest.approx(120.0, abs=3.0)
    assert minimum_volume(VOLUMES, energies, 90.0).volume == pytest.approx(92.0, abs=4.0)


@pytest.mark.parametrize(("best", "where", "end"), [(60.0, "below", 80.0), (300.0, "above", 160.0)])
def test_minimum_outside_the_scan_is_reported(best: float, where: str, end: float) -> None:
    energies = (np.cbrt(VOLUMES) - np.cbrt(best)) ** 2
    found = minimum_volume(VOLUMES, energies, 100.0)
    assert (found.where, found.volume) == (where, end)
    assert found.energy == energies.min()


def test_a_maximum_is_no_minimum() -> None:
    assert minimum_volume(VOLUMES, -((VOLUMES - 110.0) ** 2), 110.0).where == "above"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_of_zero_or_below_are_refused(scale: float) -> None:
    atoms = Atoms("Ar", cell=[5, 5, 5], pbc=True)
    with pytest.raises(ValueError, match="linear_scales: expected factors above 0"):
        volume_scan(atoms, find_molecules(atoms), [1.0, scale])


@pytest.mark.parametrize(
    ("volumes", "energies", "reference", "message"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 2, r"at least 5 of each, got \(4,\) and \(4,\)"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4], 2, r"got \(5,\) and \(4,\)"),
        ([1, 2, 3, 4, 4], [1, 2, 3, 4, 5], 2, "expected no two the same"),
        ([1, 2, 3, 4, 5], [1, 2, float("nan"), 4, 5], 2, "expected finite numbers"),
        ([0, 2, 3, 4, 5], [1, 2, 3, 4, 5], 2, "volumes above 0"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], float("nan"), "reference_volume: .*got nan"),
    ],
)
def test_bad_scans_are_refused(
    volumes: list[float], energies: list[float], reference: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        minimum_volume(volumes, energies, reference)
