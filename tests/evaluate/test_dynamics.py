"""Energy is conserved and speed is a rate."""

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


def test_energy_is_conserved_and_velocities_follow_the_seed() -> None:
    runs = [nve(copper(), EMT(), 60, temperature=600, seed=s, progress=False) for s in (0, 0, 1)]
    first, again, other = runs
    assert abs(first.drift) < 5
    assert np.ptp(first.energies) < 1e-3
    np.testing.assert_array_equal(first.energies, again.energies)
    assert not np.allclose(first.temperatures, other.temperatures)
    assert first.times == pytest.approx(np.arange(6) * 0.01)
    assert len(first.frames) == 6 and first.frames[0].calc is None


def test_forces_that_are_not_the_energys_show_as_drift() -> None:
    atoms = Atoms("Cu4", positions=np.random.default_rng(0).normal(size=(4, 3)))
    right = nve(atoms, Springs(), 100, temperature=0, seed=0, progress=False)
    wrong = nve(atoms, Springs(wrong=2.0), 100, temperature=0, seed=0, progress=False)
    assert abs(wrong.drift) > 50 * abs(right.drift)


def test_rates_are_of_one_clock() -> None:
    run = nve(copper(), EMT(), 20, temperature=300, seed=0, timestep=2.0, progress=False)
    per_step = run.microseconds_per_atom * 1e-6 * run.n_atoms
    assert run.nanoseconds_per_day * per_step == pytest.approx(86400 * 2e-6)


def test_a_structure_stays_as_it_is() -> None:
    atoms = copper()
    before = atoms.positions.copy()
    nve(atoms, EMT(), 20, temperature=300, seed=0, progress=False)
    assert atoms.calc is None and np.array_equal(atoms.positions, before)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 20 steps or more"):
        nve(copper(), EMT(), 10, temperature=300, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        nve(copper(), Springs(float("nan")), 40, temperature=300, seed=0, progress=False)
