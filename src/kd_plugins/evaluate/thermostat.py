"""Bring a structure to a temperature before anything is measured of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from tqdm import tqdm

from kd_plugins.evaluate.dynamics import check_moved, check_speeds, thermal_velocities
from kd_plugins.numbers import check_number, check_whole


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
    """Return a structure after ASE's Langevin dynamics at constant volume, at rest as a whole.

    Without it, potentials whose energies differ end at other temperatures from like velocities,
    and their radial distribution functions are not comparable.

    Args:
        atoms: a structure, which stays as it is.
        calculator: an ASE calculator; what is returned has none.
        steps: to run.
        temperature: K.
        seed: of the first velocities, drawn at ``temperature``, and of the random forces.
        timestep: fs.
        friction: 1/fs.
        progress: show a bar.

    Raises:
        ValueError: for a number that makes no sense, or positions that are no longer finite.
    """
    check_moved("equilibrated", atoms, calculator, timestep)
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
        fixcm=False,
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
