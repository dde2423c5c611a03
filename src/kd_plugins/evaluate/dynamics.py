"""Molecular dynamics with a calculator: speed, energy drift, and equilibration before a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from jaxtyping import Float
from tqdm import tqdm

from kd_plugins.numbers import check_number, check_seed, check_whole, shown
from kd_plugins.store.structure import Array

WARM_UP_STEPS = 3
"""Steps before the timing: kernels are compiled and neighbour lists are built in the first."""
FURTHEST = 5.0
"""Å that an atom may move in a step. A fast one moves 0.1 Å, so this is a broken structure."""


@dataclass(frozen=True, eq=False)
class NveRun:
    """A run at constant energy.

    Args:
        n_atoms: of the structure.
        timestep: fs.
        times: (K,) ps at which the rest was recorded.
        energies: (K,) total energy, potential and kinetic, eV/atom.
        temperatures: (K,) K.
        seconds_per_step: by the clock, the median over steps.
        frames: the K structures.
    """

    n_atoms: int
    timestep: float
    times: Float[Array, " K"]
    energies: Float[Array, " K"]
    temperatures: Float[Array, " K"]
    seconds_per_step: float
    frames: tuple[Atoms, ...]

    @property
    def microseconds_per_atom(self) -> float:
        """Time per step per atom in µs (Matin et al. 2025, Figure 2 A)."""
        return 1e6 * self.seconds_per_step / self.n_atoms

    @property
    def nanoseconds_per_day(self) -> float:
        """Simulated time in a day of computing."""
        return 86400 / self.seconds_per_step * self.timestep * 1e-6

    @property
    def drift(self) -> float:
        """Slope of the total energy, meV/atom/ps."""
        return 1e3 * float(np.polyfit(self.times, self.energies, 1)[0])


def nve(
    atoms: Atoms,
    calculator: Any,
    steps: int,
    *,
    temperature: float | None,
    seed: int,
    timestep: float = 1.0,
    every: int = 10,
    progress: bool = True,
) -> NveRun:
    """Run molecular dynamics at constant energy and volume, by ASE's velocity Verlet.

    Args:
        atoms: a structure, which is not changed.
        calculator: an ASE calculator.
        steps: to run, and to time after a few.
        temperature: of the initial velocities in K, of which about half is left in a crystal; None
            for the velocities that the structure has.
        seed: of these velocities.
        timestep: fs.
        every: steps between two records.
        progress: show a bar.

    Raises:
        ValueError: for fewer steps than two records need, a calculator that fails on the structure,
            forces that are not finite, or atoms that fly apart.
    """
    check_whole("nve: every", every, least=1)
    check_whole("nve: steps", steps)
    if steps < 2 * every:
        raise ValueError(f"nve: expected {2 * every} steps or more (two notes), got {steps}")
    check_dynamics("nve", atoms, calculator, timestep)

    atoms = atoms.copy()
    atoms.calc = calculator
    if temperature is not None:
        atoms.set_velocities(thermal_velocities(atoms, temperature, seed))
    run = VelocityVerlet(atoms, timestep * units.fs)

    try:
        atoms.get_forces()
    except Exception as error:  # calculators raise what they like, such as for an unknown element
        reason = f"{type(error).__name__}: {error}"
        formula = atoms.get_chemical_formula()
        raise ValueError(f"nve: the calculator fails on {formula}: {reason}") from error

    for _ in range(WARM_UP_STEPS):
        run.run(1)
        check_speeds(atoms, timestep)

    records, seconds = [], []
    for step in tqdm(range(steps), "molecular dynamics", disable=not progress, unit=" steps"):
        if step % every == 0:
            records.append(_record(atoms, step * timestep * 1e-3))
        start = time.perf_counter()
        run.run(1)
        seconds.append(time.perf_counter() - start)
        check_speeds(atoms, timestep)

    times, energies, temperatures, frames = zip(*records, strict=True)
    return NveRun(
        len(atoms),
        timestep,
        np.array(times),
        np.array(energies),
        np.array(temperatures),
        # The median, since other processes disturb single steps.
        float(np.median(seconds)),
        frames,
    )


def thermal_velocities(atoms: Atoms, temperature: float, seed: int) -> Float[Array, "N 3"]:
    """Draw Maxwell-Boltzmann velocities with zero total momentum, in ASE's unit.

    Raises:
        ValueError: for a temperature below 0 K, or an invalid seed.
    """
    check_number("temperature", temperature, least=0, unit="K")
    check_seed("seed", seed)

    masses = atoms.get_masses()[:, None]
    widths = np.sqrt(units.kB * temperature / masses)
    velocities = np.random.default_rng(seed).normal(size=(len(atoms), 3)) * widths

    centre_of_mass_velocity = (masses * velocities).sum(axis=0) / masses.sum()
    return velocities - centre_of_mass_velocity


def check_dynamics(what: str, atoms: Atoms, calculator: Any, timestep: float) -> None:
    """Refuse dynamics without atoms, without a calculator, or with an invalid time step.

    Raises:
        ValueError: for the first of these.
    """
    if not len(atoms):
        raise ValueError(f"{what}: expected a structure with atoms, got one without")
    check_calculator(what, calculator)
    check_number(f"{what}: timestep", timestep, above=0, unit="fs")


def check_calculator(what: str, calculator: Any) -> None:
    """Refuse anything but an ASE calculator.

    Raises:
        ValueError: with what was passed.
    """
    if not hasattr(calculator, "get_potential_energy"):
        raise ValueError(f"{what}: expected an ASE calculator, got {shown(calculator)}")


def check_speeds(atoms: Atoms, timestep: float) -> None:
    """Stop when a structure comes apart: neighbour lists of scattered atoms take all the memory.

    Raises:
        ValueError: if an atom is so fast that it will move further than `FURTHEST` in a step.
    """
    move = float(np.abs(atoms.get_velocities()).max()) * timestep * units.fs
    if move > FURTHEST:  # False for NaN, which the next record refuses
        raise ValueError(
            f"the structure has come apart: an atom moves {move:.3g} Å in a step of {timestep} fs; "
            "take a shorter timestep, a lower temperature or a better potential"
        )


def _record(atoms: Atoms, picoseconds: float) -> tuple[float, float, float, Atoms]:
    energy = float(atoms.get_total_energy()) / len(atoms)
    if not (np.isfinite(energy) and np.isfinite(atoms.get_forces()).all()):
        raise ValueError(f"nve: energy or forces are not finite after {picoseconds:.3f} ps")

    frame = atoms.copy()
    frame.calc = None
    return picoseconds, energy, float(atoms.get_temperature()), frame


def equilibrated(
    atoms: Atoms,
    calculator: Any,
    steps: int,
    *,
    temperature: float,
    seed: int,
    timestep: float = 1.0,
    friction: float = 0.01,
    progress: bool = True,
) -> Atoms:
    """Return a structure after ASE's Langevin dynamics at constant volume, without total momentum.

    Without equilibration, potentials reach different temperatures from the same velocities, and
    their radial distribution functions cannot be compared.

    Args:
        atoms: a structure, which is not changed.
        calculator: an ASE calculator; the returned structure has none.
        steps: to run.
        temperature: K.
        seed: of the first velocities, drawn at ``temperature``, and of the random forces.
        timestep: fs.
        friction: 1/fs.
        progress: show a bar.

    Raises:
        ValueError: for an invalid number, or positions that are not finite after the run.
    """
    check_dynamics("equilibrated", atoms, calculator, timestep)
    check_whole("equilibrated: steps", steps, least=0)
    check_number("equilibrated: temperature", temperature, above=0, unit="K")
    check_number("equilibrated: friction", friction, above=0, unit="1/fs")

    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.set_velocities(thermal_velocities(atoms, temperature, seed))
    run = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        # ASE's way to fix the centre of mass biases the temperature of small cells.
        fixcm=False,
        # Other random numbers than those of the velocities, from the same seed.
        rng=np.random.default_rng((seed, 1)),
    )

    for _ in tqdm(range(steps), "equilibration", disable=not progress, unit=" steps"):
        run.run(1)
        check_speeds(atoms, timestep)

    if not np.isfinite(atoms.positions).all():
        raise ValueError(f"equilibrated: positions are not finite after {steps} steps")

    Stationary(atoms, preserve_temperature=False)
    atoms.calc = None
    return atoms
