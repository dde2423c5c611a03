"""Comparisons from arms and seeds to a verdict and a page, also after a stop."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.compare.experiment import fill_fields
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.files import write_json
from tests.compare.fixtures import (
    MAIN,
    write_experiment,
    write_scripted,
    write_taught,
    write_without_training,
)
from tests.hosts import in_one_environment


@in_one_environment
def test_quickstart_from_targets_to_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart's own commands, in its order."""
    pytest.importorskip("hippynn")
    write_taught(tmp_path)
    out = tmp_path / "out"
    compare = ["compare", str(write_experiment(tmp_path)), "--out", str(out), "--workers", "2"]
    capsys.readouterr()
    assert main(compare) == 0
    worth, sentence = capsys.readouterr().out.splitlines()
    assert re.match(
        r"best student \w+ beside its teacher emt .*: forces off by [\d.]+ % .* g\(r\)", worth
    )
    written = json.loads((out / "verdict.json").read_text())
    assert written["worth"]["sentence"] == worth
    assert [one["sentence"] for one in written["verdicts"]] == [sentence]
    assert re.match(
        r"student against control: force RMSE .* \(1 seed, too few seeds to tell\).* training took",
        sentence,
    )

    runs = {path.relative_to(out): path.read_text() for path in out.rglob("evaluation.json")}
    assert len(runs) == 2
    one = json.loads(runs[Path("runs/student/seed0/evaluation.json")])
    assert one["metrics"]["speedup"] > 0 and one["train_seconds"] > 0
    assert len(one["curves"]["valid teacher_forces_rmse"]["epochs"]) >= 2

    bars = ["--arm", "student", "--require", "teacher_force_rmse<1e-9"]
    assert main([*compare, *bars]) == 1
    assert "required: < 1e-09" in capsys.readouterr().err
    assert {
        path.relative_to(out): path.read_text() for path in out.rglob("evaluation.json")
    } == runs

    pages = [tmp_path / name / "report.html" for name in ("one", "two")]
    for page in pages:
        assert main(["report", str(out), "-o", str(page)]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    page = pages[0].read_text()
    assert 0 < page.index(worth.split(":")[0]) < page.index(sentence.split(":")[0])


def test_arms_of_a_seed_differ_in_their_settings_alone(tmp_path: Path) -> None:
    """As they are written for the script."""
    experiment = read_experiment(write_experiment(tmp_path, seeds=[0, 1]))
    comparison = Comparison(experiment, tmp_path / "out")

    written = {}
    for run in comparison.runs():
        run.folder.mkdir(parents=True)
        changes = fill_fields(
            {**experiment.settings, **experiment.arms[run.arm]}, {"run": run.folder}
        )
        command = HOSTS["script"].command(Path("x.py"), run.folder, run.seed, changes)
        settings = yaml.safe_load(Path(command[-1]).read_text())
        assert settings.pop("out") == str(run.folder)
        written[run.arm, run.seed] = settings

    for seed in (0, 1):
        control, student = written["control", seed], written["student", seed]
        assert student["loss"].pop("atomic_energies") == 100
        assert control == student
        assert control.pop("seed") == seed


def test_two_workers_measure_the_same_numbers_as_one(tmp_path: Path) -> None:
    """Except times and what follows from them."""
    words = write_without_training(tmp_path)
    assert main([*words, str(tmp_path / "two")]) == 0
    assert main([*words[:2], "--out", str(tmp_path / "one")]) == 0
    one, two = (timeless(tmp_path / name) for name in ("one", "two"))
    assert one == two and len(one) == 2
    assert {"rdf_distance", "drift", "volume_error_percent"} <= one["control"]["metrics"].keys()


def timeless(out: Path) -> dict[str, Any]:
    """Return each arm's evaluation without times."""
    evaluations = {}
    for path in out.glob("runs/*/seed0/evaluation.json"):
        one = evaluations[path.parts[-3]] = json.loads(path.read_text())
        for name in ("train_seconds", "train_cpu_seconds", "speed", "teacher"):
            del one[name]
        for name in ("microseconds_per_atom", "nanoseconds_per_day", "speedup", "memory_ratio"):
            one["metrics"].pop(name, None)
    return evaluations


def test_verdict_names_cpu_time_where_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations of earlier versions hold wall-clock time alone, which is not compared."""
    words = write_scripted(tmp_path, seeds=[0])
    assert main(words) == 0
    assert re.search(r"; training took \d\.\d\d times the CPU time\.", capsys.readouterr().out)
    for path in tmp_path.rglob("evaluation.json"):
        one = json.loads(path.read_text())
        assert one["train_cpu_seconds"] > 0
        write_json(path, {name: one[name] for name in one if name != "train_cpu_seconds"})
    assert main(words) == 0
    assert "training took" not in capsys.readouterr().out


def test_a_folder_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Its settings have no options, its trainings no CPU time."""
    words = write_scripted(tmp_path, seeds=[0])
    assert main(words) == 0
    path = tmp_path / "out" / "settings.json"
    settings = json.loads(path.read_text())
    del settings["options"]
    write_json(path, settings)
    for one in tmp_path.rglob("trained.json"):
        write_json(one, {"train_seconds": 3.0})
    for one in tmp_path.rglob("evaluation.json"):
        one.unlink()
    assert main(words) == 0
    assert len(list(tmp_path.rglob("evaluation.json"))) == 2


@in_one_environment
def test_a_killed_comparison_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed within a training, which goes on by itself, it ends with the same results."""
    pytest.importorskip("hippynn")
    write_taught(tmp_path)
    measure = {"structures": [str(tmp_path / "test.extxyz")]}
    path = write_experiment(tmp_path, measure=measure)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["compare", str(path), "--out", str(whole)]) == 0

    command = [sys.executable, "-c", MAIN, "compare", str(path), "--out", str(cut)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    second = cut / "runs" / "student" / "seed0"
    while not (second / "training.writer").is_file() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()

    assert not (second / "trained.json").exists()
    assert main(command[3:]) == 2
    assert "student/seed0: a training still goes on there" in capsys.readouterr().err
    deadline = time.monotonic() + 300
    while (code := main(command[3:])) == 2 and time.monotonic() < deadline:
        time.sleep(1)
    assert code == 0

    assert measured(cut) == measured(whole)
    times = {
        arm: json.loads((cut / "runs" / arm / "seed0" / "evaluation.json").read_text())[
            "train_seconds"
        ]
        for arm in ("control", "student")
    }
    assert times["control"] > 0 and times["student"] is None
    assert not list(tmp_path.rglob("*.partial"))


def measured(out: Path) -> dict[Path, Any]:
    """Return the results that do not depend on times."""
    results = {}
    for path in out.rglob("evaluation.json"):
        one = json.loads(path.read_text())
        kept = ("fingerprint", "metrics", "parity", "curves")
        results[path.relative_to(out)] = {name: one[name] for name in kept}
    return results
