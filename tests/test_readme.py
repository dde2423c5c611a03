"""What README shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kd_plugins.config import read_config
from kd_plugins.fairchem.settings import DistillSettings
from kd_plugins.teachers import label
from tests.house import ROOT
from tests.teachers import slow

README = (ROOT / "README.md").read_text()


def blocks(language: str, holding: str) -> list[str]:
    """Return the fenced blocks of a language that hold some text."""
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return [block for block in found if holding in block]


def test_python_of_the_core_runs() -> None:
    """As a reader would paste it."""
    (block,) = blocks("python", "crack_loss")
    exec(compile(block, "README.md", "exec"), {})


def test_python_of_the_store_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On what the command above it would have written."""
    monkeypatch.chdir(tmp_path)
    slow.write(Path("train.extxyz"), 3)
    label(slow.frames(3), "emt", "targets", progress=False)
    (block,) = blocks("python", "TargetStore.open")
    exec(compile(block, "README.md", "exec"), {})


def test_yaml_of_fairchem_is_valid() -> None:
    """Every key of the block is one that the adapter knows."""
    yaml = pytest.importorskip("yaml")
    found = blocks("yaml", "distill")
    assert len(found) == 2
    for block in found:
        read_config(DistillSettings, yaml.safe_load(block)["task"]["distill"], "task.distill")
