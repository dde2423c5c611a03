"""fairchem's trainers as the contract of adapters runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.multiprocessing as mp
from fairchem.core.preprocessing import AtomsToGraphs
from torch.distributed.elastic.utils.distributed import get_free_port

from kd_plugins.fairchem import compat
from kd_plugins.testing import ExportedStudent, Tensors, TrainingRun
from tests.fairchem import test_ranks, tiny
from tests.fairchem.stopping import Killed, StoppingTrainer

OURS = "kd_plugins.fairchem.EqV2DistillTrainer"
TERMS = {name: tiny.ALL_TERMS[name] for name in ("crack", "n2n", "energy", "forces")}
NEVER = 10**9

EXPORTED = """
import json, sys, warnings
sys.path[:0] = {standins!r}
warnings.simplefilter("ignore")
from fairchem.core import OCPCalculator
from ase.io import read
atoms = read("slab.json")
atoms.calc = OCPCalculator(checkpoint_path={checkpoint!r}, cpu=True, seed=0)
energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
print(json.dumps([float(energy), *forces.ravel().tolist()]))
"""


class WatchedTrainer(StoppingTrainer):
    """Keeps a copy of the teacher from before the first step, and dies where it is told to."""

    teacher: ClassVar[dict[str, torch.Tensor]] = {}

    def _forward(self, batch):  # noqa: ANN001, ANN202 - fairchem's own signature
        if not WatchedTrainer.teacher:
            WatchedTrainer.teacher = _copy(self.distiller.teacher.model)
        return super()._forward(batch)


class FairchemAdapter:
    """A small EquiformerV2 trained on six slabs, with a deeper one as its teacher.

    Args:
        databases: of structures to train on and to validate on.
        teacher: its checkpoint.
        store: with its targets.
    """

    n_structures = 6
    # In the student's normalised units. EquiformerV2 turns each edge by a random angle, so its
    # outputs are the same to some 1e-5 only.
    tolerances: Mapping[str, float] = {
        "n2n": 1e-6,
        "energy": 1e-5,
        "atomic_energies": 1e-7,
        "forces": 1e-5,
    }
    batch_tolerance = 1e-3
    has_ranks = True

    def __init__(self, databases: tuple[Path, Path], teacher: Path, store: Path) -> None:
        self.databases, self.teacher, self.store = databases, teacher, store

    def _settings(self, folder: Path, **changes: Any) -> dict[str, Any]:
        dropout = {"alpha_drop": 0.1, "drop_path_rate": 0.1}
        settings = tiny.config(folder, *self.databases, model=tiny.model(**dropout))
        settings["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=2)
        return {**settings, **changes}

    def train(
        self, folder: Path, distillation: str, stop_after: int | None = None
    ) -> TrainingRun | None:
        if distillation == "none":
            student = tiny.run(self._settings(folder), tiny.parameters)
            return TrainingRun(student, {}, {})

        terms = tiny.without_weights(TERMS) if distillation == "weight_zero" else TERMS
        settings = self._settings(
            folder,
            trainer="tests.fairchem.contract.WatchedTrainer",
            task=tiny.distill(self.teacher, terms),
        )
        WatchedTrainer.teacher = {}
        StoppingTrainer.stop_at = NEVER if stop_after is None else stop_after
        try:
            student, teacher = tiny.run(settings, _student_and_teacher)
        except Killed:
            return None
        return TrainingRun(student, WatchedTrainer.teacher, teacher)

    def losses(self, folder: Path, student: str, order: Sequence[int]) -> Mapping[str, float]:
        start = "teacher" if student == "teacher" else "scratch"
        terms = {name: tiny.ALL_TERMS[name] for name in self.tolerances}
        task = tiny.distill(
            self.teacher, terms, targets=str(self.store), student={"initialize": start}
        )
        settings = self._settings(
            folder, trainer=OURS, task=task, model=tiny.model(num_layers=3), seed=7
        )
        settings["optim"]["max_epochs"] = 0

        def measure(trainer: Any) -> dict[str, float]:
            trainer.model.train()
            trainer.step = 1
            batch = trainer.collater([trainer.train_dataset[place] for place in order])
            trainer._compute_loss(trainer._forward(batch), batch)
            metrics = trainer.distiller.take_metrics()
            return {name: float(metrics[f"kd_{name}"]["metric"]) for name in self.tolerances}

        return tiny.run(settings, measure)

    def gradients(self, folder: Path, n_ranks: int) -> Tensors:
        settings = self._settings(folder, trainer=OURS, model=tiny.model())
        terms = {name: dict(tiny.ALL_TERMS[name]) for name in test_ranks.TERMS}
        terms["crack"]["negatives"] = terms["instance"]["negatives"] = "global"
        # Colder, float32 rounds the embeddings of this barely trained teacher, which are alike.
        terms["instance"]["temperature"] = 1.0
        settings["task"] = tiny.distill(self.teacher, terms)
        settings["optim"]["max_epochs"] = 0
        settings["dataset"].pop("val")
        for function in settings["loss_functions"]:
            next(iter(function.values()))["coefficient"] = 0.0

        if n_ranks == 1:
            *_, found = tiny.run(settings, test_ranks.one_process)
        else:
            settings["world_size"], results = n_ranks, folder / "gradients.pt"
            arguments = get_free_port(), settings, results
            mp.spawn(test_ranks.rank_main, arguments, nprocs=n_ranks)
            found = torch.load(results, weights_only=True)

        return {
            f"{term}.{name}": gradient
            for term in test_ranks.TERMS
            for name, gradient in found[term][0].items()
        }

    def export(self, folder: Path) -> ExportedStudent:
        """A checkpoint of a distilled student is fairchem's own."""
        settings = self._settings(folder, trainer=OURS, task=tiny.distill(self.teacher, TERMS))
        settings["optim"]["max_epochs"] = 1
        # So that the last file holds the weights in the trainer.
        for name in ("ema_decay", "checkpoint_every", "eval_every"):
            settings["optim"].pop(name)
        atoms = tiny.slab(20)
        atoms.write(folder / "slab.json")

        def predict(trainer: Any) -> list[float]:
            graph = AtomsToGraphs(r_energy=False, r_forces=False, r_fixed=True).convert(atoms)
            out = trainer.predict(trainer.collater([graph]), per_image=False, disable_tqdm=True)
            return [float(out["energy"][0]), *np.ravel(out["forces"].numpy()).tolist()]

        expected = tiny.run(settings, predict)
        code = EXPORTED.format(
            standins=[str(path) for path in compat.FOLDERS.values()],
            checkpoint=str(folder / "checkpoints" / "run" / "checkpoint.pt"),
        )
        return ExportedStudent(code, folder, expected, tolerance=1e-3)


def _student_and_teacher(trainer: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return tiny.parameters(trainer), _copy(trainer.distiller.teacher.model)


def _copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
