"""Scheduled loss weights in hippynn's loop and in Lightning, also after a resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hippynn.experiment import load_checkpoint
from hippynn.experiment.controllers import PatienceController
from hippynn.tools import active_directory
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kd_plugins.core.schedules import Linear, Piecewise
from kd_plugins.hippynn import LossSchedule, add_teacher_targets, distillation_loss
from tests.hippynn import fixtures

EPOCHS = 5
WEIGHTS = {
    "energy": Piecewise((0, 1, 3), (0.0, 0.5, 1.0)),
    "forces": Linear(start=8.0, end=4.0, first_step=0, last_step=2),
    "atomic_energies": Piecewise((0, 3), (100.0, 0.0)),
}
ROWS = [(0.0, 8, 100), (0.5, 6, 100), (0.5, 4, 100), (1.0, 4, 0), (1.0, 4, 0)]
"""Weights of energy, forces and atomic energies, epoch by epoch."""


def prepare(
    shared_file: Callable[[str], Path], weights: Any = WEIGHTS, **settings: Any
) -> tuple[Any, ...]:
    """Return schedule, modules, database, controller and metrics of a student."""
    data, model = fixtures.make_initialised(shared_file, large=8)
    add_teacher_targets(data, fixtures.make_hipnn(4).energy, align=True)
    loss = distillation_loss(model.energy, model.forces, weights=weights, energies="total")
    schedule = LossSchedule(loss, **settings.pop("schedule", {}))
    others = settings.pop("others", lambda: [])()
    settings = {"max_epochs": EPOCHS, **settings}
    modules, controller, metrics = fixtures.set_up(
        model, data, loss, [schedule, *others], **settings
    )
    return schedule, modules, data, controller, metrics


def weights_in(modules: Any) -> tuple[float, ...]:
    """Return the weights in a training loss, in the order of `ROWS`."""
    node = modules.loss.nodes_to_compute[0]
    values = {
        parent.torch_module.value.item()
        for one in [node, *node.get_all_parents()]
        for parent in one.parents
        if type(parent).__name__ == "ValueNode"
    }
    return tuple(values)


class Recorder:
    """Records the weights of each epoch."""

    def __init__(self, schedule: LossSchedule) -> None:
        self.schedule = schedule
        self.rows: list[tuple[float, ...]] = []

    def __call__(self, inputs: Any, outputs: Any, labels: Any) -> None:
        row = tuple(module.value.item() for _, _, module in self.schedule._terms)
        if len(self.rows) <= self.schedule.last_epoch:
            self.rows.append(row)
        assert self.rows[-1] == row


def history(metrics: Any) -> list[Any]:
    return metrics.epoch_metric_values


def test_scheduled_and_resumed_training_equals_uninterrupted(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """The weights are right in every epoch, and all numbers are equal to the bit."""
    schedule, modules, data, controller, metrics = prepare(shared_file)
    recorder = Recorder(schedule)
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    with active_directory(str(tmp_path / "run")):
        fixtures.train_model(
            modules, data, controller, metrics, None, [recorder], store_every=1, quiet=True
        )
    assert recorder.rows == ROWS
    assert schedule.weights["energy"] in weights_in(modules)
    structure = load_checkpoint(
        str(tmp_path / "run" / "experiment_structure.pt"),
        str(tmp_path / "run" / "checkpoint_epoch_2.pt"),
        weights_only=False,
    )
    again = structure["controller"].scheduler_list[0]
    assert again.last_epoch == 3 and again.weights["atomic_energies"] == 0
    recorder = Recorder(again)
    recorder.rows = ROWS[:3]
    (tmp_path / "again").mkdir()
    resumed = structure["metric_tracker"]
    with active_directory(str(tmp_path / "again")):
        fixtures.train_model(
            structure["training_modules"],
            data,
            structure["controller"],
            resumed,
            None,
            [recorder],
            store_structure_file=False,
            quiet=True,
        )
    assert recorder.rows == ROWS
    assert history(resumed) == history(metrics)
    for name, tensor in modules.model.named_parameters():
        other = dict(structure["training_modules"].model.named_parameters())[name]
        assert torch.equal(tensor, other)


def test_lightning_resumes_like_hippynns_loop(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same weights in every epoch, and equal numbers after a resume."""
    whole = lightning(shared_file, tmp_path / "whole", EPOCHS)
    lightning(shared_file, tmp_path / "part", 3)
    (checkpoint,) = (tmp_path / "part").rglob("*.ckpt")
    resumed = lightning(shared_file, tmp_path / "part", EPOCHS, checkpoint)
    assert whole[0] == ROWS
    assert resumed[0] == ROWS[3:]
    for name, tensor in whole[1].items():
        torch.testing.assert_close(tensor, resumed[1][name], rtol=0, atol=0)


