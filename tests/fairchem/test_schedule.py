"""Warm-up in steps, and validation in training on a part of the structures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairchem", reason="needs the extra kd_plugins[fairchem]")

from kd_plugins.config import ConfigError
from tests.fairchem import tiny

EQV2 = "kd_plugins.fairchem.EqV2DistillTrainer"


def crack(teacher: Path, **changes: Any) -> dict[str, Any]:
    return tiny.distill(teacher, {"crack": {"weight": 1.0}}, **changes)


def warmed(trainer: Any) -> tuple[int, dict[str, Any]]:
    schedule = trainer.scheduler.scheduler.lr_lambdas[0]
    return schedule.warmup_epochs, tiny.parameters(trainer)


@pytest.mark.filterwarnings("ignore:.*weights_only:FutureWarning")
def test_a_warm_up_in_steps_keeps_its_length_whatever_the_epoch(make_config, teacher: Path) -> None:
    settings = make_config(trainer=EQV2, task=crack(teacher))
    schedule = settings["optim"]["scheduler_params"]
    schedule["warmup_epochs"] = 2.1 / 3  # three steps of two structures an epoch
    steps, in_epochs = tiny.run(settings, warmed)
    assert steps == 2

    del schedule["warmup_epochs"]
    schedule["warmup_steps"] = 2
    settings["timestamp_id"] = "steps"
    steps, in_steps = tiny.run(settings, warmed)
    assert steps == 2
    assert all((in_steps[name] == one).all() for name, one in in_epochs.items())

    settings["optim"]["batch_size"] = 1
    settings["timestamp_id"] = "more"
    assert tiny.run(settings, warmed)[0] == 2


@pytest.mark.filterwarnings("ignore:.*weights_only:FutureWarning")
@pytest.mark.parametrize(
    ("trainer", "change", "message"),
    [
        ("EqV2DistillTrainer", {"warmup_steps": 5}, "warmup_steps and warmup_epochs both give"),
        ("EqV2DistillTrainer", {"warmup_steps": 0, "warmup_epochs": None}, "warmup_steps: .*got 0"),
        (
            "DistillTrainer",
            {"warmup_steps": 5, "warmup_epochs": None},
            "this trainer reads optim.warmup_steps",
        ),
    ],
)
def test_a_warm_up_that_is_not_clear_is_refused(
    make_config, teacher: Path, trainer: str, change: dict[str, Any], message: str
) -> None:
    settings = make_config(trainer=f"kd_plugins.fairchem.{trainer}", task=crack(teacher))
    settings["optim"]["scheduler_params"].update(change)
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)


def n_validated(trainer: Any) -> tuple[int, int]:
    """Return of how many structures a validation is, and one in training."""
    whole = trainer.validate(split="val", disable_tqdm=True)["energy_mae"]["numel"]
    trainer._is_training = True
    part = trainer.validate(split="val", disable_tqdm=True)["energy_mae"]["numel"]
    return int(whole), int(part)


@pytest.mark.filterwarnings("ignore:.*weights_only:FutureWarning")
def test_validation_in_training_is_of_a_part_and_changes_no_weight(
    make_config, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_config(trainer=EQV2, task=crack(teacher))
    plain = tiny.run(settings, tiny.parameters)
    settings.update(task=crack(teacher, validation_structures=2), timestamp_id="part")
    with caplog.at_level(logging.INFO):
        found, counts = tiny.run(settings, lambda one: (tiny.parameters(one), n_validated(one)))
    assert counts == (3, 2)
    assert caplog.text.count("validating on 2 of 3 structures in training, drawn by seed 0") == 1
    assert all((found[name] == one).all() for name, one in plain.items())

    settings.update(task=crack(teacher, validation_structures=0), timestamp_id="none")
    with pytest.raises(ConfigError, match="validation_structures: .* got 0"):
        tiny.run(settings)
