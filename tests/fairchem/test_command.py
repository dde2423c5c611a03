"""The command as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.mark.slow
def test_an_error_is_the_last_thing_said(make_config, teacher: Path, tmp_path: Path) -> None:
    """A misspelt key ends the command with its name, and leaves no folder behind."""
    task = tiny.distill(teacher)
    task["distill"]["terms"]["crack"]["temprature"] = 0.1
    settings = make_config(trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=task)
    done = command(tmp_path, settings)
    assert done.returncode != 0
    assert "temprature: unknown key; did you mean 'temperature'?" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "checkpoints").exists()
