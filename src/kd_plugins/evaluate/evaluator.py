"""Measure one potential into a folder, part by part; a stopped measurement goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from kd_plugins.evaluate.dynamics import equilibrated, nve
from kd_plugins.evaluate.elasticity import ElasticAverages, elastic_tensor
from kd_plugins.evaluate.inputs import one_structure
from kd_plugins.evaluate.measurements import (
    CrystalPart,
    Part,
    RunPart,
    SpeedPart,
    claim,
    crystal_files,
    planned,
    read_part,
)
from kd_plugins.evaluate.memory import peak_bytes
from kd_plugins.evaluate.rdf import rdf
from kd_plugins.evaluate.relaxation import relax
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, Measure
from kd_plugins.files import write_json
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, read_structures
from kd_plugins.teachers.labelling import label
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher

COMPARED = ("energy", "forces", "stress", "node_embeddings")
"""Quantities that are compared, as far as a potential gives them."""
TIMED, EVERY = 20, 10
"""Steps that are timed on each cell, and steps between two notes of a run."""


class Evaluator:
    """A folder with what was measured of one potential.

    Args:
        potential: as `kd_plugins.teachers.load_teacher` takes it, such as ``chgnet model=PATH``.
        folder: where it is kept; made if it is not there.
        settings: what to measure, beside what has been measured there.
        progress: show bars.

    Raises:
        TeacherError: if the potential cannot be made.
        ValueError: if the folder holds another potential, measurements with other settings or of
            files that were changed since, or if structures or potential do not allow what is to be
            measured.
    """

    def __init__(
        self, potential: str, folder: Path, settings: Measure, progress: bool = True
    ) -> None:
        self.potential, self.folder, self.progress = potential, folder, progress
        self.model: Teacher = load_teacher(potential)
        if settings.dynamics or settings.crystals:
            self.calculator()
        self.settings = planned(folder, settings, self.model.fingerprint)
        if self.settings.dynamics and not (folder / "measured.json").exists():
            self._check_moves(self.settings.dynamics.structure)

    @cached_property
    def _claimed(self) -> bool:
        """Write whose measurements they are with the first of them, not before all is checked."""
        claim(self.folder, self.model.fingerprint, self.settings)
        return True

    def _part(self, path: Path, kind: Part, make: Callable[..., Any], *given: Any) -> Any:
        """Return a part, made of what is given unless it is there."""
        if not path.exists():
            found = make(*given)
            _ = self._claimed
            write_json(path, found)
        return read_part(path, kind)

    def _check_moves(self, structure: str) -> None:
        """Refuse a structure that the potential cannot compute, before anything is written."""
        atoms = one_structure(structure)
        atoms.calc = self.calculator()
        with self._moving(structure):
            atoms.get_forces()

    def all_but_speed(self) -> None:
        """Measure what does not depend on the clock."""
        if self.settings.structures:
            _ = self.predictions
        if self.settings.dynamics:
            self.runs()
        if self.settings.crystals:
            self.crystals()

    @cached_property
    def frames(self) -> list[LabelledStructure]:
        """The structures whose values are compared, with the labels that they hold."""
        return list(read_structures(self.settings.structures, self.settings.ids))

    @cached_property
    def predictions(self) -> TargetStore:
        """What the potential says of the structures."""
        _ = self._claimed
        folder = self.folder / "predictions"
        names = [name for name in COMPARED if name in self.model.quantities]
        frames = self.frames
        report = label(
            frames, self.potential, folder, names, total=len(frames), progress=self.progress
        )
        if report.failed:
            first, reason = next(iter(report.failed.items()))
            raise ValueError(
                f"{self.potential} fails on {len(report.failed)} of {len(frames)} structures, "
                f"{first}: {reason}; why others failed stands in {folder}/failures.jsonl"
            )
        return TargetStore.open(folder)

    def speed(self) -> list[dict[str, Any]]:
        """Return time per step, simulated time per day and memory of growing cells."""
        settings = _needed(self.settings.dynamics, "dynamics")
        start = one_structure(settings.structure)
        bar = tqdm(settings.repeats, "speed", disable=not self.progress, unit=" cells")
        return [
            self._part(
                self.folder / f"speed-{repeat}.json",
                SpeedPart,
                self._costs,
                start * (repeat, 1, 1),
                settings,
            )
            for repeat in bar
        ]

    def _costs(self, atoms: Atoms, settings: DynamicsSettings) -> dict[str, Any]:
        calculator = self.calculator()
        with self._moving(settings.structure):
            run = nve(
                atoms,
                calculator,
                TIMED,
                temperature=settings.temperature,
                seed=0,
                timestep=settings.timestep,
                progress=False,
            )
            most = _bytes(atoms, calculator)
        return {
            "atoms": len(atoms),
            "microseconds": run.microseconds_per_atom,
            "nanoseconds_per_day": run.nanoseconds_per_day,
            "bytes": most,
        }

    @contextmanager
    def _moving(self, structure: str) -> Iterator[None]:
        """Name potential and structure in what a foreign calculator raises, as of an element."""
        try:
            yield
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.potential} fails in dynamics of {structure}: {why}") from error

    def runs(self) -> list[dict[str, Any]]:
        """Return each long run's drift, temperature and radial distribution function."""
        settings = _needed(self.settings.dynamics, "dynamics")
        if not settings.steps:
            return []
        return [
            self._part(self.folder / f"run-{seed}.json", RunPart, self._run, settings, seed)
            for seed in settings.seeds
        ]

    def _run(self, settings: DynamicsSettings, seed: int) -> dict[str, Any]:
        with self._moving(settings.structure):
            run = nve(
                self._start(settings, seed),
                self.calculator(),
                settings.steps,
                temperature=None if settings.equilibration else settings.temperature,
                seed=seed,
                timestep=settings.timestep,
                every=EVERY,
                progress=self.progress,
            )
        later = run.frames[len(run.frames) // 2 :]
        found = rdf(later, settings.cutoff, settings.bins)
        return {
            "drift": run.drift,
            "temperature": float(run.temperatures[len(run.frames) // 2 :].mean()),
            "distances": found.distances.tolist(),
            "values": found.values.tolist(),
        }

    def _start(self, settings: DynamicsSettings, seed: int) -> Atoms:
        """Return the structure that a run starts from, at its temperature if that is wanted."""
        atoms = one_structure(settings.structure)
        if not settings.equilibration:
            return atoms
        return equilibrated(
            atoms,
            self.calculator(),
            settings.equilibration,
            temperature=settings.temperature,
            seed=seed,
            timestep=settings.timestep,
            progress=self.progress,
        )

    def crystals(self) -> dict[str, dict[str, Any]]:
        """Return crystal to volume, whether it relaxed, and stiffness if that was asked for."""
        settings = _needed(self.settings.crystals, "crystals")
        frames = list(read_structures(settings.structures))
        files = crystal_files(self.folder / "crystals", [one.structure_id for one in frames])
        bar = tqdm(frames, "crystals", disable=not self.progress, unit="")
        return {
            one.structure_id: self._part(
                files[one.structure_id], CrystalPart, self._crystal, one.atoms, settings
            )
            for one in bar
        }

    def _crystal(self, atoms: Atoms, settings: CrystalSettings) -> dict[str, Any]:
        calculator = self.calculator()
        relaxed = relax(atoms, calculator, settings.force_tolerance, settings.max_steps)
        made = {
            "reference": abs(float(atoms.get_volume())),
            "volume": relaxed.volume if np.isfinite(relaxed.volume) else None,
            "reason": relaxed.reason,
        }
        if settings.elasticity:
            made["elasticity"] = _stiffness(relaxed.atoms, calculator)
        return made

    def calculator(self) -> Any:
        """Return the potential as an ASE calculator.

        Raises:
            ValueError: if it is none, so that nothing can be moved with it.
        """
        found = getattr(self.model, "calculator", None)
        if found is None:
            raise ValueError(
                f"{self.potential} labels structures but is no ASE calculator, so there is no "
                "dynamics and no relaxation with it; of fairchem's checkpoints take 'fairchem "
                "checkpoint=PATH'"
            )
        return found


def _needed(settings: Any, name: str) -> Any:
    if settings is None:
        raise ValueError(f"{name} are not among what is to be measured")
    return settings


def _bytes(atoms: Atoms, calculator: Any) -> float | None:
    """Return the most bytes of tensors at once, an atom; none without torch."""
    try:
        return peak_bytes(atoms, calculator) / len(atoms)
    except ValueError:
        return None


def _stiffness(atoms: Atoms, calculator: Any) -> Mapping[str, Any]:
    try:
        tensor = elastic_tensor(atoms, calculator)
        averages = ElasticAverages.of(tensor.stiffness)
    except ValueError as error:
        return {"unstable": str(error)}
    return {
        **asdict(averages.reuss_hill),
        "poisson_ratio": averages.poisson_ratio,
        "anisotropy": averages.anisotropy,
        "stiffness": tensor.stiffness.tolist(),
    }
