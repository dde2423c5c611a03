"""The recipe for few labels: its draws, its weights, and a training of a few steps."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk

from kd_plugins.cli import main
from kd_plugins.compare.experiment import read_experiment
from kd_plugins.teachers.registry import load_teacher
from tests.hosts import in_one_environment
from tests.house import ROOT

pytest.importorskip("hippynn")
pytestmark = [pytest.mark.slow, in_one_environment]
RECIPE = ROOT / "recipes" / "few_labels"
COPPER = "metals/mlearn_Cu_train.extxyz.xz"


def load(name: str) -> ModuleType:
    """Return a script of the recipe as a module."""
    spec = importlib.util.spec_from_file_location(f"few_labels_{name}", RECIPE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def settings_of(shared_file: Callable[[str], Path], **changes: Any) -> dict[str, Any]:
    """Return the settings that compare gives the script for an arm of copper."""
    settings = yaml.safe_load((RECIPE / "copper.yml").read_text())["settings"]
    return {**settings, "labelled": str(shared_file(COPPER)), "seed": 0, **changes}


def test_draws_depend_on_the_seed_and_keep_the_range(shared_file: Callable[[str], Path]) -> None:
    script = load("train")
    draws = [script.draw(settings_of(shared_file, labels=20, seed=seed)) for seed in (0, 0, 1)]
    first, again, other = ([one.structure_id for one in draw] for draw in draws)
    assert first == again != other
    rms = [np.sqrt(np.square(one.labels["forces"]).mean()) for one in draws[0]]
    assert len(rms) == 20 and min(rms) >= 0.3 and max(rms) <= 0.6
    assert len(script.draw(settings_of(shared_file, labels=None, force_rms=None))) == 262


def test_a_structure_weighs_the_same_whoever_labelled_it() -> None:
    weights = load("train").share_out({"energy": 1, "forces": 30, "l2": 1e-6}, 5, 95)
    for name, whole in (("energy", 1), ("forces", 30)):
        assert weights[name] / 5 == pytest.approx(weights[f"teacher_{name}"] / 95)
        assert weights[name] + weights[f"teacher_{name}"] == pytest.approx(whole)
    alone = load("train").share_out({"energy": 1, "forces": 30}, 5, 0)
    assert alone == {"energy": 1, "forces": 30}


@pytest.mark.parametrize("arm", ["control", "student"])
def test_a_training_leaves_the_student_of_its_last_step(
    arm: str, shared_file: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    script = load("train")
    pool, generator = tmp_path / "pool.extxyz", np.random.default_rng(0)
    for index in range(4):
        atoms = bulk("Cu", cubic=True, a=3.58) * 2
        atoms.positions += generator.normal(scale=0.1, size=atoms.positions.shape)
        atoms.info["structure_id"] = f"pool/{index}"
        ase.io.write(pool, atoms, append=True)
    changes = {"out": str(tmp_path / "run"), "pool": str(pool), "labels": 2, "steps": 9}
    settings = settings_of(shared_file, **changes)
    if arm == "student":
        # The teacher labels what has labels too, which tells its zero of energy.
        labelled = tmp_path / "labelled.extxyz"
        for one in script.draw(settings):
            one.atoms.info["structure_id"] = one.structure_id
            ase.io.write(labelled, one.atoms, append=True)
        settings["store"] = str(tmp_path / "store")
        words = ["label", str(pool), str(labelled), "--teacher", "emt"]
        assert main([*words, "--store", settings["store"]]) == 0

    script.train(settings)
    printed = capsys.readouterr().out
    assert ("aligned to the labels of 2 training structures" in printed) == (arm == "student")
    run = tmp_path / "run"
    (last,) = (run / "training").glob("model_epoch_*.pt")
    weights, kept = (
        torch.load(path, weights_only=True) for path in (last, run / "student" / "best_model.pt")
    )
    assert all(torch.equal(weights[n], kept[n]) for n in kept if torch.is_tensor(kept[n]))
    student = load_teacher(f"hippynn folder={run / 'student'}")
    targets = next(iter(student.predict([ase.io.read(pool, 0)], ["forces"])))
    assert np.isfinite(np.asarray(targets["forces"])).all()


@pytest.mark.parametrize("metal", ["copper", "molybdenum"])
def test_label_sets_are_experiments_of_the_same_student(
    metal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, mild = load("label_sets"), read_experiment(RECIPE / f"{metal}.yml")
    words = [str(RECIPE / f"{metal}.yml"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["label_sets.py", *words])
    script.main()
    for name, (count, is_mild) in script.SETS.items():
        found = read_experiment(tmp_path / f"{name}.yml")
        assert found.settings["labels"] == count
        assert (found.settings["force_rms"] is not None) == is_mild
        same = set(mild.settings) - {"labels", "force_rms"}
        assert all(found.settings[key] == mild.settings[key] for key in same)
        assert found.arms == {arm: mild.arms[arm] for arm in script.ARMS}
        assert Path(found.base) == RECIPE / "train.py"
