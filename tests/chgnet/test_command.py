"""``python -m kd_plugins.chgnet`` makes a student of a YAML."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from chgnet.model import CHGNet

from kd_plugins.chgnet.__main__ import main
from kd_plugins.chgnet.settings import read_training
from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.report.results import read_results
from tests.chgnet import fixtures
from tests.devices import moves_a_model_to_meta


def test_command_trains_and_prints_the_path_of_the_student(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config), "optim.steps=3", "optim.epochs=null", "student.align=true"]) == 0

    printed = capsys.readouterr().out
    best = tmp_path / "run" / "best.pth.tar"

    assert printed.splitlines()[-1] == f"the best student is {best}"
    assert "train: 4 structures, weight 1; from the teacher: energy, forces, stress" in printed
    assert "validation errors (MAE)" in printed
    for student in ("untrained", "best, epoch"):
        assert f"against the teacher, {student}" in printed

    curve = json.loads((tmp_path / "run" / "curves.json").read_text())["valid soft forces"]
    assert curve["epochs"] == [0, 1, 2]

    model = CHGNet.from_file(str(best))
    assert {name.split(".")[0] for name in fixtures.has_changed(model)} <= {
        "mlp",
        "composition_model",
    }
    assert any(name.startswith("mlp.") for name in fixtures.has_changed(model))


def test_changes_on_the_command_line_set_labels_subset_and_checkpoint(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["train.size=2", "loss.hard.energy=0.5", "loss.soft.stress=0", "loss.select=hard"]
    assert main([str(config), *changes]) == 0
    assert "against the labels, untrained" in capsys.readouterr().out

    words = [f"student.model={tmp_path / 'run' / 'best.pth.tar'}", f"out={tmp_path / 'second'}"]
    assert main([str(config), *words]) == 0
    assert (tmp_path / "second" / "best.pth.tar").exists()


@pytest.mark.parametrize("way", ["cached", "plain"])
def test_the_device_of_the_yaml_reaches_the_model(way: str, config: Path) -> None:
    with moves_a_model_to_meta():
        main([str(config), f"way={way}", "device=meta"])


BAD: dict[str, tuple[list[str], list[str]]] = {
    "wrong keys": (
        ["optim.lerning_rate=1", "train.stor=x", "loss.criterion=MEA", "optim.batch_size=x"],
        [
            "optim.lerning_rate: unknown key; did you mean 'learning_rate'?",
            "train.stor: unknown key; did you mean 'store'?",
            "loss.criterion: unknown choice 'MEA'",
            "optim.batch_size: expected a whole number, got 'x'",
            "4 errors in training.yml",
        ],
    ),
    "epochs and steps": (["optim.steps=5"], ["give either epochs or steps"]),
    "no batch": (["optim.batch_size=0"], ["batch_size: expected a whole number of 1 or more"]),
    "no batch of steps": (
        ["optim.batch_size=0", "optim.steps=5", "optim.epochs=null"],
        ["batch_size: expected a whole number of 1 or more, got 0"],
    ),
    "no weight": (["loss.soft={}"], ["no target has a weight"]),
    "no change": (["optim.seed"], ["expected a change such as optim.seed=3, got 'optim.seed'"]),
    "inside a number": (["out.x=3"], ["'out.x=3': out.x: out is", "which has nothing in it"]),
    "no YAML": (["loss.soft={"], ["soft={: no YAML"]),
    "no file": (["train.structures=[nowhere.xyz]"], ["nowhere.xyz: no such file"]),
    "no store": (["train.store=nowhere"], ["nowhere holds no target store"]),
    "unknown weights": (["student.model=0.9.9"], ["student.model", "0.9.9"]),
    "no checkpoint": (["student.model=training.yml"], ["student.model", "training.yml: is text"]),
    "prefix": (["student.trainable=[mpl.]"], ["no parameter's name starts with 'mpl.'"]),
    "larger than there is": (["train.size=9"], ["9"]),
    "no device": (["device=gpu"], ["device: expected auto, cpu, cuda or cuda:NUMBER, got 'gpu'"]),
    "no worker": (["workers=0"], ["workers: expected a whole number of 1 or more, got 0"]),
    "share": (["force_share=0"], ["force_share: expected above 0 and at most 1, got 0"]),
    "labels that are not there": (["loss.hard.magmoms=1"], ["it has no label magmoms"]),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_in_the_yaml_are_reported_before_training(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    changes, messages = BAD[name]
    monkeypatch.chdir(tmp_path)

    assert main([str(config), *changes]) == 2

    printed = capsys.readouterr().err
    for message in messages:
        assert message in printed

    assert "error: " in printed
    assert not list((tmp_path).glob("run/*.tar"))


def test_bad_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in (
        ("a: [", "no YAML"),
        ("[1]", "expected a mapping, key: value, got a list: [1]"),
    ):
        (tmp_path / "bad.yml").write_text(text)
        assert main([str(tmp_path / "bad.yml")]) == 2
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere.yml")]) == 2
    assert "nowhere.yml" in capsys.readouterr().err


def test_an_interrupt_names_the_way_to_resume(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kd_plugins.chgnet.command.distill", stop)
    assert main([str(config)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5])
def test_an_interrupt_during_imports_prints_no_traceback(config: Path, seconds: float) -> None:
    """While torch and CHGNet are imported, too."""
    words = [sys.executable, "-W", "ignore", "-m", "kd_plugins.chgnet", str(config)]
    # what is asked for is the answer to Ctrl-C, of which a shell's background job has none
    running = subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=config.parent
    )
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    printed = running.communicate(timeout=120)[1]

    assert running.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in printed


def test_debug_prints_the_traceback(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, shown in (([], False), (["--debug"], True)):
        assert main([str(config), "train.store=nowhere", *words]) == 2
        printed = capsys.readouterr().err
        assert ("Traceback" in printed) == shown
        assert "error: train: nowhere holds no target store" in printed


def test_settings_are_refused_before_structures_are_read(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kd_plugins.chgnet.command.DistillData", None)
    (config.parent / "file").write_text("x")

    for change, message in (
        ("allow=[]", "validation: these are the structures of train"),
        ("allow=[same_validaton]", "did you mean 'same_validation'"),
        ("allow=same_validation", "allow: expected a list of names"),
        (f"out={config.parent / 'file'}", "is a file"),
        (f"cache={config.parent / 'file' / 'x'}", "is a file"),
        ("out=''", "out: expected a path, got ''"),
        ("out=3", "out: expected a path, got 3"),
        (f"cache={config.parent / 'run'}", "expected another folder than cache"),
        ("optim.seed=-1", "seed: expected a whole number"),
        ("optim.learning_rate=0", "learning_rate: expected a number above 0, got 0"),
        ("optim.learning_rate=.nan", "learning_rate"),
        ("optim.epochs=0", "epochs: expected a whole number of 1 or more, got 0"),
        ("optim={learning_rate: 0.1, batch_size: 2, steps: 0}", "steps: expected a whole number"),
        ("loss.delta=0", "delta: expected a number above 0"),
        ("loss.select=sfot", "sfot"),
        ("train.structures=[]", "train.structures: expected a list of files, got []"),
        ("train.structures=x.xyz", "train.structures: expected a list of files, got 'x.xyz'"),
        ("train.size=0", "size: expected a whole number of 1 or more, got 0"),
        ("train.missing=[energie]", "missing: unknown quantity 'energie'; did you mean 'energy'"),
        ("validation.structures=[nowhere.xyz]", "validation: nowhere.xyz: no such file"),
        ("validation.store=nowhere", "validation: nowhere holds no target store"),
        ("validation.store=null", "validation.store: missing; the loss weighs soft energy"),
        ("student.trainable=[]", "prefixes of parameter names"),
        ("student.trainable=['']", "prefixes of parameter names"),
        ("optim.seed=[1", "optim.seed=[1: no YAML"),
    ):
        assert main([str(config), change]) == 2, change
        printed = capsys.readouterr().err
        assert message in printed, f"{change}: {printed}"
        assert "Traceback" not in printed

    assert not (config.parent / "run").exists()
    assert not (config.parent / "trunk").exists()


def test_validation_structures_listed_otherwise_are_recognised_as_training_structures(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another list of the same structures."""
    assert main([str(config), "allow=[]", "validation.size=3", "optim.batch_size=2"]) == 2
    assert "all 3 validation structures are in the training data" in capsys.readouterr().err


