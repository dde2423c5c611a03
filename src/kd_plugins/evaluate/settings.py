"""Settings of an evaluation: structures, dynamics, crystals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_plugins.numbers import LARGEST_SEED, check_number, check_whole

MOST_BINS = 100_000
FEWEST_STEPS = 40
"""Four records, one every 10 steps. Fewer give no useful drift of the energy."""
HOTTEST = 1_000_000
"""K."""
LONGEST_STEP = 100
"""fs. A bond with hydrogen vibrates in 10 fs."""


@dataclass(frozen=True)
class DynamicsSettings:
    """Molecular dynamics at constant energy, after ``equilibration`` at constant temperature.

    Args:
        structure: file with one periodic structure, the start of every run; for the radial
            distribution function its cell must hold a sphere of ``cutoff``.
        temperature: in K, of the initial velocities; without equilibration a crystal keeps about
            half of it.
        steps: of each run for drift and radial distribution function; 0 measures speed alone.
        repeats: of the structure along its first lattice vector, one for each cell in which speed
            and memory are measured.
        timestep: fs.
        cutoff: of the radial distribution function in Å.
        bins: of the same.
        equilibration: steps of Langevin dynamics at ``temperature`` before each of these runs, so
            that teacher and student are compared at one temperature.
        seeds: of the velocities, a run each. The distance of radial distribution functions between
            two runs of the teacher is the noise floor of that measurement.

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
        _set(self, "structure", _expand_home("dynamics.structure", self.structure))
        check_whole("dynamics.steps", self.steps, least=0)
        if 0 < self.steps < FEWEST_STEPS:
            raise ValueError(
                f"dynamics.steps: expected 0, or {FEWEST_STEPS} or more, got {self.steps}"
            )
        check_whole("dynamics.equilibration", self.equilibration, least=0)
        check_number("dynamics.temperature", self.temperature, above=0, most=HOTTEST, unit="K")
        check_number("dynamics.timestep", self.timestep, above=0, most=LONGEST_STEP, unit="fs")
        check_number("dynamics.cutoff", self.cutoff, above=0, unit="Å")
        check_whole("dynamics.bins", self.bins, least=2, most=MOST_BINS)

        for repeat in self.repeats:
            check_whole("dynamics.repeats", repeat, least=1)
        if not self.repeats or _has_repeats(self.repeats):
            raise ValueError(
                "dynamics.repeats: expected one or more different numbers, got "
                f"{list(self.repeats)}"
            )

        check_seeds("dynamics.seeds", self.seeds)


def listed_files(ids: str, folder: str) -> list[str]:
    """Return the files of a folder that a list of ids names, such as those of COD.

    Args:
        ids: file with an id a line; empty lines and ``#`` to the end of a line do not count.
        folder: with ``<id>.cif`` for each of them.

    Raises:
        FileNotFoundError: without the list, or naming the first file that is missing.
        ValueError: for a list without ids, or an id that is no name of a file.
    """
    path, parent = Path(ids).expanduser(), Path(folder).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a list of ids, one a line")

    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    names = [line.removesuffix(".cif") for line in lines if line]
    if not names:
        raise ValueError(f"{path}: holds no id; expected one a line")
    for name in names:
        if "/" in name or "\0" in name or name in (".", ".."):
            raise ValueError(f"{path}: expected ids of files in {parent}, got {name!r}")

    files = [parent / f"{name}.cif" for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such file; {len(missing)} of the {len(files)} ids of {path} have "
            f"none in {parent}"
        )
    return [str(file) for file in files]


