"""Relaxations find the minimum; a failure is a result with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from kd_plugins.evaluate import relax
from tests.evaluate.calculators import Failing, Pressed

COPPER = 3.59
"""Lattice constant of EMT copper in Å."""


def disturbed(a: float = 3.7) -> Atoms:
    """Return strained copper whose atoms are out of place."""
    atoms = bulk("Cu", a=a, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.eye(3, k=1)), scale_atoms=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def test_copper_relaxes_to_its_lattice_constant(capsys: pytest.CaptureFixture[str]) -> None:
    start = disturbed()
    before = start.copy()
    found = relax(start, EMT(), force_tolerance=1e-3)
    assert found.converged
    assert found.reason == "converged"
    assert found.steps > 3
    assert found.volume == pytest.approx(COPPER**3, rel=1e-3)
    assert found.volume == pytest.approx(found.atoms.get_volume())
    assert abs(found.pressure) < 1e-3 * 4 / found.volume
    assert found.seconds > 0
    assert found.atoms.calc is None
    again = found.atoms.copy()
    again.calc = EMT()
    assert found.energy == pytest.approx(again.get_potential_energy(), abs=1e-10)
    assert np.linalg.norm(again.get_forces(), axis=1).max() < 1e-3
    assert start == before
    assert start.calc is None
    assert capsys.readouterr() == ("", "")


def test_a_relaxed_crystal_does_not_move(capsys: pytest.CaptureFixture[str]) -> None:
    first = relax(disturbed(), EMT(), force_tolerance=1e-3)
    second = relax(first.atoms, EMT(), force_tolerance=1e-3)
    assert (second.converged, second.steps, second.volume) == (True, 0, first.volume)


def test_fixed_cell_and_fixed_atoms_do_not_move() -> None:
    start = disturbed()
    start.set_constraint(FixAtoms([0]))
    found = relax(start, EMT(), force_tolerance=0.01, cell=False)
    assert found.converged
    assert np.array_equal(found.atoms.cell.array, start.cell.array)
    assert np.array_equal(found.atoms.positions[0], start.positions[0])
    assert not np.allclose(found.atoms.positions[1:], start.positions[1:])
    assert np.isnan(found.pressure)
    assert found.volume == pytest.approx(start.get_volume())


def test_a_molecule_relaxes_without_a_cell() -> None:
    found = relax(Atoms("N2", [[0, 0, 0], [0, 0, 1.2]]), EMT(), 0.01, cell=False)
    assert found.converged
    assert found.volume == 0.0


@pytest.mark.parametrize(
    ("scale", "power", "low", "high"), [(200.0, -1, 2.0, 3.0), (0.05, 1, 0.1, 0.5)]
)
def test_an_exploding_or_collapsing_crystal_is_stopped(
    scale: float, power: int, low: float, high: float
) -> None:
    start = bulk("Cu", cubic=True)
    found = relax(start, Pressed(scale, power))
    assert not found.converged
    assert "the volume went to" in found.reason
    assert low < found.volume / start.get_volume() < high
    assert found.pressure == pytest.approx(-scale * power * found.volume ** (power - 1))


def test_too_few_steps_are_a_reason() -> None:
    found = relax(disturbed(), EMT(), force_tolerance=1e-6, max_steps=2)
    assert (found.converged, found.steps) == (False, 2)
    assert found.reason == "not converged in 2 steps"


@pytest.mark.parametrize(
    ("calculator", "message"),
    [
        (Failing(3), "RuntimeError: out of memory"),
        (Failing(3, float("nan")), "not finite (energy nan eV)"),
    ],
    ids=["error", "NaN"],
)
def test_a_failure_returns_the_last_structure_that_was_computed(
    calculator: Failing, message: str
) -> None:
    start = bulk("Cu", cubic=True)
    found = relax(start, calculator)
    assert not found.converged
    assert message in found.reason
    assert found.energy == pytest.approx(200.0 / found.volume)
    assert found.volume > start.get_volume()
    assert found.atoms.get_volume() == pytest.approx(found.volume)


@pytest.mark.parametrize("value", [None, float("nan")], ids=["error", "NaN"])
def test_a_failure_at_the_first_step_has_no_volume(value: float | None) -> None:
    start = bulk("Cu", cubic=True)
    found = relax(start, Failing(0, value))
    assert (found.converged, found.steps) == (False, 0)
    assert np.isnan([found.volume, found.energy, found.pressure]).all()
    assert found.atoms == start


@pytest.mark.parametrize(
    ("atoms", "arguments", "message"),
    [
        (bulk("Cu"), {"force_tolerance": 0.0}, "force_tolerance: expected a number above 0"),
        (bulk("Cu"), {"force_tolerance": float("nan")}, "above 0 eV/Å, got nan"),
        (bulk("Cu"), {"max_steps": 0}, "max_steps: expected a whole number of 1 or more, got 0"),
        (Atoms("Cu"), {}, "expected three periodic lattice vectors, .* say cell=False"),
    ],
)
def test_wrong_input_of_relax_is_refused(
    atoms: Atoms, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        relax(atoms, EMT(), **arguments)
