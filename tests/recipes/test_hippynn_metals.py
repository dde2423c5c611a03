"""The recipe of paper 003 through its own commands, on a few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.house import ROOT

pytest.importorskip("hippynn")
RECIPE = ROOT / "recipes" / "hippynn_metals"
pytestmark = pytest.mark.slow


def run(name: str, *words: object) -> str:
    """Run one of the recipe's commands, and return what it prints."""
    command = [sys.executable, "-W", "ignore", str(RECIPE / f"{name}.py"), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_from_structures_to_tables(tmp_path: Path, shared_file: Callable[[str], Path]) -> None:
    """A teacher, control and students; a second call trains nothing again."""
    settings = yaml.safe_load((RECIPE / "study.yml").read_text())
    settings |= {"steps": 40, "validation": 8}
    (tmp_path / "few.yml").write_text(yaml.safe_dump(settings))
    data, out = shared_file("metals/mlearn_Mo_test.extxyz.xz").parent, tmp_path / "mo"
    words = ("--data", data, "--out", out, "--settings", tmp_path / "few.yml")
    words = (*words, "--seeds", 0, "--shares", 0.1)
    methods = ("control_10", "student_early", "student_extra", "energies_both")
    run("train", *words, "--methods", *methods)
    records = {path.parent.name: path for path in out.glob("runs/*/record.json")}
    assert sorted(records) == sorted(
        [*(f"{name}-tiny-0.1-seed0" for name in methods), "teacher-large-1-seed0"]
    )
    times = {name: path.stat().st_mtime_ns for name, path in records.items()}
    run("train", *words, "--methods", *methods)
    assert times == {name: path.stat().st_mtime_ns for name, path in records.items()}
    small = "control_10-tiny-0.1-seed0"
    held = {name: json.loads(path.read_text()) for name, path in records.items()}
    assert held["student_extra-tiny-0.1-seed0"]["structures"] == 3 * 19
    assert (
        held["teacher-large-1-seed0"]["weights"] > 10 * held["control_10-tiny-0.1-seed0"]["weights"]
    )
    models = ("teacher-large-1-seed0", small)
    run("dynamics", "--out", out, "--models", *models, "--repeats", 3, "--no-liquid")
    costs = [json.loads((out / "dynamics" / f"{m}.json").read_text())["costs"][0] for m in models]
    assert costs[0]["bytes"] > costs[1]["bytes"] > 0
    text = run("report", "--out", out)
    assert "| student_extra | control_10 | tiny | 0.1 | 1 |" in text
    assert (out / "tables.md").read_text().strip() == text.strip()


def test_the_papers_numbers_are_in_the_methods() -> None:
    """A.1 and Table 1."""
    methods = yaml.safe_load((RECIPE / "methods.yml").read_text())
    assert methods["control_10"] == {"energy": 1, "forces": 10}
    assert methods["student"]["forces"] == 30 and methods["student"]["atomic_energies"] == 100
    rows = methods["born_again"]
    assert [weight for _, weight in rows["atomic_energies"]] == [200, 160, 120, 80, 40, 0]
    assert [weight for _, weight in rows["forces"]] == [75, 63, 51, 39, 27, 15]
    assert [share for share, _ in rows["energy"]] == [0, 0.4, 0.5, 0.6, 0.7, 0.8]
