"""Command lines and settings with which each host trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.config import ConfigError
from tests.compare.fixtures import (
    ARMS,
    write_experiment,
)
from tests.house import ROOT


def test_commands_hold_seed_folder_and_changes(tmp_path: Path) -> None:
    """Each host has its own command."""
    base = ROOT / "configs" / "chgnet" / "recommended.yml"
    words = HOSTS["chgnet"].command(base, tmp_path, 4, {"loss.soft.stress": 0.2})
    assert words[1:3] == ["-m", "kd_plugins.chgnet"]
    settings = yaml.safe_load(Path(words[3]).read_text())
    assert settings["optim"]["seed"] == 4 and settings["out"] == str(tmp_path)
    before = yaml.safe_load(base.read_text())
    assert settings["loss"]["soft"] == {**before["loss"]["soft"], "stress": 0.2}
    changes = {"includes": [str(base)], "task.distill.terms.crack.weight": 5}
    words = HOSTS["fairchem"].command(base, tmp_path, 4, changes)
    assert words[words.index("--seed") + 1] == "4"
    settings = yaml.safe_load(Path(words[words.index("--config-yml") + 1]).read_text())
    assert settings["includes"] == [str(base)] * 2
    assert settings["task"] == {"distill": {"terms": {"crack": {"weight": 5}}}}
    with pytest.raises(ValueError, match="energy.x: energy is 1"):
        HOSTS["script"].command(base, tmp_path, 0, {"loss.energy": 1, "loss.energy.x": 2})


def test_options_are_in_fairchems_command(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("trainer: a")
    options = {"num_gpus": 2, "amp": True, "cpu": False}
    command = HOSTS["fairchem"].command(tmp_path / "base.yml", tmp_path, 4, {}, options)
    assert command[command.index("--num-gpus") + 1] == "2"
    assert "--amp" in command and "--cpu" not in command
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "settings": {}}
    read = read_experiment(write_experiment(tmp_path, **changes, arms=ARMS, options=options))
    assert read.options == options
    for wrong, message in (
        ({"num_gpu": 2}, "options: fairchem takes no 'num_gpu'; did you mean 'num_gpus'?"),
        ({"num_gpus": 0}, "options.num_gpus: expected a whole number of 1 or more, got 0"),
        ({"amp": "yes"}, "options.amp: expected true or false, got 'yes'"),
        ({"amp": 1}, "options.amp: expected true or false, got 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            read_experiment(write_experiment(tmp_path, **changes, arms=ARMS, options=wrong))


def test_trust_pickle_is_passed_to_settings_and_model(tmp_path: Path) -> None:
    """From the host's settings, and from the strings of model and teacher."""
    (tmp_path / "base.yml").write_text("trainer: a")
    trusted = "task.distill.teacher.trust_pickle"
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "arms": ARMS}
    read = read_experiment(
        write_experiment(
            tmp_path,
            **changes,
            settings={trusted: True},
            model="fairchem checkpoint={run}/a.pt trust_pickle=true",
        )
    )
    made = HOSTS["fairchem"].settings(Path(read.base), read.settings)
    assert made["task"]["distill"]["teacher"]["trust_pickle"] is True
    run = Comparison(read, tmp_path / "out").runs()[0]
    named, _ = Comparison(read, tmp_path / "out")._student(run)
    assert named == f"fairchem checkpoint={run.folder}/a.pt trust_pickle=true"


def test_includes_that_are_no_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("includes: {a: 1}")
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "settings": {}}
    read = read_experiment(write_experiment(tmp_path, **changes, arms=ARMS))
    with pytest.raises(ValueError, match=r"base\.yml: includes: expected a list of files"):
        Comparison(read, tmp_path / "out")
