"""The recipe of Taniguchi 2024: its commands, and each of its experiments on a few structures."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare import read_experiment
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.config import read_config
from kd_plugins.structures import read_structures
from kd_plugins.teachers import load_teacher
from tests.evaluate.test_crystals import DISORDERED
from tests.hosts import in_one_environment
from tests.house import ROOT

pytest.importorskip("chgnet")
from kd_plugins.chgnet.settings import TrainingSettings  # noqa: E402

RECIPE = ROOT / "recipes" / "chgnet_organic"
SMALL = {
    "crystals": {"train": ["co2"], "selection": ["urea"], "test": ["ammonia"]},
    "structures": {"train": 2, "selection": 1},
    "seed": 0,
    "teacher": "chgnet+d3",
    "labels": "chgnet",
    "relaxed_by": "chgnet+d3",
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
    """A folder with a study of three crystals in runs/organic, labelled; the folder of crystals."""
    folder = tmp_path_factory.mktemp("organic")
    x23 = shared_file("molecular_crystals/x23/index.csv").parent
    (folder / "small.yml").write_text(yaml.safe_dump(SMALL))
    out = folder / "runs" / "organic"
    run("label", "--x23", x23, "--out", out, "--settings", folder / "small.yml")
    return folder, x23


def shrunk(name: str, folder: Path, crystals: Any, **settings: Any) -> Path:
    """Write an experiment with the first point of each axis, one seed, and other settings."""
    raw = yaml.safe_load((RECIPE / f"{name}.yml").read_text())
    raw["base"] = str((RECIPE / raw["base"]).resolve())
    raw["seeds"] = [0]
    for axis, points in raw["sweep"].items():
        first = points[0] if isinstance(points, list) else next(iter(points))
        raw["sweep"][axis] = [first] if isinstance(points, list) else {first: points[first]}
    raw["settings"] = {**raw.get("settings", {}), **settings}
    raw["measure"]["crystals"] |= crystals
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def metrics_of(out: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each arm."""
    paths = sorted(out.glob("runs/*/seed0/evaluation.json"))
    return {path.parts[-3]: json.loads(path.read_text())["metrics"] for path in paths}


