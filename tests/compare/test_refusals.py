"""Wrong experiments and options are refused before anything is trained or written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare import read_experiment
from kd_plugins.config import ConfigError
from tests.compare.fixtures import (
    SOFTER,
    write_aluminium,
    write_experiment,
    write_scripted,
)

STRESSLESS, VOLUMES = "tests.evaluate.calculators:stressless", "volume_error_percent"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "hipppynn folder={run}"}, "unknown teacher 'hipppynn'; did you mean 'hippynn'?"),
        ({"model": "hippynn foldr={run}"}, "'hippynn' takes no 'foldr'; did you mean 'folder'"),
        ({"model": "hippynn"}, "cannot be made: missing a required argument: 'folder'"),
        ({"teacher": "chgnet model=no.pth.tar"}, "CHGNet has no weights 'no.pth.tar'"),
        ({"teacher": "fairchem checkpont={runs}/a.pt"}, "no 'checkpont'|not installed"),
        ({"measure": {"structures": ["no.xyz"]}}, "no.xyz: no such file"),
        (
            {"measure": {"crystals": {"structures": ["no.cif"]}}, "metrics": [VOLUMES]},
            "no.cif: no such file",
        ),
        ({"metrics": ["force_rmse"]}, "metrics: nothing here measures 'force_rmse', which"),
        ({"teacher": STRESSLESS, "metrics": ["teacher_stress_rmse"]}, "a teacher with stress"),
        ({"settings": {"a": 1, "a.b": 2}}, "arm 'control': a.b: a is 1, which has noth"),
        ({"settings": {"a..b": 2}}, "'a..b': expected names with dots|'.b': expected names"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    """A wrong name costs seconds, not the trainings before it is read."""
    write_aluminium(tmp_path, count=3)
    (tmp_path / "script.py").write_text("import sys; sys.exit('trained')")
    measure = {"structures": [str(tmp_path / "test.extxyz")]}
    plain = {"base": str(tmp_path / "script.py"), "model": SOFTER, "measure": measure}
    path = write_experiment(tmp_path, **{**plain, **changes})
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "0"], "workers: expected 1 or more, got 0"),
        (["--workers", "-1"], "workers: expected 1 or more, got -1"),
        (["--arm", "studnet"], "--arm is for --require"),
        (["--require", "drift<1"], "--require needs --arm, one of control, student"),
        (["--arm", "studnet", "--require", "drift<1"], "'studnet' that is measured; did you mean"),
        (["--arm", "student", "--require", "drfit<1"], "unknown metric 'drfit'; did you mean"),
        (["--arm", "student", "--require", "drift<1"], "which needs dynamics with steps"),
        (["--arm", "student", "--require", "force_rmse<1"], "which needs labels of forces"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    """Refused before anything is trained or written."""
    assert main([*write_scripted(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "contrl"}, "no arm 'contrl'; did you mean 'control'"),
        ({"seeds": [1, 1]}, "one or more different ones"),
        ({"seeds": []}, "one or more different ones"),
        ({"host": "mace"}, "unknown choice 'mace'"),
        ({"arms": {"a/b": {}}}, "a name has letters"),
        ({"arms": {"control": {"seed": 1}}, "control": "control"}, "seed is set by kd-plugins"),
        ({"arms": [1]}, "expected names with values"),
        ({"unjudged": ["teacher"]}, "no arm 'teacher'"),
        ({"unjudged": ["control"]}, "'control' is the control"),
        ({"measure": {}}, "nothing to measure"),
        ({"mesure": {}}, "unknown key; did you mean 'measure'?"),
    ],
)
def test_wrong_arms_and_names_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_experiment(write_experiment(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["force_rsme"]}, "unknown metric 'force_rsme'; did you mean 'force_rmse'?"),
        ({"metrics": ["unrelaxed_crystals"]}, "'unrelaxed_crystals', which needs crystals"),
        ({"metrics": []}, "metrics: expected different ones, got []"),
        ({"metrics": ["teacher_force_rmse"] * 2}, "metrics: expected different ones"),
        ({"teacher": None}, "'teacher_force_rmse', which needs a teacher"),
        ({"seeds": [-1]}, "seeds: expected one or more different ones from 0"),
        ({"seeds": [2**32]}, "seeds: expected one or more different ones from 0"),
        ({"seeds": [True]}, "seeds[0]: expected a whole number, got True"),
        ({"seeds": [10**400]}, "seeds[0]: expected a whole number up to 2^63"),
        ({"title": " "}, "title: expected a text, got ' '"),
        ({"model": "hippynn folder={rum}"}, "nothing is filled in for {rum}; did you mean 'run'?"),
        ({"teacher": "emt x={run}"}, "teacher: nothing is filled in for {run}"),
        ({"options": {"num_gpus": 2}}, "options: script takes none, got 'num_gpus'"),
        ({"settings": {"lr": float("nan")}}, "settings: lr: expected a finite number, got nan"),
        ({"settings": {"a": {"b": [10**30]}}}, "settings: a.b[0]: expected a whole number up to"),
        ({"settings": {"seed": 1}}, "seed is set by kd-plugins itself"),
        ({"arms": {"control": {}}}, "arms: expected one beside the control 'control'"),
        ({"unjudged": ["student"]}, "arms: expected one beside the control 'control'"),
        ({"arms": {"control": {"a": "{rnu}/x"}, "b": {}}}, "nothing is filled in for {rnu}"),
        ({"arms": {"x" * 101: {}}}, "a name has letters, digits, - and _ only, 100 at most"),
        ({"arms": {"control": [1]}, "control": "control"}, "arm 'control': expected names with"),
    ],
)
def test_wrong_values_of_an_experiment_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_experiment(write_experiment(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestep": 0}, "dynamics.timestep: expected a number above 0 to 100 fs, got 0.0"),
        (
            {"timestep": float("nan")},
            "measure.dynamics.timestep: expected a finite number, got nan",
        ),
        ({"bins": 0}, "dynamics.bins: expected a whole number from 2 to"),
        ({"repeats": []}, "dynamics.repeats: expected one or more"),
        ({"seeds": [0, 0]}, "dynamics.seeds: expected one or more different ones"),
        ({"timestep": 1e6}, "dynamics.timestep: expected a number above 0 to 100 fs"),
        ({"cutoff": -1}, "dynamics.cutoff: expected a number above 0"),
    ],
)
def test_wrong_dynamics_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_experiment(tmp_path)
    raw = yaml.safe_load(path.read_text())
    raw["measure"]["dynamics"] |= changes
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_experiment(path)


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    """PyYAML would take the last."""
    path = write_experiment(tmp_path)
    path.write_text(path.read_text() + "seeds: [5]\n")
    with pytest.raises(ConfigError, match=f"{path}: line .*the key 'seeds' stands in line"):
        read_experiment(path)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="base: .*nowhere.py: no such file"):
        read_experiment(write_experiment(tmp_path, base="nowhere.py"))
    with pytest.raises(FileNotFoundError, match="expected an experiment's YAML"):
        read_experiment(tmp_path / "none.yml")
    (tmp_path / "experiment.yml").write_text("a: [")
    with pytest.raises(ConfigError, match="no YAML"):
        read_experiment(tmp_path / "experiment.yml")
