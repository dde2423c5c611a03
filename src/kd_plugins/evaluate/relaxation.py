"""Relax a structure and its cell; every failure is a result with its reason."""

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

LARGEST_GROWTH, LARGEST_SHRINKAGE = 2.0, 0.5
"""Volumes relative to the start beyond which a crystal has exploded or collapsed."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A relaxed structure, or the last one before a failure.

    Args:
        atoms: the last structure that could be computed, without calculator. Its atoms have the
            order of the start, and none is wrapped into the cell.
        converged: whether all forces fell below the tolerance.
        steps: steps taken.
        reason: ``converged``, or why it stopped.
        volume: of ``atoms`` in Å³; NaN if not even the start could be computed.
        energy: of ``atoms`` in eV; NaN likewise.
        pressure: of ``atoms`` in eV/Å³, what is left of it after the relaxation, positive under
            compression; NaN likewise, and where the cell was fixed.
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
    """Relax atoms and cell by L-BFGS, and always return a result.

    Taniguchi 2024 (Experimental) relaxes with this tolerance and number of steps. ASE's
    ``FrechetCellFilter`` puts the cell's gradient beside the forces as three more rows, -V stress
    / N for N atoms, so that the stress may be as large as ``force_tolerance`` N / V: some 0.5 GPa
    for an organic crystal, which is so soft that its volume is then open to a few percent. See
    the result's ``pressure``, and lower the tolerance where that matters.

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

    path = _Path(atoms, calculator, cell)
    start = time.perf_counter()
    try:
        reason = path.follow(force_tolerance, max_steps)
    except (
        Exception
    ) as error:  # calculators raise what they like, and so does linear algebra of NaN
        reason = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start

    return Relaxation(
        atoms=path.last,
        converged=reason == "converged",
        steps=path.steps,
        reason=reason,
        volume=path.volume,
        energy=path.energy,
        pressure=path.pressure,
        seconds=seconds,
    )


class _Path:
    """The steps of a relaxation, and the last structure that could be computed."""

    def __init__(self, atoms: Atoms, calculator: GetPropertiesMixin, cell: bool) -> None:
        self.last, self.steps = _bare(atoms), 0
        self.volume = self.energy = self.pressure = float("nan")
        self._atoms = atoms.copy()
        self._atoms.calc = calculator
        self._cell = cell
        self._start = abs(float(np.linalg.det(atoms.cell.array)))

    def follow(self, force_tolerance: float, max_steps: int) -> str:
        """Relax, and return why it stopped."""
        for converged in self._steps(force_tolerance, max_steps):
            energy = float(self._atoms.get_potential_energy())
            forces = self._atoms.get_forces()
            if not (np.isfinite(energy) and np.isfinite(forces).all()):
                return f"the calculator gave a number that is not finite (energy {energy} eV)"

            self._keep(energy)
            growth = self.volume / self._start if self._cell else 1.0
            if not LARGEST_SHRINKAGE <= growth <= LARGEST_GROWTH:
                return f"the volume went to {growth:.2f} times that of the start"
            if converged:
                return "converged"
        return f"not converged in {max_steps} steps"

    def _steps(self, force_tolerance: float, max_steps: int) -> Iterator[bool]:
        moved = FrechetCellFilter(self._atoms) if self._cell else self._atoms
        optimizer = LBFGS(moved, logfile=None)
        for converged in optimizer.irun(fmax=force_tolerance, steps=max_steps):
            self.steps = optimizer.nsteps
            yield bool(converged)

    def _keep(self, energy: float) -> None:
        self.last, self.energy = _bare(self._atoms), energy
        self.volume = abs(float(np.linalg.det(self._atoms.cell.array)))
        if self._cell:
            self.pressure = -float(np.mean(self._atoms.get_stress()[:3]))


def _bare(atoms: Atoms) -> Atoms:
    bare = atoms.copy()
    bare.calc = None
    return bare


def _check(atoms: Atoms, force_tolerance: float, max_steps: int, cell: bool) -> None:
    check_number("relax: force_tolerance", force_tolerance, above=0, unit="eV/Å")
    check_whole("relax: max_steps", max_steps, least=1)
    if cell and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ValueError(
            f"relax: expected three periodic lattice vectors, got pbc {atoms.pbc.tolist()} and "
            f"{atoms.cell.rank} vectors; say cell=False for a molecule or a slab"
        )
