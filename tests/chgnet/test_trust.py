"""Checkpoints of strangers: a student's file is read without running what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from chgnet.model import CHGNet

from kd_plugins.chgnet.command import _load_student
from kd_plugins.chgnet.run_folder import read_model
from kd_plugins.chgnet.settings import StudentSettings


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        """Return the call."""
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    """A checkpoint as CHGNet's Trainer writes it."""
    return {"model": CHGNet.load(verbose=False).as_dict()}


def test_pickled_code_in_a_checkpoint_needs_trust_pickle(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    """By the key that the message names."""
    path, mark = tmp_path / "theirs.pth.tar", tmp_path / "mark"
    torch.save({**saved, "history": Touches(mark)}, path)

    with pytest.raises(ValueError, match=r"student.model: .*theirs.*posix.system.*") as caught:
        _load_student(StudentSettings(str(path)))
    assert str(caught.value).endswith("set student.trust_pickle: true")
    assert not mark.exists()
    assert isinstance(_load_student(StudentSettings(str(path), trust_pickle=True)), CHGNet)
    assert mark.exists()


def test_a_plain_checkpoint_loads_without_trust(
    saved: dict[str, Any], tmp_path: Path, monkeypatch
) -> None:
    """And its path may begin with ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(saved, tmp_path / "mine.pth.tar")
    assert isinstance(_load_student(StudentSettings("~/mine.pth.tar")), CHGNet)


def test_a_model_that_cannot_be_built_is_named(saved: dict[str, Any], tmp_path: Path) -> None:
    """With CHGNet's reason, in one line."""
    held = saved["model"]
    for change in ({"atom_fea_dim": 3}, {"composition_model": "x"}):
        changed = {**held, "model_args": {**held["model_args"], **change}}
        torch.save({"model": changed}, tmp_path / "a.pth.tar")
        with pytest.raises(ValueError, match="a.pth.tar is no CHGNet checkpoint") as caught:
            read_model(tmp_path / "a.pth.tar", trust_pickle=False, remedy="")
        assert "\n" not in str(caught.value)
