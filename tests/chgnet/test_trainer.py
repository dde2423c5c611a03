"""DistillTrainer is CHGNet's Trainer, to the bit where they can do the same."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from chgnet.trainer import Trainer
from torch.utils.data import Dataset

from kd_plugins.chgnet import DistillData, DistillLoss, DistillTrainer, Ratios, freeze_except
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled, differs, loader, student, trainer

LOADS = "ignore:You are using `torch.load` with `weights_only=False`:FutureWarning:chgnet"
"""CHGNet's Trainer reads its checkpoints so (torch 2.4)."""
RAMP = {"schedule": "linear", "start": 0.0, "end": 1.0, "first_step": 0, "last_step": 5}
FADE = {"schedule": "cosine", "start": 1.0, "end": 0.1, "first_step": 1, "last_step": 6}


class As(Dataset):
    """Data whose targets of one source stand where CHGNet looks for labels."""

    def __init__(self, data: DistillData, prefix: str, letters: str) -> None:
        self.data, self.names = data, {letter: prefix + letter for letter in letters}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        graph, targets = self.data[index]
        return graph, {letter: targets[name] for letter, name in self.names.items()}


def stock(model: CHGNet, data: Any, folder: Path, length: int, **settings: Any) -> Trainer:
    """Train with CHGNet's own Trainer, its cosine over so many steps."""
    usual = {"epochs": 2, "learning_rate": 1e-2, "criterion": "MAE", "print_freq": 1000}
    made = Trainer(model, use_device="cpu", torch_seed=5, **{**usual, **settings})
    made.scheduler.T_max = length
    made.train(loader(data, 2), loader(data, 2), save_dir=str(folder))
    return made


def test_soft_targets_alone_equal_chgnets_trainer_with_the_teachers_values_as_labels(
    data: DistillData, tmp_path: Path
) -> None:
    model, ours = student(), student()
    freeze_except(model)
    teacher = As(data, "soft_", "efs")
    plain = stock(model, teacher, tmp_path / "a", 4, targets="efs", stress_loss_ratio=0.1)
    made = trainer(ours, seed=5)
    made.train(loader(data, 2), loader(data, 2), save_dir=str(tmp_path / "b"))

    assert differs(model, ours) == 0.0
    assert plain.training_history == made.training_history
    assert len(fixtures.has_changed(ours)) == 8


@pytest.mark.parametrize("soft", [{}, {"energy": 0, "forces": 0, "stress": 0}], ids=["no", "zero"])
def test_hard_targets_alone_equal_chgnets_trainer(
    data: DistillData, tmp_path: Path, soft: dict[str, float]
) -> None:
    hard = {"energy": 1, "forces": 1, "stress": 0.1, "magmoms": 0.1}
    model, ours = student(), student()
    part = data.part([0, 1])
    plain = stock(model, As(part, "", "efsm"), tmp_path / "a", 10, targets="efsm", epochs=1)
    made = trainer(
        ours,
        **{"hard": hard, "soft": soft, "trainable": fixtures.EVERYTHING},
        **{"seed": 5, "epochs": 1, "schedule": "chgnet"},
    )
    made.train(loader(part, 2), loader(part, 2), save_dir=str(tmp_path / "b"))

    assert differs(model, ours) == 0.0
    assert plain.training_history == made.training_history
    assert made.trainable.n_trainable == fixtures.SIZE - 94
    assert len(fixtures.has_changed(ours)) > 100


def test_gradients_of_the_head_equal_those_of_a_plain_backward(data: DistillData) -> None:
    found, graphs = [], []
    for head_only in (True, False):
        model = fixtures.frozen()
        loss = DistillLoss(Ratios(soft=fixtures.ALL_SOFT, hard={"energy": 0.5})).train()
        head = [parameter for parameter in model.parameters() if parameter.requires_grad]
        loss.parameters_to_train = head if head_only else []
        graphs, targets = collate_graphs([data[index] for index in range(3)])
        graphs = [graph.to("cpu") for graph in graphs]

        for graph in graphs:
            graph.atom_frac_coord = graph.atom_frac_coord.detach().requires_grad_()

        loss(targets, model(graphs, task="efs"))["loss"].backward()
        assert all((graph.atom_frac_coord.grad is None) == head_only for graph in graphs)

        found.append([parameter.grad for parameter in head])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_training_leaves_no_gradient_on_the_positions(salts: Labelled, tmp_path: Path) -> None:
    data = salts.data(salts.structures[:2])
    trainer(epochs=1).train(loader(data, 2), loader(data, 2), save_dir=str(tmp_path))
    assert all(graph.atom_frac_coord.grad is None for graph, _ in data)


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


def kill_after(made: DistillTrainer, n_steps: int) -> None:
    """Let a trainer die in the middle of its epoch."""

    def step(*arguments: Any) -> None:
        if made.criterion.step > n_steps:
            raise Killed

    made.optimizer.register_step_post_hook(step)


