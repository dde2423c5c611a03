"""Langevin dynamics over ladders of temperature and density, whose state can be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from numpy.typing import NDArray

from kd_plugins.sampling.guards import Guards, Rejection
from kd_plugins.sampling.settings import MolecularDynamics
from kd_plugins.teachers.calculator import CalculatorTeacher
from kd_plugins.teachers.teacher import TeacherError

TRIALS = 10
"""How often a trajectory begins anew before its seed structure is given up."""
FURTHEST = 1.0
"""Å that an atom may move in a step. A fast one moves 0.1 Å, so the structure comes apart."""
HYDROGEN_TIMESTEP, TIMESTEP = 1.0, 2.0
"""fs, where the settings have none: for structures with hydrogen, and for others."""


@dataclass(frozen=True)
class Snapshot:
    """A structure of a trajectory.

    Args:
        number: from 0 on.
        atoms: wrapped into its cell, without calculator.
        temperature: of the thermostat, K.
        length_scale: of the cell, relative to the seed.
        displacement: of the atoms from the seed structure, root mean square, Å; a crystal whose
            atoms have moved by more than a third of a bond has melted.
        state: from which the trajectory goes on, in JSON's types.
    """

    number: int
    atoms: Atoms
    temperature: float
    length_scale: float
    displacement: float
    state: Mapping[str, Any]


class SampledTrajectory:
    """One trajectory of one seed structure.

    Between two snapshots everything is computed from positions, momenta and the state of the random
    numbers alone, so that a trajectory that goes on from a kept state equals one that never
    stopped, bit for bit.

    Args:
        cell: the seed structure, repeated.
        settings: of the dynamics.
        mover: the potential, an ASE calculator as a teacher.
        guards: what every snapshot keeps.
        random_seed: of velocities and thermostat, as NumPy's generator takes it.
    """

    def __init__(
        self,
        cell: Atoms,
        settings: MolecularDynamics,
        mover: CalculatorTeacher,
        guards: Guards,
        random_seed: Sequence[int],
    ) -> None:
        self.cell = cell
        self.settings, self.mover, self.guards = settings, mover, guards
        has_hydrogen = bool((cell.numbers == 1).any())
        default = HYDROGEN_TIMESTEP if has_hydrogen else TIMESTEP
        self.timestep = settings.timestep or default
        self.generator = np.random.default_rng(random_seed)
        self.atoms: Atoms | None = None
        self.rejections: list[Rejection] = []

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a snapshot."""
        self.atoms = Atoms(
            self.cell.numbers,
            positions=state["positions"],
            cell=state["cell"],
            pbc=self.cell.pbc,
            momenta=state["momenta"],
        )
        numbers = {name: int(value, 16) for name, value in state["random"]["state"].items()}
        self.generator.bit_generator.state = {**state["random"], "state": numbers}

    def snapshots(self, first: int = 0) -> Iterator[Snapshot]:
        """Yield snapshots, from the given number on.

        A trajectory that comes apart, or whose snapshot a guard refuses, begins anew from the seed
        structure at the temperature that it had reached; `rejections` has the reasons.

        Raises:
            ValueError: if it does so too often.
        """
        temperatures = _ladder(self.settings.temperatures, self.settings.count)
        scales = _ladder(self.settings.length_scales, self.settings.count)

        for number in range(first, self.settings.count):
            temperature, scale = float(temperatures[number]), float(scales[number])
            self._advance(temperature, scale)
            atoms = self._required()

            wrapped = Atoms(
                atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
            )
            wrapped.wrap()
            moved = self._displacement(atoms)
            yield Snapshot(number, wrapped, temperature, scale, moved, self._state())

    def _advance(self, temperature: float, scale: float) -> None:
        """Run to the next snapshot that no guard refuses."""
        rejection = None
        for _ in range(TRIALS):
            steps = self.settings.interval
            if self.atoms is None:
                self._begin(temperature, scale)
                steps += self.settings.equilibration

            rejection = self._run(steps, temperature, scale)
            if rejection is None:
                return
            self.rejections.append(rejection)
            self.atoms = None

        raise ValueError(
            f"molecular dynamics of {self.cell.get_chemical_formula()} at {temperature:g} K began "
            f"anew {TRIALS} times without a snapshot that the guards let pass; in the last, "
            f"{rejection.reason if rejection else ''}; take a shorter timestep, a lower "
            "temperature, a better potential, or other guards (min_distance, max_force)"
        )

    def _begin(self, temperature: float, scale: float) -> None:
        """Start from the seed structure with velocities of a temperature."""
        atoms = Atoms(
            self.cell.numbers,
            positions=self.cell.positions,
            cell=self.cell.cell,
            pbc=self.cell.pbc,
        )
        if atoms.pbc.any():
            atoms.set_cell(self.cell.cell.array * scale, scale_atoms=True)
        # Maxwell and Boltzmann's distribution, without total momentum.
        masses = atoms.get_masses()[:, None]
        momenta = np.sqrt(masses * units.kB * temperature) * self.generator.normal(
            size=(len(atoms), 3)
        )
        atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())
        self.atoms = atoms

    def _run(self, steps: int, temperature: float, scale: float) -> Rejection | None:
        """Run some steps, and return why the structure is not taken, if it is not."""
        atoms = self._required()
        if atoms.pbc.any():
            atoms.set_cell(self.cell.cell.array * scale, scale_atoms=True)

        # A prediction clears what the calculator has kept, such as neighbour lists, in whose order
        # forces are summed. Its result is that of the first step, so nothing is computed twice.
        self.mover.predict([atoms], ["forces"])
        atoms.calc = self.mover.calculator

        # ASE's way to fix the centre of mass biases the temperature of small cells.
        run = Langevin(
            atoms,
            self.timestep * units.fs,
            temperature_K=temperature,
            friction=self.settings.friction / units.fs,
            fixcm=False,
            rng=self.generator,
        )
        try:
            for _ in range(steps):
                run.run(1)
                move = float(np.abs(atoms.get_velocities()).max()) * self.timestep * units.fs
                if not move <= FURTHEST:  # NaN, too
                    return Rejection("md", f"an atom moves {move:.3g} Å in a step")
            return self.guards.reject(atoms, atoms.get_forces())
        except TeacherError:
            raise
        except Exception as error:  # calculators raise what they like on a broken structure
            return Rejection("md", f"the potential fails: {type(error).__name__}: {error}")
        finally:
            atoms.calc = None

    def _displacement(self, atoms: Atoms) -> float:
        """Return how far the atoms are from the seed structure, without drift, Å."""
        # Positions are not wrapped, so an atom that has left the cell is far away.
        start = self.cell.positions
        if atoms.cell.rank == 3:
            start = self.cell.get_scaled_positions(wrap=False) @ atoms.cell.array
        moves = atoms.positions - start
        moves -= moves.mean(axis=0)
        return float(np.sqrt((moves**2).sum(axis=1).mean()))

    def _state(self) -> dict[str, Any]:
        atoms = self._required()
        random = dict(self.generator.bit_generator.state)
        # JSON of ours has no integers beyond 64 bits.
        random["state"] = {name: hex(value) for name, value in random["state"].items()}
        return {
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "momenta": atoms.get_momenta().tolist(),
            "random": random,
        }

    def _required(self) -> Atoms:
        if self.atoms is None:
            raise RuntimeError("the trajectory has not begun")
        return self.atoms


def _ladder(values: Sequence[float], count: int) -> NDArray[np.float64]:
    """Return a value for each snapshot, linear between those of a ladder."""
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)
