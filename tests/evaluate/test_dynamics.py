"""Dynamics at constant energy: conservation, drift and speed."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from kd_plugins.evaluate import nve
from tests.evaluate.calculators import Springs


def copper() -> Atoms:
    return bulk("Cu", cubic=True) * (2, 2, 2)


def test_energy_is_conserved_and_the_seed_sets_velocities() -> None:
    runs = [nve(copper(), EMT(), 60, temperature=600, seed=s, progress=False) for s in (0, 0, 1)]
    first, again, other = runs
    assert abs(first.drift) < 5
    assert np.ptp(first.energies) < 1e-3
    np.testing.assert_array_equal(first.energies, again.energies)
    assert not np.allclose(first.temperatures, other.temperatures)
    assert first.times == pytest.approx(np.arange(6) * 0.01)
    assert len(first.frames) == 6 and first.frames[0].calc is None


def test_forces_that_are_not_the_gradient_cause_drift() -> None:
    atoms = Atoms("Cu4", positions=np.random.default_rng(0).normal(size=(4, 3)))
    right = nve(atoms, Springs(), 100, temperature=0, seed=0, progress=False)
    wrong = nve(atoms, Springs(wrong=2.0), 100, temperature=0, seed=0, progress=False)
    assert abs(wrong.drift) > 50 * abs(right.drift)


def test_rates_follow_from_the_time_of_a_step() -> None:
    run = nve(copper(), EMT(), 20, temperature=300, seed=0, timestep=2.0, progress=False)
    per_step = run.microseconds_per_atom * 1e-6 * run.n_atoms
    assert run.nanoseconds_per_day * per_step == pytest.approx(86400 * 2e-6)


def test_nve_does_not_change_its_structure() -> None:
    atoms = copper()
    before = atoms.positions.copy()
    nve(atoms, EMT(), 20, temperature=300, seed=0, progress=False)
    assert atoms.calc is None and np.array_equal(atoms.positions, before)


def test_wrong_input_of_nve_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 20 steps or more"):
        nve(copper(), EMT(), 10, temperature=300, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        nve(copper(), Springs(float("nan")), 40, temperature=300, seed=0, progress=False)
