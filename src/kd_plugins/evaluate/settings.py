"""What is to be measured of a potential."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LARGEST_SEED = 2**32 - 1
"""What every host's random generator takes."""
MOST_BINS = 100_000
HOTTEST = 1e6
"""K."""


@dataclass(frozen=True)
class DynamicsSettings:
    """Molecular dynamics at constant energy, if wanted after some at constant temperature.

    Args:
        structure: file with one periodic structure, from which every run starts; for the radial
            distribution function its cell must hold a sphere of ``cutoff``.
        temperature: in K, of the initial velocities; without equilibration a crystal keeps about
            half of it.
        steps: of each run for drift and radial distribution function; 0 measures speed alone.
        repeats: how often the structure is repeated along its first lattice vector, cell by cell,
            for speed and memory.
        timestep: fs.
        cutoff: of the radial distribution function in Å.
        bins: of the same.
        equilibration: steps of Langevin dynamics at ``temperature`` before each of these runs, so
            that teacher and student are compared at one temperature.
        seeds: of the velocities, a run each. Two or more of a teacher's runs give the floor below
            which a distance of radial distribution functions says nothing.

    Raises:
        ValueError: for a number that makes no sense, an empty list, or a repeat or seed twice.

    >>> DynamicsSettings("cell.xyz", temperature=300, steps=7)
    Traceback (most recent call last):
    ValueError: dynamics.steps: expected 0, or 40 or more, got 7
    """

    structure: str
    temperature: float
    steps: int
    repeats: tuple[int, ...] = (1, 2, 4)
    timestep: float = 1.0
    cutoff: float = 6.0
    bins: int = 120
    seeds: tuple[int, ...] = (0, 1)
    equilibration: int = 0

    def __post_init__(self) -> None:
        _set(self, "structure", _at_home("dynamics.structure", self.structure))
        if self.steps < 0 or 0 < self.steps < 40:
            raise ValueError(f"dynamics.steps: expected 0, or 40 or more, got {self.steps}")
        if self.equilibration < 0:
            raise ValueError(
                f"dynamics.equilibration: expected 0 or more, got {self.equilibration}"
            )
        if not 0 < self.temperature <= HOTTEST:
            raise ValueError(
                f"dynamics.temperature: expected a number above 0 and up to {HOTTEST:g} K, got "
                f"{self.temperature}"
            )
        for name, unit in (("timestep", "fs"), ("cutoff", "Å")):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"dynamics.{name}: expected a number above 0 {unit}, got {value}")
        if not 2 <= self.bins <= MOST_BINS:
            raise ValueError(f"dynamics.bins: expected 2 to {MOST_BINS}, got {self.bins}")
        if not self.repeats or min(self.repeats) < 1 or _repeats(self.repeats):
            raise ValueError(
                "dynamics.repeats: expected one or more different numbers of 1 or more, got "
                f"{list(self.repeats)}"
            )
        check_seeds("dynamics.seeds", self.seeds)


@dataclass(frozen=True)
class CrystalSettings:
    """Relaxed crystals.

    Args:
        structures: files of crystals; their own volumes are the reference.
        elasticity: measure each crystal's stiffness, too, which takes some 30 relaxations.
        force_tolerance: of the relaxation in eV/Å (paper 004: 0.03).
        max_steps: of the same.

    Raises:
        ValueError: for no file or one twice, or a number that is not above 0.
    """

    structures: tuple[str, ...]
    elasticity: bool = False
    force_tolerance: float = 0.03
    max_steps: int = 2000

    def __post_init__(self) -> None:
        _set(self, "structures", _files("crystals.structures", self.structures))
        if not self.structures:
            raise ValueError("crystals.structures: expected one file or more, got none")
        if not 0 < self.force_tolerance < math.inf:
            raise ValueError(
                "crystals.force_tolerance: expected a number above 0 eV/Å, got "
                f"{self.force_tolerance}"
            )
        if self.max_steps < 1:
            raise ValueError(f"crystals.max_steps: expected 1 or more, got {self.max_steps}")


@dataclass(frozen=True)
class Measure:
    """What to measure; what is left out is not measured.

    Args:
        structures: files of structures whose energies, forces and stresses are compared, with the
            labels that they hold and with a teacher.
        ids: how these are named, see `kd_plugins.teachers.read_structures`.
        dynamics: speed, memory, drift and radial distribution function.
        crystals: volumes and stiffness.

    In all files ``~`` is the home folder.

    Raises:
        ValueError: for nothing to measure, or a file twice.
    """

    structures: tuple[str, ...] = ()
    ids: str = "auto"
    dynamics: DynamicsSettings | None = None
    crystals: CrystalSettings | None = None

    def __post_init__(self) -> None:
        _set(self, "structures", _files("structures", self.structures))
        if not (self.structures or self.dynamics or self.crystals):
            raise ValueError(
                "nothing to measure: expected structures, dynamics or crystals, got none of them"
            )

    @property
    def files(self) -> list[str]:
        """All files that hold structures."""
        moved = [self.dynamics.structure] if self.dynamics else []
        return [*self.structures, *moved, *(self.crystals.structures if self.crystals else ())]


def check_seeds(where: str, seeds: Sequence[int]) -> None:
    """Refuse no seed, one twice, or one that a random generator does not take.

    Raises:
        ValueError: naming the key.

    >>> check_seeds("seeds", [0, -1])
    Traceback (most recent call last):
    ValueError: seeds: expected one or more different ones from 0 to 4294967295, got [0, -1]
    """
    good = [type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds]
    if not seeds or not all(good) or _repeats(seeds):
        raise ValueError(
            f"{where}: expected one or more different ones from 0 to {LARGEST_SEED}, got "
            f"{list(seeds)}"
        )


def _repeats(values: Sequence[object]) -> bool:
    return len(set(values)) < len(values)


def _files(where: str, names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(_at_home(where, name) for name in names)
    if _repeats(found):
        raise ValueError(f"{where}: expected each file once, got {list(found)}")
    return found


def _at_home(where: str, name: str) -> str:
    if not name.strip():
        raise ValueError(f"{where}: expected a file, got {name!r}")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _set(settings: object, name: str, value: object) -> None:
    """Give a frozen dataclass a value that its own holder has worked out."""
    object.__setattr__(settings, name, value)