def test_home_is_expanded_in_paths(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = read_training(
        config,
        ("out=~/a", "cache=~/b", "train.structures=[~/salts.extxyz]", "train.store=~/c"),
    )

    assert (settings.out, settings.cache) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert settings.train.structures == (str(tmp_path / "salts.extxyz"),)
    assert settings.train.store == str(tmp_path / "c")


def test_compare_trains_arms_of_a_yaml(config: Path, tmp_path: Path) -> None:
    """Arms are changes of the YAML; curves and terms of the training come along."""
    experiment = {
        "title": "salts",
        "host": "chgnet",
        "base": str(config),
        "arms": {"hard": {"loss.soft": {}, "loss.hard": {"energy": 1, "forces": 1}}, "soft": {}},
        "control": "hard",
        "seeds": [3],
        "model": "chgnet model={run}/last.pth.tar",
        "measure": {"structures": [str(tmp_path / "salts.extxyz")]},
    }
    path, out = tmp_path / "experiment.yml", tmp_path / "out"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    Comparison(read_experiment(path), out).all(progress=False)
    runs = read_results(out).runs

    assert sorted(runs) == [("hard", 3), ("soft", 3)]

    for arm, taught in (("hard", "hard energy"), ("soft", "soft energy")):
        run = runs[arm, 3]
        logged = CHGNet.from_file(str(out / "runs" / arm / "seed3" / "last.pth.tar"))
        assert run.weights == sum(weight.numel() for weight in logged.parameters())
        assert run.terms[taught].epochs == (1,)
        assert run.metrics["energy_per_atom_mae"] > 0

    labels = runs["hard", 3].curves["valid hard energy"].values[-1]
    assert runs["hard", 3].metrics["energy_per_atom_mae"] == pytest.approx(labels, rel=1e-3)
