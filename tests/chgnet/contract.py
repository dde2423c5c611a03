"""CHGNet's trainer as the contract of adapters runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from chgnet.trainer import Trainer
from pymatgen.core import Lattice, Structure

from kd_plugins.chgnet import DistillTrainer
from kd_plugins.testing import ExportedStudent, Tensors, TrainingRun
from tests.chgnet import fixtures

HARD = {"energy": 1, "forces": 1, "stress": 0.1, "magmoms": 0.1}
NO_WEIGHTS = dict.fromkeys(fixtures.ALL_SOFT, 0)
SALT = Structure(Lattice.cubic(4.2), ["Na", "Cl"], [[0.01, 0, 0], [0.5, 0.5, 0.5]])


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


class ChgnetAdapter:
    """Readout and trunk of CHGNet trained on four salts, with targets from a store.

    Args:
        salts: with noisy labels, targets of CHGNet with dispersion, and those of CHGNet itself.
    """

    n_structures = 4
    # CHGNet's errors are in eV/atom, eV/Å and GPa, and its float32 forces are the same to 1e-5.
    tolerances: Mapping[str, float] = {"soft_e": 1e-5, "soft_f": 1e-4, "soft_s": 1e-3}
    batch_tolerance = 1e-4
    has_ranks = False

    def __init__(self, salts: fixtures.Labelled) -> None:
        self.salts = salts
        hard = ("energy", "forces", "stress", "magmoms")
        self.data = salts.data(salts.noisy(), hard=hard)

    def train(
        self, folder: Path, distillation: str, stop_after: int | None = None
    ) -> TrainingRun | None:
        before = self._teacher()
        if distillation == "none":
            model = self._train_plainly(folder)
        else:
            soft = NO_WEIGHTS if distillation == "weight_zero" else fixtures.ALL_SOFT
            try:
                model = self._distil(folder, soft, stop_after)
            except Killed:
                return None
        return TrainingRun(_parameters(model), before, self._teacher())

    def _train_plainly(self, folder: Path) -> CHGNet:
        """Train with CHGNet's own Trainer on the labels."""
        model = fixtures.student()
        trainer = Trainer(
            model,
            targets="efsm",
            use_device="cpu",
            torch_seed=5,
            epochs=2,
            learning_rate=1e-2,
            criterion="MAE",
            print_freq=1000,
        )
        trainer.train(*self._loaders(Labels(self.data)), save_dir=str(folder))
        return trainer.model

    def _distil(self, folder: Path, soft: dict[str, float], stop_after: int | None) -> CHGNet:
        last = folder / "last.pth.tar"
        if last.exists():
            torch.manual_seed(99)  # a resumed training must not depend on it
            trainer = DistillTrainer.load(str(last))
        else:
            trainer = fixtures.trainer(
                hard=HARD, soft=soft, trainable=fixtures.EVERYTHING, seed=5, schedule="chgnet"
            )

        if stop_after is not None:
            kill_after(trainer, stop_after)
        trainer.train(*self._loaders(self.data), save_dir=str(folder))
        return trainer.model

    def _loaders(self, data: Any) -> tuple[Any, Any]:
        return fixtures.loader(data, 2), fixtures.loader(data, 2)

    def losses(self, folder: Path, student: str, order: Sequence[int]) -> Mapping[str, float]:
        """Return the errors from CHGNet's own targets, of CHGNet or of a student moved off it."""
        data = self.salts.data(store=self.salts.own).part(order)
        model = fixtures.student()
        if student == "other":
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in model.mlp.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

        trainer = fixtures.trainer(model)
        graphs, targets = collate_graphs([data[index] for index in range(len(data))])
        trainer.criterion(targets, model(graphs, task="efs"))
        return {
            name: error
            for name, error in trainer.criterion.take_errors().items()
            if name.startswith("soft_")
        }

    def gradients(self, folder: Path, n_ranks: int) -> Tensors:
        raise NotImplementedError("CHGNet trains in one process")

    def export(self, folder: Path) -> ExportedStudent:
        """Every checkpoint of a training is CHGNet's own."""
        model = self._distil(folder, fixtures.ALL_SOFT, None)
        prediction = model.predict_structure(SALT)
        code = f"""
import json, warnings
warnings.simplefilter("ignore")
from chgnet.model import CHGNet
from pymatgen.core import Structure
model = CHGNet.from_file("last.pth.tar")
prediction = model.predict_structure(Structure.from_dict(json.loads({SALT.to_json()!r})))
print(json.dumps([float(prediction["e"]), *prediction["f"].ravel().tolist()]))
"""
        expected = [float(prediction["e"]), *prediction["f"].ravel().tolist()]
        return ExportedStudent(code, folder, expected)

    def _teacher(self) -> Tensors:
        """Return the targets in the store."""
        store = self.salts.store
        return {
            f"{name}.{quantity}": value
            for name in store.ids()
            for quantity, value in store.record(name).values.items()
        }


class Labels(torch.utils.data.Dataset):
    """The labels of a data set, as CHGNet's own Trainer takes them."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        graph, targets = self.data[index]
        return graph, {letter: targets[letter] for letter in "efsm"}


def kill_after(trainer: DistillTrainer, n_steps: int) -> None:
    """Let a trainer die in the middle of an epoch."""

    def die(*_: Any) -> None:
        if trainer.criterion.step >= n_steps:
            raise Killed

    trainer.optimizer.register_step_post_hook(die)


def _parameters(model: CHGNet) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
