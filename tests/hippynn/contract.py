"""hippynn's training loop as the contract of adapters runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import units
from ase.build import bulk
from hippynn.databases import Database
from hippynn.experiment import assemble_for_training, load_checkpoint, train_model
from hippynn.experiment.serialization import load_model_from_cwd
from hippynn.interfaces.ase_interface import calculator_from_model
from hippynn.tools import active_directory

from kd_plugins.core.schedules import Piecewise
from kd_plugins.hippynn import (
    LossSchedule,
    add_teacher_targets,
    distillation_loss,
    export_student,
    to_arrays,
)
from kd_plugins.store import TargetStore
from kd_plugins.testing import ExportedStudent, Tensors, TrainingRun
from tests.hippynn import fixtures
from tests.hippynn.test_targets import EVERYTHING, labelled

LABELS = {"energy": 1, "forces": 10}
WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "none": LABELS,
    # A weight that is always 0 adds no node; one that is scheduled does.
    "weight_zero": {**LABELS, "atomic_energies": Piecewise((0, 2), (0.0, 0.0))},
    "on": {**LABELS, "atomic_energies": Piecewise((0, 2), (100.0, 50.0))},
}
TERMS = ("atomic_energies", "teacher_energy", "teacher_forces")
N_EPOCHS = 3

EXPORTED = """
import json, warnings
warnings.simplefilter("ignore")
from ase import units
from ase.build import bulk
from hippynn.experiment.serialization import load_model_from_cwd
from hippynn.interfaces.ase_interface import calculator_from_model
atoms = bulk("Mo", cubic=True)
atoms.positions[0] += 0.1
atoms.calc = calculator_from_model(load_model_from_cwd(map_location="cpu"), en_unit=units.eV)
print(json.dumps([float(atoms.get_potential_energy()), *atoms.get_forces().ravel().tolist()]))
"""


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


class HippynnAdapter:
    """A small HIPNN trained on molybdenum, with targets of another one in a store.

    Args:
        shared_file: finds the file of structures.
        folder: empty, for the store.
    """

    n_structures = 14
    # eV, eV and eV/Å, in float32 of energies of some 10 eV an atom and 600 eV a structure.
    tolerances: Mapping[str, float] = {
        "atomic_energies": 1e-4,
        "teacher_energy": 5e-3,
        "teacher_forces": 2e-5,
    }
    batch_tolerance = 1e-3
    has_ranks = False

    def __init__(self, shared_file: Callable[[str], Path], folder: Path) -> None:
        self.structures = fixtures.read_molybdenum(shared_file, large=8)
        self.teacher = fixtures.make_hipnn(4)
        fixtures.initialise(self.teacher, fixtures.make_database(self.structures))
        labelled(folder, self.structures, self.teacher.energy)
        self.store = TargetStore.open(folder)

    def train(
        self, folder: Path, distillation: str, stop_after: int | None = None
    ) -> TrainingRun | None:
        before = self._targets()
        data = fixtures.make_database(self.structures)
        if distillation != "none":
            add_teacher_targets(data, self.store)
        set_up = self._set_up(data, WEIGHTS[distillation])

        torch.manual_seed(0)  # before a checkpoint brings its own random state back
        checkpoints = sorted(folder.glob("checkpoint_epoch_*.pt"))
        if checkpoints:
            saved = load_checkpoint(
                str(folder / "experiment_structure.pt"), str(checkpoints[-1]), weights_only=False
            )
            names = ("training_modules", "controller", "metric_tracker")
            set_up = tuple(saved[name] for name in names)

        modules, controller, metrics = set_up
        killers = [] if stop_after is None else [KillAfter(stop_after, modules.model)]
        settings = {"store_every": 1, "store_structure_file": not checkpoints, "quiet": True}
        try:
            with active_directory(str(folder)):
                train_model(modules, data, controller, metrics, None, killers, **settings)
        except Killed:
            return None

        student = {name: value.detach() for name, value in modules.model.named_parameters()}
        return TrainingRun(student, before, self._targets())

    def _set_up(self, data: Database, weights: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        model = fixtures.make_hipnn(3)
        loss = distillation_loss(model.energy, model.forces, weights=weights, energies="total")
        schedulers = [LossSchedule(loss)] if loss.schedules else []
        return fixtures.set_up(model, data, loss, schedulers, max_epochs=N_EPOCHS)

    def losses(self, folder: Path, student: str, order: Sequence[int]) -> Mapping[str, float]:
        model = self.teacher
        if student == "other":
            model = fixtures.make_hipnn(3)
            fixtures.initialise(model, fixtures.make_database(self.structures))
        return {name: self._loss(name, model, order) for name in TERMS}

    def _loss(self, term: str, model: fixtures.Hipnn, order: Sequence[int]) -> float:
        """Return one term, RMSE + MAE, of all structures in one batch."""
        arrays = to_arrays([self.structures[place] for place in order])
        data = Database(arrays, None, None, seed=0, quiet=True)
        data.split_the_rest("train")
        add_teacher_targets(data, self.store, EVERYTHING)

        model = fixtures.copy.deepcopy(model)
        loss = distillation_loss(model.energy, model.forces, weights={term: 1}, energies="total")
        modules, info = assemble_for_training(loss.train, dict(loss.validation))
        data.inputs, data.targets = info["inputs"], info["targets"]

        (batch,) = data.make_generator("train", "eval", len(order))
        outputs = modules.model(*batch[: len(data.inputs)])
        return float(modules.loss(*outputs, *batch[-len(data.targets) :])[0])

    def gradients(self, folder: Path, n_ranks: int) -> Tensors:
        raise NotImplementedError("hippynn's loop trains in one process")

    def export(self, folder: Path) -> ExportedStudent:
        run = folder / "run"
        self.train(run, "on")
        exported = export_student(run, folder / "student")

        atoms = bulk("Mo", cubic=True)
        atoms.positions[0] += 0.1
        with active_directory(str(run), create=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no charges
            model = load_model_from_cwd(map_location="cpu")
            atoms.calc = calculator_from_model(model, en_unit=units.eV)
        expected = [float(atoms.get_potential_energy()), *atoms.get_forces().ravel().tolist()]
        return ExportedStudent(EXPORTED, exported, expected)

    def _targets(self) -> Tensors:
        """Return the targets in the store, and the weights of the model that made them."""
        targets = {
            f"{name}.{quantity}": value
            for name in self.store.ids()
            for quantity, value in self.store.record(name).values.items()
        }
        weights = self.teacher.network.torch_module.named_parameters()
        return targets | {name: value.detach().clone() for name, value in weights}


class KillAfter:
    """Lets hippynn's loop die in the middle of an epoch."""

    def __init__(self, n_steps: int, model: torch.nn.Module) -> None:
        self.left, self.model = n_steps, model

    def __call__(self, inputs: Any, outputs: Any, labels: Any) -> None:
        if self.model.training:
            self.left -= 1
        if self.left == 0:
            raise Killed
