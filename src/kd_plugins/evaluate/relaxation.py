"""Relax a structure and its cell; a failure is a result with its reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.abc import GetPropertiesMixin
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from kd_plugins.evaluate.dynamics import check_dynamics
from kd_plugins.numbers import check_number, check_whole

LARGEST_GROWTH, SMALLEST_GROWTH = 2.0, 0.5
"""Volumes over that of the start beyond which a crystal has exploded or collapsed."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A relaxed structure, or the last one before a failure.

    Args:
        atoms: the last structure that could be computed, without calculator. Atoms have the order
            of the start and are not wrapped into the cell.
        converged: whether all forces fell below the tolerance.
        steps: steps taken.
        reason: ``converged``, or why it stopped.
        volume: of ``atoms`` in Å³; NaN if not even the start could be computed.
        energy: of ``atoms`` in eV; NaN likewise.
        pressure: of ``atoms`` in eV/Å³, positive under compression; NaN likewise, and where the
            cell was fixed.
        seconds: wall-clock time.
    """

    atoms: Atoms
    converged: bool
    steps: int
    reason: str
    volume: float
    energy: float
    pressure: float
    seconds: float


def relax(
    atoms: Atoms,
    calculator: GetPropertiesMixin,
    force_tolerance: float = 0.03,
    max_steps: int = 2000,
    cell: bool = True,
) -> Relaxation:
    """Relax atoms and cell by L-BFGS.

    Tolerance and number of steps are those of Taniguchi 2024 (Experimental). ASE's
    ``FrechetCellFilter`` puts the cell's gradient beside the forces as three more rows, -V stress
    / N for N atoms. So the stress may stay as large as ``force_tolerance`` N / V. That is some
    0.5 GPa for an organic crystal, which is so soft that its volume is then uncertain by a few
    percent. See the result's ``pressure``, and lower the tolerance where that matters.

    An exploded or collapsed crystal, a calculator's error, a number that is not finite and too many
    steps are reasons in the result, not exceptions.

    Args:
        atoms: where to start; not changed. Constraints hold.
        calculator: any of ASE's, with stress if the cell is relaxed.
        force_tolerance: largest norm of a row, in eV/Å.
        max_steps: steps at most.
        cell: relax the cell too.

    Raises:
        ValueError: for a tolerance or number of steps that is not positive, or a cell to relax
            in a structure that is not periodic in three directions.
    """
    check_dynamics("relax", atoms, calculator, timestep=1.0)
    _check(atoms, force_tolerance, max_steps, cell)

    trajectory = _Trajectory(atoms, calculator, cell)
    start = time.perf_counter()
    # Calculators raise exceptions of any kind, and so does the linear algebra of NaN.
    try:
        reason = trajectory.relax(force_tolerance, max_steps)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start

    return Relaxation(
        atoms=trajectory.last,
        converged=reason == "converged",
        steps=trajectory.steps,
        reason=reason,
        volume=trajectory.volume,
        energy=trajectory.energy,
        pressure=trajectory.pressure,
        seconds=seconds,
    )


class _Trajectory:
    """A relaxation step by step, and the last structure that could be computed."""

    def __init__(self, atoms: Atoms, calculator: GetPropertiesMixin, cell: bool) -> None:
        self.last, self.steps = _without_calculator(atoms), 0
        self.volume = self.energy = self.pressure = float("nan")

        self._atoms = atoms.copy()
        self._atoms.calc = calculator
        self._relaxes_cell = cell
        self._start_volume = _volume(atoms)

    def relax(self, force_tolerance: float, max_steps: int) -> str:
        """Relax, and return why it stopped."""
        for converged in self._steps(force_tolerance, max_steps):
            energy = float(self._atoms.get_potential_energy())
            forces = self._atoms.get_forces()
            if not (np.isfinite(energy) and np.isfinite(forces).all()):
                return f"the calculator gave a number that is not finite (energy {energy} eV)"

            self._keep(energy)
            growth = self.volume / self._start_volume if self._relaxes_cell else 1.0
            if not SMALLEST_GROWTH <= growth <= LARGEST_GROWTH:
                return f"the volume went to {growth:.2f} times that of the start"
            if converged:
                return "converged"
        return f"not converged in {max_steps} steps"

    def _steps(self, force_tolerance: float, max_steps: int) -> Iterator[bool]:
        """Yield after each step, and before the first one, whether it has converged."""
        moved = FrechetCellFilter(self._atoms) if self._relaxes_cell else self._atoms
        optimizer = LBFGS(moved, logfile=None)
        for converged in optimizer.irun(fmax=force_tolerance, steps=max_steps):
            self.steps = optimizer.nsteps
            yield bool(converged)

    def _keep(self, energy: float) -> None:
        """Keep the current structure, which could be computed, and its numbers."""
        self.last, self.energy = _without_calculator(self._atoms), energy
        self.volume = _volume(self._atoms)
        if self._relaxes_cell:
            self.pressure = -float(np.mean(self._atoms.get_stress()[:3]))


def _volume(atoms: Atoms) -> float:
    """Return the volume in Å³, 0 for a molecule without a cell, for which ASE raises."""
    return abs(float(np.linalg.det(atoms.cell.array)))


def _without_calculator(atoms: Atoms) -> Atoms:
    copied = atoms.copy()
    copied.calc = None
    return copied


def _check(atoms: Atoms, force_tolerance: float, max_steps: int, cell: bool) -> None:
    check_number("relax: force_tolerance", force_tolerance, above=0, unit="eV/Å")
    check_whole("relax: max_steps", max_steps, least=1)

    if cell and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ValueError(
            f"relax: expected three periodic lattice vectors, got pbc {atoms.pbc.tolist()} and "
            f"{atoms.cell.rank} vectors; say cell=False for a molecule or a slab"
        )