@pytest.mark.filterwarnings(LOADS)
def test_resumed_training_equals_uninterrupted(data: DistillData, tmp_path: Path) -> None:
    settings = {
        **{"soft": {"energy": RAMP, "forces": 1, "stress": 0.1}, "hard": {"energy": FADE}},
        **{"epochs": 3, "seed": 7, "criterion": "Huber", "delta": 0.02},
    }
    whole = trainer(**settings)
    whole.train(loader(data, 2), loader(data, 4), save_dir=str(tmp_path / "whole"))

    stopped = trainer(**settings)
    kill_after(stopped, 3)

    with pytest.raises(Killed):
        stopped.train(loader(data, 2), loader(data, 4), save_dir=str(tmp_path / "stopped"))

    torch.manual_seed(99)
    resumed = DistillTrainer.load(str(tmp_path / "stopped" / "last.pth.tar"))

    assert resumed.starting_epoch == 1
    assert resumed.trainable == whole.trainable
    assert resumed.trainable.n_trainable == fixtures.HEAD_SIZE

    resumed.train(loader(data, 2), loader(data, 4), save_dir=str(tmp_path / "stopped"))

    assert differs(whole.model, resumed.model) == 0.0
    assert differs(whole.get_best_model(), resumed.get_best_model()) == 0.0
    assert whole.errors == resumed.errors
    assert whole.training_history == resumed.training_history
    assert whole.criterion.step == resumed.criterion.step == 6
    assert all(name.startswith("mlp.") for name in fixtures.has_changed(resumed.model))

    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "stopped")]
    assert files[0] == files[1]


def test_the_best_model_has_the_lowest_score_and_does_not_change(
    data: DistillData, tmp_path: Path
) -> None:
    made = trainer(epochs=3, learning_rate=0.3, soft={"energy": RAMP, "forces": 1})
    seen: list[CHGNet] = []
    original = made.save_checkpoint

    def save_checkpoint(*arguments: Any, **keywords: Any) -> None:
        seen.append(copy.deepcopy(made.model))
        original(*arguments, **keywords)

    made.save_checkpoint = save_checkpoint
    with pytest.raises(RuntimeError, match="needs to be trained first"):
        made.get_best_model()

    made.train(loader(data, 2), loader(data, 4), save_dir=str(tmp_path))
    scores = [errors["val_score"] for errors in made.errors]

    for errors in made.errors:  # with the weights that the schedules end at
        assert errors["val_score"] == errors["val_soft_e"] + errors["val_soft_f"]

    best = int(np.argmin(scores))
    assert differs(made.get_best_model(), seen[best]) == 0.0
    assert differs(CHGNet.from_file(str(tmp_path / "best.pth.tar")), seen[best]) == 0.0
    assert differs(CHGNet.from_file(str(tmp_path / "last.pth.tar")), seen[-1]) == 0.0
    assert differs(made.model, seen[-1]) == 0.0


def test_the_seed_determines_the_training(data: DistillData, tmp_path: Path) -> None:
    models = []
    for index, seed in enumerate((3, 3, 4)):
        torch.manual_seed(index)
        random.seed(index)
        np.random.seed(index)
        made = trainer(seed=seed, epochs=1)
        made.train(loader(data, 2), loader(data, 4), save_dir=str(tmp_path / str(index)))
        models.append(made.model)

    assert differs(models[0], models[1]) == 0.0
    assert differs(models[0], models[2]) > 0.0


@pytest.mark.filterwarnings(LOADS)
def test_the_test_loader_reads_the_best_energy_back(data: DistillData, tmp_path: Path) -> None:
    made = trainer(epochs=1)
    made.train(
        loader(data, 2), loader(data, 4), loader(data, 4, shuffle=False), save_dir=str(tmp_path)
    )
    (name,) = [path.name for path in tmp_path.iterdir() if path.name.startswith("bestE_")]

    assert differs(CHGNet.from_file(str(tmp_path / name)), made.model) == 0.0
    assert made.errors[-1]["test_soft_e"] == pytest.approx(made.errors[-1]["val_soft_e"], rel=1e-4)


def test_arguments_are_copied_in_pythons_own_types(data: DistillData, tmp_path: Path) -> None:
    soft = {"energy": np.float64(1), "forces": {**RAMP, "end": np.float64(1)}}
    params = {"decay_fraction": 0.1}
    made = trainer(
        soft=soft,
        learning_rate=np.float64(1e-2),
        seed=np.int64(3),
        scheduler_params=params,
        delta=np.float64(0.1),
        epochs=1,
    )
    soft["forces"]["end"] = 100.0
    params["decay_fraction"] = 1.0
    made.train(loader(data, 4), loader(data, 4), save_dir=str(tmp_path))
    state = torch.load(tmp_path / "last.pth.tar", weights_only=True)

    assert state["trainer_args"]["soft"]["forces"]["end"] == 1.0
    assert state["trainer_args"]["scheduler_params"] == {"decay_fraction": 0.1}