@in_one_environment
def test_table_1_is_one_sweep(study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft, hard and both, volumes by rigid scans; a second call does nothing again."""
    folder, x23 = study
    monkeypatch.chdir(folder)
    crystals = {"structures": [str(x23 / "co2.cif")]}
    path = shrunk("table1", folder, crystals, **{"optim.steps": 1})
    # Two structures and a batch of 32.
    raw = yaml.safe_load(path.read_text())
    raw["sweep"]["N"] = {10: {"train.size": 2}}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))

    out = folder / "table1"
    assert main(["compare", str(path), "--out", str(out)]) == 0
    metrics = metrics_of(out)
    assert list(metrics) == ["both-0.1-0.1-10", "hard-10", "soft-10"]
    assert all("teacher_volume_error_percent" in one for one in metrics.values())
    assert not any("rmsd15" in one for one in metrics.values())

    times = {one: one.stat().st_mtime_ns for one in out.rglob("*.json")}
    assert main(["compare", str(path), "--out", str(out)]) == 0
    again = {one for one, time in times.items() if one.stat().st_mtime_ns != time}
    assert not {one.name for one in again} & {"evaluation.json", "trained.json", "curves.json"}
    assert main(["report", str(out), "-o", str(folder / "table1.html")]) == 0
    assert "both-0.1-0.1" in (folder / "table1.html").read_text(encoding="utf-8")


@in_one_environment
def test_the_papers_own_sweep_on_a_few_frames(
    shared_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPtrj's organic frames, a teacher's store, and a list of COD's crystals, one disordered."""
    packed = shared_file("mptrj/mptrj_organic_elements.json.xz")
    x23 = shared_file("molecular_crystals/x23/index.csv").parent
    monkeypatch.chdir(tmp_path)
    everything = json.loads(lzma.decompress(packed.read_bytes()))
    sizes = {
        name: min(len(frame["structure"]["sites"]) for frame in frames.values())
        for name, frames in everything.items()
    }
    few = {}
    for name in sorted(sizes, key=lambda name: sizes[name])[:14]:
        frame_id = next(iter(everything[name]))
        few[name] = {frame_id: everything[name][frame_id]}
    Path("mptrj.json").write_text(json.dumps(few))
    words = ["mptrj", "mptrj.json", "--kind", "organic", "--out", "mptrj_organic.json"]
    assert main(words) == 0
    store = ["--store", "runs/mptrj/pfp"]
    assert main(["label", "mptrj_organic.json", "--teacher", "chgnet", *store]) == 0

    Path("cod").mkdir()
    Path("cod/co2.cif").write_bytes((x23 / "co2.cif").read_bytes())
    Path("cod/half.cif").write_text(DISORDERED)
    Path("cod_ids.txt").write_text("co2\nhalf\n")
    # Of a single validation frame the zero of energy is anywhere.
    allow = ["energy_zero", "validation_zero"]
    changes = {"optim.epochs": 1, "validation.size": 1, "allow": allow}
    path = shrunk("paper_table1", tmp_path, {"force_tolerance": 5.0}, **changes)
    assert main(["compare", str(path), "--out", "out"]) == 0
    metrics = metrics_of(Path("out"))
    assert list(metrics) == ["both-0.1-0.1-10", "hard-10", "soft-10"]
    for one in metrics.values():
        assert {"volume_error_percent", "density_error", "rmsd15"} <= set(one)
    one = json.loads(Path("out/runs/soft-10/seed0/evaluation.json").read_text())
    assert list(one["left_out"]) == ["half"]

    run("figures", "--kinds", "mptrj_organic_kinds.json", "--out", "figures")
    run("figures", "--crystals", "soft=out/runs/soft-10/seed0", "--out", "figures")
    assert {path.name for path in Path("figures").iterdir()} == {"energies.png", "crystals.png"}


@pytest.mark.parametrize("path", sorted(RECIPE.glob("*.yml")), ids=lambda path: path.stem)
def test_every_arm_of_every_experiment_is_a_training(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every point; settings of a study are no experiment."""
    raw = yaml.safe_load(path.read_text())
    if "arms" not in raw:
        pytest.skip("settings of a study")
    raw["base"] = str((RECIPE / raw["base"]).resolve())
    (tmp_path / path.name).write_text(yaml.safe_dump(raw, sort_keys=False))
    monkeypatch.chdir(tmp_path)

    experiment = read_experiment(Path(path.name))
    for name, arm in experiment.swept_arms.items():
        changes = {**experiment.settings, **arm.changes, "out": f"runs/{name}"}
        settings = HOSTS["chgnet"].settings(Path(experiment.base), changes)
        read_config(TrainingSettings, settings, name)
    expected = {"table1": 27 * 3, "paper_table1": 27 * 5, "sizes": 24, "mptrj68": 9}
    assert len(experiment.swept_arms) == expected.get(path.stem, len(experiment.arms))


def test_crystals_are_deformed_from_rest(study: tuple[Path, Path]) -> None:
    """In the cells of the experiments, whose atoms are not at rest."""
    out, x23 = study[0] / "runs" / "organic", study[1]
    calculator = load_teacher("chgnet+d3").calculator
    for name in ("co2", "urea"):
        (relaxed,) = read_structures([out / "relaxed" / f"{name}.extxyz"])
        (measured,) = read_structures([x23 / f"{name}.cif"])
        assert np.allclose(relaxed.atoms.cell, measured.atoms.cell, atol=1e-6)
        largest = [
            np.linalg.norm(calculator.get_forces(one.atoms), axis=1).max()
            for one in (relaxed, measured)
        ]
        assert largest[0] < 0.06 < 0.3 < largest[1]


def test_another_study_is_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    """So is a folder without one, and a crystal in two groups."""
    out, x23 = study[0] / "runs" / "organic", study[1]
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump({**SMALL, "seed": 1}))
    words = ("--x23", x23, "--settings", other)
    assert "holds a study with other settings" in stopped("label", "--out", out, *words)
    empty = ("--out", tmp_path / "empty", "--mptrj", tmp_path)
    assert "holds no study; run label.py first" in stopped("replay", *empty)
    crystals = {**SMALL["crystals"], "test": ["urea"]}  # type: ignore[dict-item]
    other.write_text(yaml.safe_dump({**SMALL, "crystals": crystals}))
    assert "urea stands in two groups" in stopped("label", "--out", tmp_path / "twice", *words)


@in_one_environment
def test_replay_is_of_other_materials_than_what_is_tested(
    study: tuple[Path, Path], shared_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the table of forgetting names the crystals that broke, which a mean hides."""
    out = study[0] / "runs" / "organic"
    mptrj = shared_file("mptrj/mptrj_random_1k.extxyz.xz")
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

    crystals = [everything[name] for name in replayed]
    found = forget.predictions("pretrained", "chgnet", crystals)
    assert found["ids"] == replayed
    assert all(0 < error < 1 for error in found["force_mae"])

    before = {"ids": ["a", "b", "c"], "energy_per_atom": [0.0] * 3, "force_mae": [0.04, 0.01, 0.1]}
    after = {**before, "force_mae": [0.06, 0.035, 40.0]}
    lines = list(forget.table({"pretrained": before, "arm-seed0": after}))
    assert lines[-1] == "| arm | 1 | 0.0 | 13365.0 | 60.0 | 1.0 (c) |"


def test_table_2_of_measured_tensors(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    """40 compounds; PFP v4 and the mean model as published elsewhere, to the last digit."""
    tensors = shared_file("molecular_crystals/elastic/stiffness_tensors_rev.csv")
    run("elastic", "--tensors", tensors, "--out", tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text.startswith("40 compounds")
    assert "| E_RH | 5.10 (4.88) | 3.81 (3.55) |" in text
