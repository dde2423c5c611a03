"""What the first version left on disk is read, and its runs end as they would have ended then.

`make.py` beside this file wrote `0.1.0.tar.xz`, and how each run ends when it is not stopped.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_plugins import TargetStore
from kd_plugins.cli import main
from tests.golden import make
from tests.hosts import ABSENT_HOSTS

ARCHIVE = Path(__file__).with_name("0.1.0.tar.xz")
SAME = {"rel": 1e-4, "abs": 1e-6}
"""Another processor rounds otherwise, and a few steps of training carry that on."""


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in a copy of the first version's files; return how its runs end."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return json.loads(Path(make.EXPECTED).read_text())


def test_a_store_is_read_verified_and_labelled_further(
    golden: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "few"]) == 0
    assert main(["verify", "all"]) == 0
    held = TargetStore.open("all")
    energies = {name: held[name].values["energy"].item() for name in held.ids()}
    assert energies == pytest.approx(golden["store"])

    words = ["--quantities", "energy", "forces", "stress", "atomic_energies"]
    capsys.readouterr()
    assert main(["label", "cells.extxyz", "--teacher", "emt", "--store", "few", *words]) == 0
    assert "labelled 2, there already 4" in capsys.readouterr().out
    assert main(["verify", "few"]) == 0
    further = TargetStore.open("few")
    for name in held.ids():
        for quantity, value in held[name].values.items():
            other = further[name].values[quantity]
            np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)


def test_an_evaluation_is_not_measured_again(golden: dict[str, Any]) -> None:
    """Its speed is that of another machine, so a new measurement would be seen."""
    words = ["--student", "emt", "--reference", "store.extxyz", "--dynamics", "cell.extxyz"]
    words += ["--steps", "40", "--repeats", "1", "--cutoff", "5", "--out", "evaluation"]
    assert main(["evaluate", *words]) == 0
    found = json.loads(Path("evaluation/evaluation.json").read_text())["metrics"]
    assert {name: found[name] for name in golden["evaluation"]} == golden["evaluation"]


def test_a_comparison_goes_on(golden: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Only the run that was lost is trained and measured."""
    logs = {path: path.stat().st_mtime_ns for path in Path("compare").rglob("curves.json")}
    assert main(["compare", "experiment.yml", "--out", "compare"]) == 0
    assert "two against one: force RMSE" in capsys.readouterr().out
    trained = [path for path, time in logs.items() if path.stat().st_mtime_ns != time]
    assert trained == [Path("compare/runs/two/seed1/curves.json")]
    for folder, metrics in golden["compare"].items():
        found = json.loads((Path(folder) / "evaluation.json").read_text())["metrics"]
        assert {name: found[name] for name in metrics} == pytest.approx(metrics, rel=1e-3)
    assert main(["report", "compare", "-o", "page.html"]) == 0
    assert "two against one" in Path("page.html").read_text(encoding="utf-8")


def test_a_fairchem_run_resumes(golden: dict[str, Any]) -> None:
    """From its sidecar, in the middle of the second epoch."""
    if "fairchem" in ABSENT_HOSTS:
        pytest.skip("fairchem-core is not installed")
    from kd_plugins.fairchem import compat

    compat.install()
    from tests.fairchem import tiny

    assert Path("fairchem/checkpoints/run/kd_checkpoint.pt").is_file()
    found = make.sizes(tiny.run(make.fairchem_settings(), tiny.parameters))
    assert found == pytest.approx(golden["fairchem"], **SAME)


def test_a_chgnet_run_resumes(golden: dict[str, Any]) -> None:
    pytest.importorskip("chgnet")
    from kd_plugins.chgnet import DistillTrainer

    trainer = DistillTrainer.load("chgnet/last.pth.tar")
    trainer.train(*make.chgnet_loaders(), save_dir="chgnet")
    found = make.sizes(dict(trainer.model.mlp.named_parameters()))
    assert found == pytest.approx(golden["chgnet"], **SAME)


def test_a_hippynn_run_resumes(golden: dict[str, Any]) -> None:
    pytest.importorskip("hippynn")
    from hippynn.experiment import load_checkpoint, train_model
    from hippynn.tools import active_directory

    run = Path("hippynn").resolve()
    paths = [str(run / name) for name in ("experiment_structure.pt", "checkpoint_epoch_1.pt")]
    held = load_checkpoint(*paths, weights_only=False)
    database = make.hippynn_database()
    modules = held["training_modules"]
    database.inputs = modules.evaluator.db_info["inputs"]
    database.targets = modules.evaluator.db_info["targets"]
    again = Path("again").resolve()
    again.mkdir()
    with active_directory(str(again)):
        parts = held["controller"], held["metric_tracker"]
        train_model(modules, database, *parts, None, None, store_structure_file=False, quiet=True)
    found = make.sizes(dict(modules.model.named_parameters()))
    assert found == pytest.approx(golden["hippynn"], **SAME)


def test_a_hippynn_run_is_a_potential(golden: dict[str, Any]) -> None:
    pytest.importorskip("hippynn")
    words = ["--reference", "store.extxyz", "--out", "measured"]
    assert main(["evaluate", "--student", "hippynn", "folder=hippynn", *words]) == 0
