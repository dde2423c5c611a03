"""The recipe of Taniguchi 2024, from two crystals to its tables, through its own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.hosts import in_one_environment
from tests.house import ROOT

pytest.importorskip("chgnet")
RECIPE = ROOT / "recipes" / "chgnet_organic"
SMALL = {
    "crystals": {"train": ["co2"], "selection": ["urea"], "test": ["ammonia"]},
    "structures": {"train": 2, "selection": 1},
    "seed": 0,
    "teacher": "chgnet+d3",
    "labels": "chgnet",
}
pytestmark = pytest.mark.slow


def run(name: str, *words: object) -> str:
    """Run one of the recipe's commands, and return what it prints."""
    command = [sys.executable, "-W", "ignore", str(RECIPE / f"{name}.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def stopped(name: str, *words: object) -> str:
    """Run a command that must stop, and return its last line."""
    command = [sys.executable, "-W", "ignore", str(RECIPE / f"{name}.py"), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    return found.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, shared_file: Callable[[str], Path]
) -> tuple[Path, Path]:
    """A study of three crystals, labelled, and the folder of crystals."""
    folder = tmp_path_factory.mktemp("organic")
    x23 = shared_file("molecular_crystals/x23/index.csv").parent
    (folder / "small.yml").write_text(yaml.safe_dump(SMALL))
    run("label", "--x23", x23, "--out", folder / "study", "--settings", folder / "small.yml")
    return folder / "study", x23


@in_one_environment
def test_from_crystals_to_tables(study: tuple[Path, Path]) -> None:
    """Label, train, evaluate, sweep, report; a second call of each does nothing again."""
    out, _ = study
    run("train", "--out", out, "--arms", "recommended", "--seeds", 0)
    record = out / "students" / "recommended-seed0" / "record.json"
    first = json.loads(record.read_text())
    assert first["steps"] == 2400
    assert first["errors"][-1]["train_soft_s"] < 0.1 * first["errors"][0]["train_soft_s"]
    run("train", "--out", out, "--arms", "recommended", "--seeds", 0)
    assert json.loads(record.read_text()) == first
    run("evaluate", "--out", out)
    errors = {
        name: json.loads((out / "relaxed" / name / "ammonia.json").read_text())["error_percent"]
        for name in ("teacher", "pretrained", "recommended-seed0")
    }
    apart = {name: abs(error - errors["teacher"]) for name, error in errors.items()}
    assert apart["recommended-seed0"] < apart["pretrained"]  # of two structures it has learned
    run("sweep", "ratios", "--out", out, "--arms", "soft", "--seeds", 0)
    text = run("report", "--out", out)
    assert "| recommended | 1 |" in text
    assert "| 0 | 0 | 1 |" in text
    assert all((out / name).stat().st_size > 5000 for name in ("volumes.png", "curves.png"))


def test_another_study_is_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    """So is a folder without one, and a crystal in two groups."""
    out, x23 = study
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump({**SMALL, "seed": 1}))
    words = ("--x23", x23, "--settings", other)
    assert "holds a study with other settings" in stopped("label", "--out", out, *words)
    assert "holds no study; run label.py first" in stopped("train", "--out", tmp_path / "empty")
    crystals = {**SMALL["crystals"], "test": ["urea"]}  # type: ignore[dict-item]
    other.write_text(yaml.safe_dump({**SMALL, "crystals": crystals}))
    assert "urea stands in two groups" in stopped("label", "--out", tmp_path / "twice", *words)


@in_one_environment
def test_replay_is_of_other_materials_than_what_is_tested(
    study: tuple[Path, Path], shared_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the table of forgetting names the crystals that broke, which a mean hides."""
    out, mptrj = study[0], shared_file("mptrj/mptrj_random_1k.extxyz.xz")
    run("replay", "--out", out, "--mptrj", mptrj, "--count", 2)

    monkeypatch.syspath_prepend(str(RECIPE))
    forget, made = import_module("forget"), import_module("replay")
    # Other recipes have scripts of the same names, which later tests import.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(RECIPE)):
            del sys.modules[name]

    tested = {made.material(one) for one in forget.frames(mptrj)}
    everything = {one.structure_id: one for one in forget.small_inorganic(mptrj)}
    replayed = [one.structure_id for one in forget.read_structures([out / "replay.extxyz"])]
    assert len(replayed) == 2
    assert not tested & {made.material(everything[name]) for name in replayed}

    before = {"ids": ["a", "b", "c"], "energy_per_atom": [0.0] * 3, "force_mae": [0.04, 0.01, 0.1]}
    after = {**before, "force_mae": [0.06, 0.035, 40.0]}
    (out / "forgetting").mkdir()
    for name, record in {"pretrained": before, "arm-seed0": after}.items():
        (out / "forgetting" / f"{name}.json").write_text(json.dumps(record))
    assert "| arm | 1 | 0.0 | 13365.0 | 60.0 | 1.0 (c) |" in run("report", "--out", out)
