"""Make new structures from seed structures: `sample`, and the same with a state to go on from."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from kd_plugins.numbers import check_seed, shown
from kd_plugins.sampling.draws import DRAWS, Info, slab
from kd_plugins.sampling.guards import Forces, Guards
from kd_plugins.sampling.settings import METHODS, Sampling
from kd_plugins.sampling.supercells import supercell
from kd_plugins.sampling.trajectory import SampledTrajectory
from kd_plugins.structures.readers import LabelledStructure, check_structures
from kd_plugins.teachers.calculator import CalculatorTeacher, as_teacher
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher

TRIALS = 50
"""How often a structure is drawn before its seed structure is given up."""


@dataclass(frozen=True)
class Progress:
    """How far a sampling has come.

    Args:
        structures: made.
        rejected: guard to the number of draws that it has refused.
        trajectory: state of the molecular dynamics after the last structure, if it is one of it.
    """

    structures: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    trajectory: Mapping[str, Any] | None = None


def sample(
    structures: Iterable[LabelledStructure],
    settings: Sampling,
    seed: int,
    potential: Any = None,
    device: str = "auto",
) -> Iterator[LabelledStructure]:
    """Yield new structures, called ``<seed structure's id>/<method>-0000`` and so on.

    Each depends on the seed, its seed structure and its own number alone; snapshots of molecular
    dynamics on those before them. The ``info`` of its atoms tells where it comes from:
    ``method``, ``seed_structure``, ``random_seed``, and where they apply ``strain`` (xx, yy, zz,
    yz, xz, xy), ``rattle`` (Å), ``temperature`` (K), ``length_scale``, ``displacement``
    (from the seed, Å), ``contact``, ``miller``, ``potential`` and ``potential_fingerprint``.

    Args:
        structures: the seed structures; their labels and constraints are left out.
        settings: how many by which method, and the ranges.
        seed: of all random numbers, 0 or more.
        potential: of molecular dynamics and of the largest force: a teacher's name, a `Teacher` or
            an ASE calculator.
        device: as `load_teacher` takes it, for a name.

    Raises:
        ValueError: at once, for no structure, one id for two, nothing to make, or molecular
            dynamics without a potential that can move atoms; while iterating, if no draw keeps the
            guards.
        TeacherError: at once, if the potential cannot be made or fails on a seed structure.

    >>> from ase.build import bulk
    >>> from kd_plugins.sampling.settings import Strain
    >>> seeds = [LabelledStructure("cu", bulk("Cu", cubic=True))]
    >>> [one.structure_id for one in sample(seeds, Sampling(strain=Strain(2)), seed=0)]
    ['cu/strain-0000', 'cu/strain-0001']
    """
    sampler = Sampler(structures, settings, seed, potential, device)
    return (structure for structure, _ in sampler.draws())


class Sampler:
    """A sampling that can go on from where it was; see `sample` for arguments and errors."""

    def __init__(
        self,
        structures: Iterable[LabelledStructure],
        settings: Sampling,
        seed: int,
        potential: Any = None,
        device: str = "auto",
    ) -> None:
        if not isinstance(settings, Sampling):
            raise ValueError(f"settings: expected a Sampling, got {shown(settings)}")
        self.settings, self.seed = settings, check_seed("seed", seed)
        self.methods = [method for method in METHODS if settings.count(method)]
        if not self.methods:
            raise ValueError(
                "nothing to sample: every count is 0; say how many structures of each seed "
                f"structure, by one or more of {', '.join(METHODS)}"
            )
        if settings.md.count and potential is None:
            raise ValueError("md: needs a potential that moves the atoms, such as emt or chgnet")

        self.seeds = list(check_structures(structures))
        _check_ids(self.seeds)
        self.total = len(self.seeds) * sum(map(settings.count, self.methods))

        self.potential_name = potential if isinstance(potential, str) else type(potential).__name__
        self.teacher = _load(potential, device)
        self.mover = _mover(self.teacher, self.potential_name) if settings.md.count else None
        forces = None if self.teacher is None else self._forces
        self.guards = Guards(settings.min_distance, settings.max_force, forces)
        self._cells = self._seed_cells()

    def draws(
        self, progress: Progress | None = None
    ) -> Iterator[tuple[LabelledStructure, Progress]]:
        """Yield each structure with how far the sampling has come after it.

        Args:
            progress: of an earlier call with the same arguments, which is gone on from.

        Raises:
            ValueError: if no draw keeps the guards.
        """
        progress = progress or Progress()
        rejected = Counter(progress.rejected)
        made, trajectory = progress.structures, progress.trajectory

        n_before = 0
        for seed_structure in self.seeds:
            for method in self.methods:
                first = min(max(made - n_before, 0), self.settings.count(method))
                n_before += first
                for atoms, info, state in self._method(
                    method, seed_structure, first, trajectory, rejected
                ):
                    n_before += 1
                    structure = self._named(seed_structure, method, first, atoms, info)
                    first += 1
                    yield structure, Progress(n_before, dict(rejected), state)

    def _method(
        self,
        method: str,
        seed_structure: LabelledStructure,
        first: int,
        trajectory: Mapping[str, Any] | None,
        rejected: Counter[str],
    ) -> Iterator[tuple[Atoms, Info, Mapping[str, Any] | None]]:
        """Yield what one method makes of one seed structure, from a number on."""
        count = self.settings.count(method)
        if first == count:
            return

        try:
            if method == "md":
                yield from self._dynamics(seed_structure, first, trajectory, rejected)
                return
            for number in range(first, count):
                yield (*self._draw(method, seed_structure, number, rejected), None)
        except ValueError as error:
            raise ValueError(f"{seed_structure.structure_id}/{method}: {error}") from error

    def _draw(
        self, method: str, seed_structure: LabelledStructure, number: int, rejected: Counter[str]
    ) -> tuple[Atoms, Info]:
        """Draw a structure until it keeps the guards."""
        settings = getattr(self.settings, method)
        generator = np.random.default_rng(self._stream(seed_structure, method, number))
        cell, origin = self._cells[seed_structure.structure_id], {}
        if method == "surface":
            origin["miller"] = settings.miller[number % len(settings.miller)]
            n_atoms = self.settings.atoms or 1
            cell = slab(seed_structure.atoms, origin["miller"], settings, n_atoms)

        rejection = None
        for _ in range(TRIALS):
            atoms, info = DRAWS[method](cell, settings, generator)
            rejection = self.guards.reject(atoms)
            if rejection is None:
                return atoms, {**origin, **info}
            rejected[rejection.guard] += 1

        raise ValueError(
            f"none of {TRIALS} draws keeps the guards; in the last, "
            f"{rejection.reason if rejection else ''}. Narrow the ranges of {method}, look at the "
            f"seed structure, or change {rejection.guard if rejection else 'the guards'}"
        )

    def _dynamics(
        self,
        seed_structure: LabelledStructure,
        first: int,
        state: Mapping[str, Any] | None,
        rejected: Counter[str],
    ) -> Iterator[tuple[Atoms, Info, Mapping[str, Any]]]:
        if self.mover is None:
            raise RuntimeError("molecular dynamics without a potential")
        trajectory = SampledTrajectory(
            self._cells[seed_structure.structure_id],
            self.settings.md,
            self.mover,
            self.guards,
            self._stream(seed_structure, "md"),
        )
        if first and state is not None:
            trajectory.restore(state)

        for snapshot in trajectory.snapshots(first):
            rejected.update(one.guard for one in trajectory.rejections)
            trajectory.rejections.clear()
            info = {
                "temperature": snapshot.temperature,
                "length_scale": snapshot.length_scale,
                "displacement": snapshot.displacement,
            }
            yield snapshot.atoms, info, snapshot.state

    def _named(
        self,
        seed_structure: LabelledStructure,
        method: str,
        number: int,
        atoms: Atoms,
        info: Info,
    ) -> LabelledStructure:
        """Return a structure with its id and where it comes from."""
        seed_id = seed_structure.structure_id
        origin: Info = {"method": method, "seed_structure": seed_id, "random_seed": self.seed}
        if self.teacher is not None:
            origin["potential"] = self.potential_name
            origin["potential_fingerprint"] = self.teacher.fingerprint
        atoms.info = {**origin, **info}
        return LabelledStructure(f"{seed_id}/{method}-{number:04d}", atoms)

    def _stream(self, seed_structure: LabelledStructure, *names: object) -> list[int]:
        """Return the seed of a structure's random numbers."""
        # A stable hash: Python's own differs from process to process.
        hashes = [zlib.crc32(str(name).encode()) for name in (seed_structure.structure_id, *names)]
        return [self.seed, *hashes]

    def _seed_cells(self) -> dict[str, Atoms]:
        """Return seed id to the structure, repeated; the potential is tried on each."""
        cells = {}
        for one in self.seeds:
            try:
                cell = one.atoms
                if self.settings.atoms is not None:
                    cell = supercell(cell, self.settings.atoms)
                if self.guards.forces is not None:
                    self.guards.forces(cell)
            except Exception as error:  # calculators raise what they like, as for an element
                text = f"{type(error).__name__}: {error}"
                text = str(error) if isinstance(error, ValueError) else text
                raise ValueError(f"{one.structure_id}: {text}") from error
            cells[one.structure_id] = cell
        return cells

    def _forces(self, atoms: Atoms) -> Forces:
        if self.teacher is None:
            raise RuntimeError("forces without a potential")
        (predicted,) = self.teacher.predict([atoms], ["forces"])
        return predicted["forces"]


def _load(potential: Any, device: str) -> Teacher | None:
    if potential is None:
        return None
    is_name = isinstance(potential, str)
    teacher = load_teacher(potential, device) if is_name else as_teacher(potential)
    if "forces" not in teacher.quantities:
        raise ValueError(
            f"{shown(potential)} predicts no forces, by which structures are moved and judged; it "
            f"predicts {', '.join(teacher.quantities)}"
        )
    return teacher


def _mover(teacher: Teacher | None, name: str) -> CalculatorTeacher:
    calculator = getattr(teacher, "calculator", None)
    if calculator is None:
        raise ValueError(
            f"{name} labels structures but is no ASE calculator, so it moves no atoms; name "
            "another potential, such as one member of an ensemble, or of fairchem's checkpoints "
            "'fairchem checkpoint=PATH'"
        )
    return CalculatorTeacher(calculator)


def _check_ids(structures: list[LabelledStructure]) -> None:
    if not structures:
        raise ValueError("structures: expected one seed structure or more, got none")
    counts = Counter(one.structure_id for one in structures)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"two seed structures are called {repeated[0]!r}, and so would be what is made of "
            "them; give each an id of its own (--ids)"
        )
