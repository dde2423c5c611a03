"""The command as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.__main__ import main
from kd_plugins.fairchem.command import check_config
from tests.fairchem import tiny

KEYS = (
    *("trainer", "task", "model", "dataset", "outputs", "optim", "logger"),
    *("loss_functions", "evaluation_metrics", "hide_eval_progressbar"),
)


def command(folder: Path, settings: dict[str, Any], *words: str) -> subprocess.CompletedProcess:
    """Write a run as YAML and train it with the command."""
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump({key: settings[key] for key in KEYS}))
    return subprocess.run(
        [sys.executable, "-m", "kd_plugins.fairchem", "--mode", "train", "--config-yml", str(path)]
        + ["--timestamp-id", "run", "--cpu", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_two_ranks_from_the_command(make_config, teacher: Path, tmp_path: Path) -> None:
    """Spawned ranks find the stand-ins, train together and save one student."""
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher)
    )
    done = command(tmp_path, settings, "--num-gpus", "2", "--task.distill.terms.n2n.weight=0.5")
    assert done.returncode == 0, done.stderr[-3000:]
    state = tiny.load(tmp_path / "checkpoints" / "run" / "checkpoint.pt")
    assert state["config"]["task"]["distill"]["terms"]["n2n"]["weight"] == 0.5
    assert state["step"] == 2  # six structures, two a rank and step


def last_words(done: subprocess.CompletedProcess) -> str:
    """Return what a command ended with, and that it was no traceback."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr + done.stdout
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.stderr[done.stderr.index(error) :]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_an_error_is_the_last_line(make_config, teacher: Path, tmp_path: Path, ranks: str) -> None:
    """A misspelt key ends the command with its name, once, and leaves no folder behind."""
    task = tiny.distill(teacher)
    task["distill"]["terms"]["crack"]["temprature"] = 0.1
    settings = make_config(trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=task)
    message = last_words(command(tmp_path, settings, "--num-gpus", ranks))
    assert "temprature: unknown key; did you mean 'temperature'?" in message.splitlines()[-1]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_debug_shows_where(make_config, teacher: Path, tmp_path: Path) -> None:
    """The traceback, and then the same sentence."""
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher)
    )
    done = command(tmp_path, settings, "--debug", "--task.distill.seed=one")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "seed: expected a whole number" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_unforeseen_error_shows_its_traceback(
    make_config, teacher: Path, tmp_path: Path
) -> None:
    """Of a rank of several, too, once."""
    settings = make_config(trainer="kd_plugins.fairchem.EqV2DistillTrainer")
    settings["task"] = tiny.distill(teacher)
    settings["evaluation_metrics"]["primary_metric"] = "nothing_mae"
    done = command(tmp_path, settings, "--num-gpus", "2")
    assert done.returncode == 2
    assert done.stderr.count("Traceback") == 1
    assert "KeyError: 'nothing_mae'" in done.stderr.splitlines()[-1]


NOT_OURS = {
    "of the host": ("equiformerv2_forces", "equiformerv2_forces would train without it; .*EqV2D"),
    "by default": (None, "trainer: ocp would train without it; write .*fairchem.DistillTrainer"),
    "of another package": (
        "fairchem.core.trainers.OCPTrainer",
        "trainer: fairchem.core.trainers.OCPTrainer would train without it",
    ),
    "misspelt": (
        "kd_plugins.fairchem.EqV2DistilTrainer",
        "EqV2DistilTrainer cannot be imported .*did you mean kd_plugins.fairchem.EqV2DistillTrain",
    ),
}


@pytest.mark.parametrize(("trainer", "message"), NOT_OURS.values(), ids=NOT_OURS.keys())
@pytest.mark.parametrize("key", ["distill", "distil", "distillation"])
def test_a_trainer_that_would_not_distil(
    trainer: str | None, message: str, key: str, tmp_path: Path
) -> None:
    """Does not begin; the message names the trainer to write."""
    config = {"task": {key: {}}, **({} if trainer is None else {"trainer": trainer})}
    with pytest.raises(ConfigError, match=message):
        check_config(config)


def test_trainers_that_do(tmp_path: Path) -> None:
    """Ours and what is made of them; a plain YAML is the plain host's."""
    for name in ("EqV2DistillTrainer", "DistillTrainer", "trainer.DistillTrainer"):
        check_config({"trainer": f"kd_plugins.fairchem.{name}", "task": {"distill": {}}})
    check_config({"trainer": "tests.fairchem.stopping.StoppingTrainer", "task": {"distill": 1}})
    check_config({"trainer": "ocp", "task": {"strict_load": True}})
    check_config({"trainer": "equiformerv2_forces", "task": {"distill": None}})
    check_config({})


WORDS = {
    "no mode": ([], "--mode: missing; expected train"),
    "no checkpoint": (["--mode", "validate"], "--mode validate needs --checkpoint FILE"),
    "no ranks": (["--mode", "train", "--num-gpus", "0"], "--num-gpus: expected 1 or more ranks"),
    "no value": (
        ["--mode", "train", "--task.distill.seed"],
        "unknown option '--task.distill.seed'",
    ),
    "no option": (["--mode", "train", "seed=1"], "unknown option 'seed=1'; a key of the YAML is"),
    "at the top": (["--mode", "train"], "distill stands at the top of the YAML"),
}


@pytest.mark.parametrize(("words", "message"), WORDS.values(), ids=WORDS.keys())
def test_options(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Are looked at before fairchem is begun."""
    path = tmp_path / "run.yml"
    path.write_text("distill: {}\n")
    assert main(["--config-yml", str(path), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_yaml_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Is named."""
    assert main(["--config-yml", "nowhere.yml", "--mode", "train"]) == 2
    assert "error: nowhere.yml: no such file" in capsys.readouterr().err


def test_all_of_the_package() -> None:
    """`from kd_plugins.fairchem import *` gives what is listed, and no more."""
    import kd_plugins.fairchem as package

    names: dict[str, Any] = {}
    exec("from kd_plugins.fairchem import *", names)
    assert set(names) - {"__builtins__"} == set(package.__all__) <= set(dir(package))