@dataclass(frozen=True)
class CrystalSettings:
    """Relaxations of crystals.

    Args:
        structures: files of crystals; the volumes there are the reference.
        elasticity: measure each crystal's stiffness, too, which takes 24 relaxations.
        force_tolerance: of the relaxation in eV/Å (Taniguchi 2024: 0.03).
        max_steps: of the same.
        rigid: instead of relaxing, scan the volume with rigid molecules, which takes fourteen
            energies, see `kd_plugins.evaluate.scanned_volume`.
        bad: ``refuse`` a crystal that cannot be measured, such as a disordered one, or
            ``leave_out`` and list it.
        stiffness: CSV of measured stiffness tensors, see `kd_plugins.evaluate.read_stiffness`.
        ids: file with a list of further crystals, see `listed_files`.
        folder: with the files of ``ids``.

    Raises:
        ValueError: for no file or one twice, a number that is not above 0, or what excludes each
            other.
    """

    structures: tuple[str, ...] = ()
    elasticity: bool = False
    force_tolerance: float = 0.03
    max_steps: int = 2000
    rigid: bool = False
    bad: Literal["refuse", "leave_out"] = "refuse"
    stiffness: str | None = None
    ids: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        _set(self, "structures", _expand_all("crystals.structures", self.structures))
        if (self.ids is None) != (self.folder is None):
            raise ValueError(
                "crystals: a list of ids needs the folder of their files, and a folder needs ids; "
                f"got ids {self.ids!r} and folder {self.folder!r}"
            )
        if not self.structures and self.ids is None:
            raise ValueError("crystals.structures: expected one file or more, got none")
        for name in ("ids", "folder"):
            if getattr(self, name) is not None:
                _set(self, name, _expand_home(f"crystals.{name}", getattr(self, name)))

        check_number("crystals.force_tolerance", self.force_tolerance, above=0, unit="eV/Å")
        check_whole("crystals.max_steps", self.max_steps, least=1)

        if self.rigid and self.elasticity:
            raise ValueError(
                "crystals.rigid: a stiffness is that of a relaxed crystal; take elasticity or rigid"
            )
        if self.stiffness is not None:
            _set(self, "stiffness", _expand_home("crystals.stiffness", self.stiffness))
            if not self.elasticity:
                raise ValueError(
                    "crystals.stiffness: measured tensors are compared with computed ones; set "
                    "elasticity, too"
                )

    @property
    def listed(self) -> list[str]:
        """The files that ``ids`` lists.

        Raises:
            FileNotFoundError, ValueError: see `listed_files`.
        """
        if self.ids is None or self.folder is None:
            return []
        return listed_files(self.ids, self.folder)

    @property
    def files(self) -> list[str]:
        """All files of crystals; raises what `listed` does."""
        return [*self.structures, *self.listed]


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure; what is left out is not measured.

    Args:
        structures: files of structures whose energies, forces and stresses are compared with the
            labels there and with a teacher.
        ids: how structures get their ids, see `kd_plugins.structures.read_structures`.
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
        _set(self, "structures", _expand_all("structures", self.structures))
        if not (self.structures or self.dynamics or self.crystals):
            raise ValueError(
                "nothing to measure: expected structures, dynamics or crystals, got none of them"
            )

    @property
    def files(self) -> list[str]:
        """All files that hold structures, and those that list crystals."""
        listed = self.crystals.listed if self.crystals else []
        return [*self.named_files, *listed]

    @property
    def named_files(self) -> list[str]:
        """All files that stand in the settings, without what a list names."""
        dynamics = [self.dynamics.structure] if self.dynamics else []
        crystals = list(self.crystals.structures) if self.crystals else []
        ids = [self.crystals.ids] if self.crystals and self.crystals.ids else []
        return [*self.structures, *dynamics, *crystals, *ids]


def check_seeds(where: str, seeds: Sequence[int]) -> None:
    """Refuse no seed, one twice, or one out of the range of random generators.

    Raises:
        ValueError: naming the key.

    >>> check_seeds("seeds", [0, -1])
    Traceback (most recent call last):
    ValueError: seeds: expected one or more different ones from 0 to 4294967295, got [0, -1]
    """
    # `type`, since True is an int, too.
    are_valid = all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds)
    if not seeds or not are_valid or _has_repeats(seeds):
        raise ValueError(
            f"{where}: expected one or more different ones from 0 to {LARGEST_SEED}, got "
            f"{list(seeds)}"
        )


def _has_repeats(values: Sequence[object]) -> bool:
    return len(set(values)) < len(values)


def _expand_all(where: str, names: Sequence[str]) -> tuple[str, ...]:
    # A string is a sequence of strings, too.
    if isinstance(names, str):
        raise ValueError(f"{where}: expected several files, such as [{names!r}], got {names!r}")

    files = tuple(_expand_home(where, name) for name in names)
    if _has_repeats(files):
        raise ValueError(f"{where}: expected each file once, got {list(files)}")
    return files


def _expand_home(where: str, name: str) -> str:
    if not name.strip():
        raise ValueError(f"{where}: expected a file, got {name!r}")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _set(settings: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass, for use in its ``__post_init__`` only."""
    object.__setattr__(settings, name, value)
