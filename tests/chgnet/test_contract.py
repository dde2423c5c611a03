"""CHGNet's adapter keeps the contract of `kd_plugins.testing`, with CHGNet's own Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from chgnet.data.dataset import collate_graphs
from torch import Tensor

from kd_plugins.chgnet import DistillData, DistillLoss, DistillTrainer, Ratios
from kd_plugins.chgnet.convert import to_pymatgen
from kd_plugins.testing import CHECKS, Distillation, ExportedStudent, Tensors, Training
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled
from tests.chgnet.test_trainer import LOADS, As, Killed, stock

HARD = {"energy": 1, "forces": 1}
SOFT = {"energy": 1, "forces": 1, "stress": 0.1}

EXPORTED = """
import json
from chgnet.model import CHGNet
from pymatgen.core import Structure

model = CHGNet.from_file("best.pth.tar")
prediction = model.predict_structure(Structure.from_file("salt.json"))
print(json.dumps([float(prediction["e"]), *map(float, prediction["f"].ravel())]))
"""


class ChgnetAdapter:
    """Two epochs of two batches on four salts, with their targets in a store.

    Args:
        salts: the structures, with targets of CHGNet with dispersion and of CHGNet alone.
    """

    n_structures = 4
    # Rounding of float32 in eV/atom, eV/Å and GPa.
    tolerances: Mapping[str, float] = {"soft_e": 1e-5, "soft_f": 1e-4, "soft_s": 1e-3}
    batch_tolerance = 1e-4
    has_ranks = False

    def __init__(self, salts: Labelled) -> None:
        self.salts = salts

    def train(
        self, folder: Path, distillation: Distillation, stop_after: int | None = None
    ) -> Training | None:
        """Train the readout, or go on with ``last.pth.tar``."""
        before = self._targets()
        data = self._data()
        if distillation == "none":
            made = stock(fixtures.frozen(), As(data, "", "ef"), folder, length=4, targets="ef")
            return Training(_tensors(made.model), before, self._targets())

        last = folder / "last.pth.tar"
        soft = dict.fromkeys(SOFT, 0) if distillation == "weight_zero" else SOFT
        trainer = (
            DistillTrainer.load(last)
            if last.exists()
            else fixtures.trainer(hard=HARD, soft=soft, seed=5)
        )
        if stop_after is not None:
            _stop_after(trainer, stop_after)

        loaders = fixtures.loader(data, 2), fixtures.loader(data, 2)
        try:
            trainer.train(*loaders, save_dir=folder)
        except Killed:
            return None
        return Training(_tensors(trainer.model), before, self._targets())

    def losses(
        self, folder: Path, student: Literal["teacher", "other"], order: Sequence[int]
    ) -> Mapping[str, float]:
        """Return the errors of pretrained CHGNet, or of one whose readout has been changed."""
        data = self.salts.data(store=self.salts.own, soft=tuple(SOFT)).part(order)
        model = fixtures.student()
        if student == "other":
            with torch.no_grad():
                model.mlp.layers[0].weight.mul_(1.1)

        graphs, targets = collate_graphs([data[index] for index in range(len(data))])
        for graph in graphs:
            graph.atom_frac_coord.requires_grad_()
        loss = DistillLoss(Ratios(soft=dict.fromkeys(SOFT, 1))).eval()
        loss(targets, model(graphs, task="efs"))
        return loss.take_errors()

    def gradients(self, folder: Path, n_ranks: int) -> Tensors:
        """CHGNet's Trainer has no ranks."""
        raise NotImplementedError

    def export(self, folder: Path) -> ExportedStudent:
        """Train, and leave the checkpoint that users are told to take."""
        data = self._data()
        trainer = fixtures.trainer(soft=SOFT, epochs=1)
        trainer.train(fixtures.loader(data, 2), fixtures.loader(data, 2), save_dir=folder)

        structure = to_pymatgen(self.salts.structures[0].atoms)
        structure.to(str(folder / "salt.json"))
        prediction = trainer.get_best_model().predict_structure(structure)
        expected = [float(prediction["e"]), *map(float, prediction["f"].ravel())]
        return ExportedStudent(EXPORTED, folder, expected)

    def _data(self) -> DistillData:
        return self.salts.data(self.salts.noisy(), hard=tuple(HARD))

    def _targets(self) -> dict[str, Tensor]:
        store = self.salts.store
        return {
            f"{name} of {structure_id}": value.clone()
            for structure_id in store.ids()
            for name, value in store[structure_id].values.items()
        }


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _stop_after(trainer: DistillTrainer, n_steps: int) -> None:
    """Let a trainer die after some steps."""

    def stop(*arguments: object) -> None:
        if trainer.criterion.step >= n_steps:
            raise Killed

    trainer.optimizer.register_step_post_hook(stop)


@pytest.fixture
def adapter(salts: Labelled) -> ChgnetAdapter:
    """CHGNet on four salts."""
    return ChgnetAdapter(salts)


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_contract(
    check: Callable[[ChgnetAdapter, Path], None], adapter: ChgnetAdapter, tmp_path: Path
) -> None:
    check(adapter, tmp_path)
