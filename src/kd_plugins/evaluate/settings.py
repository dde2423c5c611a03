"""What is to be measured of a potential."""

from __future__ import annotations

from dataclasses import dataclass


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

    >>> DynamicsSettings("cell.xyz", temperature=300, steps=7)
    Traceback (most recent call last):
    ValueError: dynamics: expected 0 steps, or 40 or more, got 7
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
        if self.steps and self.steps < 40:
            raise ValueError(f"dynamics: expected 0 steps, or 40 or more, got {self.steps}")
        if not self.repeats or min(self.repeats) < 1:
            raise ValueError(f"dynamics: expected repeats of 1 or more, got {list(self.repeats)}")
        if self.equilibration < 0:
            raise ValueError(
                f"dynamics: expected equilibration of 0 steps or more, got {self.equilibration}"
            )
        if not self.seeds:
            raise ValueError("dynamics: expected one seed or more, got none")


@dataclass(frozen=True)
class CrystalSettings:
    """Relaxed crystals.

    Args:
        structures: files of crystals; their own volumes are the reference.
        elasticity: measure each crystal's stiffness, too, which takes some 30 relaxations.
        force_tolerance: of the relaxation in eV/Å (paper 004: 0.03).
        max_steps: of the same.
    """

    structures: tuple[str, ...]
    elasticity: bool = False
    force_tolerance: float = 0.03
    max_steps: int = 2000


@dataclass(frozen=True)
class Measure:
    """What to measure; what is left out is not measured.

    Args:
        structures: files of structures whose energies, forces and stresses are compared, with the
            labels that they hold and with a teacher.
        ids: how these are named, see `kd_plugins.teachers.read_structures`.
        dynamics: speed, memory, drift and radial distribution function.
        crystals: volumes and stiffness.
    """

    structures: tuple[str, ...] = ()
    ids: str = "auto"
    dynamics: DynamicsSettings | None = None
    crystals: CrystalSettings | None = None

    def __post_init__(self) -> None:
        if not (self.structures or self.dynamics or self.crystals):
            raise ValueError(
                "nothing to measure: expected structures, dynamics or crystals, got none of them"
            )

    @property
    def files(self) -> list[str]:
        """All files that hold structures."""
        moved = [self.dynamics.structure] if self.dynamics else []
        return [*self.structures, *moved, *(self.crystals.structures if self.crystals else ())]
