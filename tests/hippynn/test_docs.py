"""The code of docs/hippynn.md runs, block after block, with fewer epochs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch

from kd_plugins.structures.readers import read_structures
from tests.hippynn import fixtures
from tests.house import ROOT
from tests.test_readme import write_frames

PAGE = "docs/hippynn.md"
QUICK = {
    "script": ((", 100\n", ", 6\n"), ("store_every=10", "store_every=2")),
    "resumed": (("store_every=10", "store_every=2"),),
    "schedule": (),
    "few labels": (),
}
"""Block to replacements that make it run with few epochs."""


@pytest.mark.filterwarnings("ignore:May override plots")
def test_docs_run_and_resumed_training_equals_uninterrupted(
    shared_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    structures = list(read_structures([shared_file(fixtures.MO)]))
    small = [f for f in structures if len(f.atoms) < 50]
    write_frames(Path("train.extxyz"), small[:24])
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    script, resumed, schedule, few_labels = (
        shorten(block, name) for block, name in zip(found, QUICK, strict=True)
    )

    names: dict[str, Any] = {}
    exec(compile(script, PAGE, "exec"), names)
    assert (tmp_path / "my-student" / "best_model.pt").is_file()

    # A copy is kept, and all files that were written after the checkpoint are deleted.
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "student", whole)
    for path in (tmp_path / "student").iterdir():
        kept = path.name in ("experiment_structure.pt", "checkpoint_epoch_2.pt")
        if path.is_file() and not kept:
            path.unlink()
    exec(compile(resumed, PAGE, "exec"), names)
    assert same(tmp_path / "student" / "model_epoch_4.pt", whole / "model_epoch_4.pt")
    metrics = torch.load(whole / "training_metrics.pt", weights_only=False)
    resumed_metrics = names["metrics"]
    assert resumed_metrics.epoch_metric_values == metrics.epoch_metric_values
    best = torch.load(whole / "best_model.pt", weights_only=True)
    assert is_same(resumed_metrics.best_model, best)

    exec(compile(schedule, PAGE, "exec"), names)
    assert names["schedule"].weights == {"atomic_energies": 0.0}
    assert (tmp_path / "fading" / "best_model.pt").is_file()

    write_frames(Path("labelled.extxyz"), small[:6])
    ase.io.write("pool.extxyz", [f.atoms for f in small[6:24]])
    exec(compile(few_labels, PAGE, "exec"), names)
    assert (tmp_path / "few" / "best_model.pt").is_file()


def shorten(block: str, name: str) -> str:
    for written, fewer in QUICK[name]:
        assert written in block
        block = block.replace(written, fewer)
    return block


def same(one: Path, other: Path) -> bool:
    """Return whether two files hold the same weights."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    return is_same(first, second)


def is_same(one: Any, other: Any) -> bool:
    """Return whether two states are the same to the bit."""
    pairs = [(tensor, other[name]) for name, tensor in one.items() if torch.is_tensor(tensor)]
    return one.keys() == other.keys() and bool(pairs) and all(torch.equal(*pair) for pair in pairs)
