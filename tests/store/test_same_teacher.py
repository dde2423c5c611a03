"""A refusal to mix two teachers names each of them by its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_plugins.cli import main
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.store import StoreError, TargetStore


def stores(folder: Path) -> list[TargetStore]:
    """Return two stores, of the teachers ada and bob."""
    return [
        TargetStore.create(folder / name, Manifest(name, "f", {"energy": "float64"}))
        for name in ("ada", "bob")
    ]


def test_merge_says_whose_teacher_is_another(tmp_path: Path) -> None:
    ada, bob = stores(tmp_path)
    with pytest.raises(StoreError, match="bob was made with another teacher: 'bob', not 'ada'"):
        ada.merge([bob])


def test_the_command_does_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores(tmp_path)
    words = ["merge", str(tmp_path / "ada"), str(tmp_path / "bob"), "--into", str(tmp_path / "c")]
    assert main(words) == 2
    assert "bob was made with another teacher: 'bob', not 'ada'" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
