"""The numbers that the log has beside fairchem's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.fairchem.trainer import DistillMixin
from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2, first_batch
from tests.fairchem.test_stored_targets import TERMS, stored

Settings = dict[str, Any]


def of_a_batch(trainer: DistillMixin, training: bool = True) -> dict[str, float]:
    """Return the metrics of the first batch, as fairchem's log has them."""
    trainer.model.train(training)
    trainer.step = 1
    batch = first_batch(trainer)
    torch.manual_seed(3)
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    return {"loss": float(loss)} | {name: float(m["metric"]) for name, m in metrics.items()}


def without_training(settings: Settings) -> Settings:
    """Return a run that only sets up."""
    settings["optim"]["max_epochs"] = 0
    return settings


def test_the_task_loss_is_what_the_plain_host_has(
    make_config: Callable[..., Settings], teacher: Path
) -> None:
    """Beside the sum with the distillation's terms, which fairchem calls the loss."""
    terms = {"energy": {"weight": 2.0, "distance": "absolute_sum"}}
    settings = without_training(make_config(trainer=EQV2, task=tiny.distill(teacher, terms)))
    found = tiny.run(settings, of_a_batch)
    settings.update(task=tiny.distill(teacher, tiny.without_weights(terms)), timestamp_id="zero")
    plain = tiny.run(settings, of_a_batch)
    assert found["task_loss"] == plain["task_loss"] == plain["loss"]
    assert found["loss"] == pytest.approx(found["task_loss"] + 2.0 * found["kd_energy"])


def test_the_teachers_own_errors(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path
) -> None:
    """In the units and over the atoms of fairchem's own, also of a teacher in a store."""
    task = tiny.distill(teacher, student={"initialize": "teacher"})
    settings = make_config(trainer=EQV2, task=task, model=tiny.model(num_layers=3))
    found = tiny.run(without_training(settings), of_a_batch)
    for name in ("energy_mae", "forces_mae"):
        assert found[f"teacher_{name}"] == pytest.approx(found[name], rel=1e-5)
    settings.update(task=stored(labelled, TERMS), timestamp_id="cached")
    again = tiny.run(settings, of_a_batch)
    assert again["teacher_energy_mae"] == pytest.approx(found["teacher_energy_mae"], rel=2e-2)
    settings.update(timestamp_id="validated")
    assert "teacher_forces_mae" in tiny.run(settings, lambda trainer: trainer.validate())


def test_a_schedules_weight(make_config: Callable[..., Settings], teacher: Path) -> None:
    """As it is at the step, also where it is 0 and nothing is computed; none of a constant one."""
    ramp = {"schedule": "linear", "start": 0.0, "end": 8.0, "first_step": 0, "last_step": 4}
    terms = {"crack": {"weight": ramp}, "instance": {"weight": 1.0}}
    settings = without_training(make_config(trainer=EQV2, task=tiny.distill(teacher, terms)))
    found = tiny.run(settings, of_a_batch)
    assert found["kd_crack_weight"] == 2.0
    assert "kd_instance_weight" not in found
    late = {**ramp, "first_step": 1, "last_step": 9}
    settings.update(task=tiny.distill(teacher, {"crack": {"weight": late}}), timestamp_id="late")
    found = tiny.run(settings, of_a_batch)
    assert found["kd_crack_weight"] == 0.0
    assert "kd_crack" not in found