def lightning(
    shared_file: Callable[[str], Path], folder: Path, epochs: int, checkpoint: Path | None = None
) -> tuple[list[tuple[float, ...]], dict[str, torch.Tensor]]:
    """Train under Lightning; return the weights of each epoch, and the model's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning
        from hippynn.experiment import HippynnLightningModule

        schedule, modules, data, controller, metrics = prepare(shared_file)
        module, loaders = HippynnLightningModule.from_train_setup(
            modules, data, controller, metrics
        )
        rows: list[tuple[float, ...]] = []

        class Watch(pytorch_lightning.Callback):
            def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
                rows.append(tuple(one.value.item() for _, _, one in schedule._terms))

            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                torch.manual_seed(trainer.current_epoch + 1)

        trainer = pytorch_lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Watch()],
            num_sanity_val_steps=0,
        )
        torch.manual_seed(3 if checkpoint else 0)
        trainer.fit(module, loaders, ckpt_path=checkpoint, weights_only=False)
    return rows, {n: p.detach().clone() for n, p in modules.model.named_parameters()}


def test_patience_restarts_when_a_weight_changes(shared_file: Callable[[str], Path]) -> None:
    """That of the controller and that of ReduceLROnPlateau."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = ReduceLROnPlateau(optimizer, patience=50)
    *_, controller, _ = prepare(
        shared_file,
        {"energy": Piecewise((0, 2), (1.0, 2.0))},
        others=lambda: [plateau],
        controller=PatienceController,
        termination_patience=2,
        max_epochs=4,
    )
    controller.boredom, controller.last_best, controller.current_epoch = 1, -1, 1
    plateau.step(1.0), plateau.step(2.0)
    assert plateau.num_bad_epochs == 1
    controller.push_epoch(0, False, 3.0)
    assert controller.boredom == 2 and plateau.num_bad_epochs == 2
    controller.push_epoch(1, False, 3.0)
    assert controller.boredom == 0 and controller.last_best == 1
    assert plateau.num_bad_epochs in (0, 1)


def test_held_patience_counts_from_the_last_change(shared_file: Callable[[str], Path]) -> None:
    """As of Table 1 of Matin et al. 2025 with the paper's patience of 50, here 6 and 2 epochs."""
    schedule, _, _, controller, _ = prepare(
        shared_file,
        {"energy": Piecewise((0, 6), (1.0, 2.0))},
        schedule={"hold_patience": True},
        controller=PatienceController,
        termination_patience=2,
        max_epochs=20,
    )
    schedule.__getstate__()  # hippynn saves it before the first epoch, and refuses nothing then
    is_running = [controller.push_epoch(epoch, False, 3.0) for epoch in range(9)]
    # The last weights are those of epoch 6; with a patience of 2, epochs 6 and 7 may bring no gain.
    assert is_running == [True] * 7 + [False, False]


def test_best_model_is_from_the_last_weights(shared_file: Callable[[str], Path]) -> None:
    """Though an epoch before had less error."""
    schedule, _, _, controller, metrics = prepare(shared_file)
    schedule.best_of_last_row(metrics)
    best = []
    for epoch in range(EPOCHS):
        found = {"valid": {name: float(epoch) for name in metrics.metric_names}}
        _, is_best, metric = metrics.register_metrics(found, epoch)
        best.append(is_best)
        controller.push_epoch(epoch, is_best, metric)
    assert best == [True, False, False, True, False]


def test_bad_schedules_and_patience_are_refused(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    model = fixtures.make_hipnn()
    steady = distillation_loss(model.energy, weights={"energy": 1}, energies="total")
    with pytest.raises(ValueError, match="loss: expected the DistillationLoss .* got NoneType"):
        LossSchedule(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no weight of this loss changes"):
        LossSchedule(steady)
    endless = distillation_loss(
        model.energy, weights={"energy": lambda epoch: 1.0 + epoch}, energies="total"
    )
    with pytest.raises(ValueError, match="which has a last step"):
        LossSchedule(endless)
    with pytest.raises(ValueError, match="max_epochs is 3, but the loss still changes at epoch 3"):
        prepare(shared_file, max_epochs=3)
    impatient = {"controller": PatienceController, "termination_patience": 1}
    _, *rest = prepare(shared_file, {"energy": Piecewise((0, 3), (1.0, 2.0))}, **impatient)
    with pytest.raises(ValueError, match="termination_patience is 1 epochs, but the loss stays"):
        fixtures.train(tmp_path / "run", *rest)
    assert not list((tmp_path / "run").glob("*best*"))


def test_resume_with_another_schedule_is_refused(shared_file: Callable[[str], Path]) -> None:
    schedule, *_ = prepare(shared_file)
    state = {**schedule.state_dict(), "last_epoch": 2}
    with pytest.raises(ValueError, match="resume with the schedule that the run began with"):
        schedule.load_state_dict(state)
