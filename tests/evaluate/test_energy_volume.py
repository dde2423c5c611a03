"""Volume scans with a potential whose minimum is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones

from kd_plugins.evaluate import energies, scanned_volume
from tests.evaluate.calculators import Failing, Pressed
from tests.sampling.x23 import crystal


def test_scanned_volume_of_argon_is_its_minimum() -> None:
    argon = Atoms("Ar4", scaled_positions=FACES, cell=[5.5] * 3, pbc=True)
    calculator = LennardJones(sigma=3.4, epsilon=0.0104, rc=10.0, smooth=True)
    found = scanned_volume(argon, calculator)
    assert found.where == "inside"
    step = 1e-3 * np.array([-1, 0, 1])
    cells = [argon.copy() for _ in step]
    for atoms, part in zip(cells, step, strict=True):
        side = (found.volume * (1 + 10 * part)) ** (1 / 3)
        atoms.set_cell([side] * 3, scale_atoms=True)
    below, at, above = energies(cells, calculator)
    assert at < below
    assert at < above
    assert found.energy == pytest.approx(at, abs=1e-3)


FACES = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


@pytest.mark.parametrize(("calculator", "where"), [((200.0, -1), "above"), ((0.05, 1), "below")])
def test_a_scan_without_minimum_is_refused_with_a_direction(
    shared_file: Callable[[str], Path], calculator: tuple[float, int], where: str
) -> None:
    urea = crystal(shared_file, "urea")
    before = urea.copy()
    assert scanned_volume(urea, Pressed(*calculator)).where == where
    assert urea == before


def test_an_energy_that_is_not_finite_is_refused() -> None:
    argon = Atoms("Ar", cell=[5.5] * 3, pbc=True)
    with pytest.raises(ValueError, match=r"expected finite numbers .* energies .*nan"):
        scanned_volume(argon, Failing(3, float("nan")))
