"""Equilibration at constant temperature: equipartition, seeds, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units

from kd_plugins.evaluate import equilibrated, nve
from tests.evaluate.calculators import Springs

TEMPERATURE = 500.0


def at_rest(number: int = 400) -> Atoms:
    """Atoms where their springs have no tension."""
    return Atoms(f"Cu{number}", positions=np.zeros((number, 3)))


def warm(seed: int = 0, steps: int = 500) -> Atoms:
    return equilibrated(
        at_rest(),
        Springs(),
        steps,
        temperature=TEMPERATURE,
        seed=seed,
        timestep=2.0,
        friction=0.02,
        progress=False,
    )


def test_springs_and_velocities_reach_equipartition() -> None:
    atoms = warm()
    thermal = 1.5 * units.kB * TEMPERATURE
    kinetic = atoms.get_kinetic_energy() / len(atoms)
    potential = float((atoms.positions**2).sum()) / len(atoms)
    assert kinetic == pytest.approx(thermal, rel=0.15)
    assert potential == pytest.approx(thermal, rel=0.15)


def test_a_run_after_equilibration_keeps_its_temperature() -> None:
    settings = {"temperature": None, "seed": 0, "timestep": 5.0, "progress": False}
    kept = nve(warm(), Springs(), 200, **settings)
    halved = nve(at_rest(), Springs(), 200, **{**settings, "temperature": TEMPERATURE})
    assert kept.temperatures.mean() == pytest.approx(TEMPERATURE, rel=0.1)
    assert halved.temperatures.mean() == pytest.approx(TEMPERATURE / 2, rel=0.1)


def test_the_seed_determines_the_result() -> None:
    first, again, other = (warm(seed, steps=20) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.positions, again.positions)
    np.testing.assert_array_equal(first.get_velocities(), again.get_velocities())
    assert not np.allclose(first.positions, other.positions)


def test_equilibrated_does_not_change_its_structure() -> None:
    atoms = at_rest(4)
    made = equilibrated(atoms, Springs(), 5, temperature=300, seed=0, progress=False)
    assert made.calc is None and atoms.calc is None
    assert not atoms.positions.any() and not atoms.get_velocities().any()


def test_wrong_input_of_equilibrated_is_refused() -> None:
    atoms, broken = at_rest(4), Springs(wrong=float("nan"))
    with pytest.raises(ValueError, match="temperature: expected a number above 0 K, got 0"):
        equilibrated(atoms, Springs(), 5, temperature=0, seed=0)
    with pytest.raises(ValueError, match="friction: expected a number above 0 1/fs, got -1"):
        equilibrated(atoms, Springs(), 5, temperature=300, seed=0, friction=-1)
    with pytest.raises(ValueError, match="not finite after 5 steps"):
        equilibrated(atoms, broken, 5, temperature=300, seed=0, progress=False)
