"""Measure one potential into a folder, part by part; a stopped measurement goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ase import Atoms
from tqdm import tqdm

from kd_plugins.evaluate.crystals import Crystals, measure_crystal, read_crystals
from kd_plugins.evaluate.dynamics import equilibrated, nve
from kd_plugins.evaluate.input_checks import one_structure
from kd_plugins.evaluate.measurements import (
    CrystalPart,
    Part,
    RunPart,
    SpeedPart,
    crystal_files,
    planned,
    read_part,
    write_settings,
)
from kd_plugins.evaluate.memory import peak_bytes
from kd_plugins.evaluate.rdf import rdf
from kd_plugins.evaluate.settings import DynamicsSettings, EvaluationSettings
from kd_plugins.files import write_json
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, read_structures
from kd_plugins.teachers.calculator import weight_dtype
from kd_plugins.teachers.labelling import label
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher

COMPARED = ("energy", "forces", "stress", "node_embeddings")
"""Quantities that are compared, as far as a potential predicts them."""
TIMED_STEPS, RECORD_EVERY = 20, 10
"""Steps that are timed in each cell, and steps between two records of a run."""


class Evaluator:
    """A folder with the measurements of one potential.

    Args:
        potential: as `kd_plugins.teachers.load_teacher` takes it, such as ``chgnet model=PATH``.
        folder: of the measurements; made if it is not there.
        settings: what to measure, beside what has been measured there.
        progress: show bars.
        device: where the potential computes, as `kd_plugins.teachers.load_teacher` takes it.

    Raises:
        TeacherError: if the potential cannot be made, or not on that device.
        ValueError: if the folder holds another potential, measurements with other settings or of
            files that have changed since, or if structures or potential do not allow a
            measurement.
    """

    def __init__(
        self,
        potential: str,
        folder: Path,
        settings: EvaluationSettings,
        progress: bool = True,
        device: str = "auto",
    ) -> None:
        self.potential, self.folder, self.progress = potential, folder, progress
        self.device = device
        self.model: Teacher = load_teacher(potential, device)
        if settings.dynamics or settings.crystals:
            self.calculator()  # refuses a potential that cannot move atoms

        self.settings = planned(folder, settings, self.model.fingerprint)
        if self.settings.dynamics and not (folder / "measured.json").exists():
            self._check_forces(self.settings.dynamics.structure)

    def all_but_speed(self) -> None:
        """Measure everything that other processes on this machine cannot disturb."""
        if self.settings.structures:
            _ = self.predictions
        if self.settings.dynamics:
            self.runs()
        if self.settings.crystals:
            self.crystals()

    def calculator(self) -> Any:
        """Return the potential as an ASE calculator.

        Raises:
            ValueError: if the potential is not one, so that it can move no atoms.
        """
        calculator = getattr(self.model, "calculator", None)
        if calculator is None:
            raise ValueError(
                f"{self.potential} labels structures but is no ASE calculator, so there is no "
                "dynamics and no relaxation with it; of fairchem's checkpoints take 'fairchem "
                "checkpoint=PATH'"
            )
        return calculator

    @property
    def computing(self) -> dict[str, str | None]:
        """Device of the potential, and dtype of its weights; None without weights of torch."""
        inner = getattr(self.model, "calculator", self.model)
        return {"device": self.model.device, "dtype": weight_dtype(inner)}

    # --- Accuracy ---

    @cached_property
    def structures(self) -> list[LabelledStructure]:
        """The structures whose values are compared, with their labels."""
        return list(read_structures(self.settings.structures, self.settings.ids))

    @cached_property
    def predictions(self) -> TargetStore:
        """The potential's predictions for the structures, in a target store."""
        _ = self._settings_written
        folder = self.folder / "predictions"
        names = [name for name in COMPARED if name in self.model.quantities]

        structures = self.structures
        total = len(structures)
        report = label(
            structures,
            self.potential,
            folder,
            names,
            device=self.device,
            total=total,
            progress=self.progress,
        )
        if report.failed:
            first, reason = next(iter(report.failed.items()))
            raise ValueError(
                f"{self.potential} fails on {len(report.failed)} of {total} structures, "
                f"{first}: {reason}; why others failed stands in {folder}/failures.jsonl"
            )
        return TargetStore.open(folder)

    # --- Dynamics ---

    def speed(self) -> list[dict[str, Any]]:
        """Return time per step, simulated time per day and memory of growing cells."""
        settings = _required(self.settings.dynamics, "dynamics")
        cell = one_structure(settings.structure)
        return [
            self._part(
                self.folder / f"speed-{repeat}.json",
                SpeedPart,
                self._measure_speed,
                cell * (repeat, 1, 1),
                settings,
            )
            for repeat in tqdm(settings.repeats, "speed", disable=not self.progress, unit=" cells")
        ]

    def _measure_speed(self, atoms: Atoms, settings: DynamicsSettings) -> dict[str, Any]:
        calculator = self.calculator()
        with self._named_errors(settings.structure):
            run = nve(
                atoms,
                calculator,
                TIMED_STEPS,
                temperature=settings.temperature,
                seed=0,
                timestep=settings.timestep,
                progress=False,
            )
            bytes_per_atom = _bytes_per_atom(atoms, calculator)
        return {
            "atoms": len(atoms),
            "microseconds": run.microseconds_per_atom,
            "nanoseconds_per_day": run.nanoseconds_per_day,
            "bytes": bytes_per_atom,
            **self.computing,
        }

    def runs(self) -> list[dict[str, Any]]:
        """Return drift, temperature and radial distribution function of each long run."""
        settings = _required(self.settings.dynamics, "dynamics")
        if not settings.steps:
            return []
        return [
            self._part(self.folder / f"run-{seed}.json", RunPart, self._measure_run, settings, seed)
            for seed in settings.seeds
        ]

    def _measure_run(self, settings: DynamicsSettings, seed: int) -> dict[str, Any]:
        with self._named_errors(settings.structure):
            run = nve(
                self._start_of_run(settings, seed),
                self.calculator(),
                settings.steps,
                # An equilibrated structure has its velocities already.
                temperature=None if settings.equilibration else settings.temperature,
                seed=seed,
                timestep=settings.timestep,
                every=RECORD_EVERY,
                progress=self.progress,
            )

        # The first half may still be on its way to equilibrium.
        half = len(run.frames) // 2
        function = rdf(run.frames[half:], settings.cutoff, settings.bins)
        return {
            "drift": run.drift,
            "temperature": float(run.temperatures[half:].mean()),
            "distances": function.distances.tolist(),
            "values": function.values.tolist(),
        }

    def _start_of_run(self, settings: DynamicsSettings, seed: int) -> Atoms:
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

    def _check_forces(self, structure: str) -> None:
        """Refuse a structure that the potential cannot compute, before anything is written."""
        atoms = one_structure(structure)
        atoms.calc = self.calculator()
        with self._named_errors(structure):
            atoms.get_forces()

    @contextmanager
    def _named_errors(self, structure: str) -> Iterator[None]:
        """Add potential and structure to what a foreign calculator raises, as of an element."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{self.potential} fails in dynamics of {structure}: {reason}"
            ) from error

    # --- Crystals ---

    @property
    def read_crystals(self) -> Crystals:
        """The crystals of the files, and those that are left out."""
        return read_crystals(_required(self.settings.crystals, "crystals"))

    def crystals(self) -> dict[str, dict[str, Any]]:
        """Return volume, reason of a failed relaxation and, if wanted, stiffness by crystal."""
        settings = _required(self.settings.crystals, "crystals")
        structures, files = self.read_crystals.structures, self._crystal_files
        bar = tqdm(structures, "crystals", disable=not self.progress, unit="")
        return {
            one.structure_id: self._part(
                files[one.structure_id],
                CrystalPart,
                lambda atoms: measure_crystal(atoms, self.calculator(), settings),
                one.atoms,
            )
            for one in bar
        }

    @property
    def unmeasured_crystals(self) -> list[LabelledStructure]:
        """Crystals that have no part yet."""
        files = self._crystal_files
        structures = self.read_crystals.structures
        return [one for one in structures if not files[one.structure_id].exists()]

    def keep_crystal(self, structure_id: str, part: Mapping[str, Any]) -> None:
        """Write a crystal's part that another process has measured."""
        _ = self._settings_written
        write_json(self._crystal_files[structure_id], part)

    @property
    def _crystal_files(self) -> dict[str, Path]:
        ids = [one.structure_id for one in self.read_crystals.structures]
        return crystal_files(self.folder / "crystals", ids)

    # --- The folder ---

    def _part(self, path: Path, kind: Part, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Return a part from its file, which is measured and written if it is not there."""
        if not path.exists():
            measured = measure(*arguments)
            _ = self._settings_written
            write_json(path, measured)
        return read_part(path, kind)

    @cached_property
    def _settings_written(self) -> bool:
        """Lock the folder to potential and settings with its first result, not before."""
        write_settings(self.folder, self.model.fingerprint, self.settings)
        return True


def _required(settings: Any, name: str) -> Any:
    if settings is None:
        raise ValueError(f"{name} are not among what is to be measured")
    return settings


def _bytes_per_atom(atoms: Atoms, calculator: Any) -> float | None:
    """Return the peak memory of tensors; None for a calculator without torch."""
    try:
        return peak_bytes(atoms, calculator) / len(atoms)
    except ValueError:
        return None
