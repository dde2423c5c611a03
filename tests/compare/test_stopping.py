"""Comparisons that fail, meet each other in one folder, or cannot start at all."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.compare.hosts import HOSTS, Trainings
from kd_plugins.config import ConfigError
from kd_plugins.files import write_json
from tests.compare.test_compare import SOFTER, aluminium, experiment

LINES = "import sys, time, yaml; given = yaml.safe_load(open(sys.argv[1]))"
CODE = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"


def scripted(folder: Path, lines: str = "", **changes: Any) -> list[str]:
    """Return the words of a comparison whose trainings are a few lines of Python."""
    aluminium(folder, count=3)
    (folder / "script.py").write_text(f"{LINES}\n{lines}\n")
    measure = {"structures": [str(folder / "test.extxyz")]}
    plain = {"base": str(folder / "script.py"), "model": SOFTER, "measure": measure}
    path = experiment(folder, **{**plain, "settings": {}, **changes})
    return ["compare", str(path), "--out", str(folder / "out")]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's time and bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A comparison in the midst of its first training, which ends when ``go`` is there."""
    wait = f"import os\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.05)"
    words = scripted(tmp_path, wait, seeds=[0])
    command = [sys.executable, "-c", CODE, *words]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/runs/control/seed0/training.log")):
        assert running.poll() is None
        time.sleep(0.02)
    yield running
    (tmp_path / "go").touch()
    running.wait()


def test_nothing_starts_after_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the next arm nor the next seed."""
    words = scripted(tmp_path, "sys.exit(3)", seeds=[0, 1, 2])
    assert main(words) == 2
    assert "control, seed 0: the training ended with exit code 3" in capsys.readouterr().err
    assert [path.parent.name for path in tmp_path.rglob("training.log")] == ["seed0"]


def test_what_runs_beside_a_failure_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And named; what it has made is kept."""
    lines = f"""
import os
other = {str(tmp_path / "out" / "runs" / "control" / "seed1" / "training.log")!r}
while given["seed"] == 0 and not os.path.exists(other): time.sleep(0.05)
time.sleep(2 * given["seed"])
sys.exit(3 * (given["seed"] == 0))
"""
    words = scripted(tmp_path, lines, seeds=[0, 1, 2])
    assert main([*words, "--workers", "2"]) == 2
    complaint = capsys.readouterr().err
    assert "no other training starts; waiting for control, seed1 (Ctrl-C ends" in complaint
    assert "error: control, seed 0: the training ended with exit code 3" in complaint
    trained = [path.parent for path in tmp_path.rglob("trained.json")]
    assert trained == [tmp_path / "out" / "runs" / "control" / "seed1"]
    assert len(list(tmp_path.rglob("training.log"))) == 2


def test_a_second_comparison_in_one_folder_touches_nothing(
    tmp_path: Path, started: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first goes on unharmed."""
    words = ["compare", str(tmp_path / "experiment.yml"), "--out", str(tmp_path / "out")]
    before = contents(tmp_path / "out")
    assert main(words) == 2
    assert "another compare is at work there" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    (tmp_path / "go").touch()
    assert started.wait() == 0
    assert len(list(tmp_path.rglob("evaluation.json"))) == 2


def test_ctrl_c_ends_the_trainings(tmp_path: Path, started: subprocess.Popen[bytes]) -> None:
    """Also where it reaches this process alone; another comparison may start at once."""
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=60) == 130
    (tmp_path / "go").touch()
    words = ["compare", str(tmp_path / "experiment.yml"), "--out", str(tmp_path / "out")]
    assert main(words) == 0


def test_cpu_time_is_of_the_whole_process_tree(tmp_path: Path) -> None:
    """And not of the clock."""
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys, time; time.sleep(1); "
        f"subprocess.run([sys.executable, '-c', {burn!r}])",
    ]
    start = time.perf_counter()
    ended = Trainings().run(command, tmp_path, 1)
    assert ended is not None and ended.code == 0
    assert 0.5 < ended.cpu_seconds < 1.4 < time.perf_counter() - start


def test_the_verdict_tells_cpu_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of folders that have only the clock's, nothing."""
    words = scripted(tmp_path, seeds=[0])
    assert main(words) == 0
    assert re.search(r"; training took \d\.\d\d times the CPU time\.", capsys.readouterr().out)
    for path in tmp_path.rglob("evaluation.json"):
        one = json.loads(path.read_text())
        assert one["train_cpu_seconds"] > 0
        write_json(path, {name: one[name] for name in one if name != "train_cpu_seconds"})
    assert main(words) == 0
    assert "training took" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
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
def test_bad_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    """Refused before anything is trained or written."""
    assert main([*scripted(tmp_path), *more]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": ["force_rsme"]}, "unknown metric 'force_rsme'; did you mean 'force_rmse'?"),
        ({"metrics": ["unrelaxed_crystals"]}, "'unrelaxed_crystals', which needs crystals"),
        ({"metrics": []}, "metrics: expected different ones, got []"),
        ({"metrics": ["teacher_force_rmse"] * 2}, "metrics: expected different ones"),
        ({"teacher": None}, "'teacher_force_rmse', which needs a teacher"),
        ({"seeds": [-1]}, "seeds: expected one or more different ones from 0"),
        ({"seeds": [2**32]}, "seeds: expected one or more different ones from 0"),
        ({"seeds": [True]}, "seeds: expected a whole number, got True"),
        ({"seeds": [10**400]}, "seeds: expected a whole number up to 2^63"),
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
def test_bad_experiments(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_experiment(experiment(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
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
def test_bad_dynamics(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = experiment(tmp_path)
    raw = yaml.safe_load(path.read_text())
    raw["measure"]["dynamics"] |= changes
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_experiment(path)


def test_a_key_twice(tmp_path: Path) -> None:
    """PyYAML would take the last."""
    path = experiment(tmp_path)
    path.write_text(path.read_text() + "seeds: [5]\n")
    with pytest.raises(ConfigError, match=f"{path}: line .*the key 'seeds' stands in line"):
        read_experiment(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("settings.json", {"host": 3}, "settings.json: host: expected a text, got 3"),
        ("settings.json", {"sources": []}, "settings.json: sources: expected a mapping, got []"),
        ("settings.json", {"seeds": 3}, "settings.json: seeds: expected a list, got 3"),
        ("settings.json", None, "settings.json: not JSON"),
        ("experiment.json", {"arms": 3}, "experiment.json"),
        ("runs/control/seed0/trained.json", {"train_seconds": "1"}, "trained.json: 1 error"),
        ("runs/control/seed0/trained.json", {"seconds": 1.0}, "trained.json.seconds: unknown key"),
        ("runs/control/seed0/trained.json", None, "trained.json: not JSON"),
        ("runs/control/seed0/costs.json", {"train_seconds": -1.0}, "train_seconds: expected a num"),
        (
            "runs/control/seed0/curves.json",
            {"loss": [1]},
            "curves.json: curves.loss: expected a ma",
        ),
        (
            "runs/control/seed0/terms.json",
            {"l": {"epochs": [1], "values": []}},
            "terms.json: terms",
        ),
        (
            "runs/control/seed0/evaluation.json",
            {"metrics": {"drift": 10**400}},
            "not JSON (the int",
        ),
        ("runs/control/seed0/evaluation.json", {"weights": -5}, "weights: expected a whole number"),
        ("runs/control/seed0/evaluation.json", {"parity": {"x": {}}}, "parity: unknown key 'x'"),
        ("teacher/measured.json", {"fingerprint": 3}, "measured.json is no record of ours"),
    ],
)
def test_a_damaged_record_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: dict[str, Any] | None,
    says: str,
) -> None:
    """Each record of a folder, before another is written from it."""
    words = scripted(tmp_path, seeds=[0])
    assert main(words) == 0
    path = tmp_path / "out" / name
    evaluation = path.parent / "evaluation.json"
    if path.parent.name == "seed0" and path != evaluation:
        evaluation.unlink()
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text("{" if content is None else json.dumps({**held, **content}))
    capsys.readouterr()
    if name == "experiment.json":
        words = ["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n  ") <= 1 and str(path) in said and says in said
    if path.parent.name == "seed0" and path != evaluation:
        assert not evaluation.exists()


def test_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store, an evaluation, or a file."""
    words = scripted(tmp_path)[:2]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    assert main([*words, "--out", str(tmp_path / "store")]) == 2
    assert "store: holds manifest.json and no experiment" in capsys.readouterr().err
    for out in ("script.py", "script.py/below"):
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        assert "script.py is a file; expected a folder" in capsys.readouterr().err


def test_a_folder_of_earlier_versions_goes_on(tmp_path: Path) -> None:
    """Which know neither options nor CPU time."""
    words = scripted(tmp_path, seeds=[0])
    assert main(words) == 0
    path = tmp_path / "out" / "settings.json"
    held = json.loads(path.read_text())
    del held["options"]
    write_json(path, held)
    for one in tmp_path.rglob("trained.json"):
        write_json(one, {"train_seconds": 3.0})
    for one in tmp_path.rglob("evaluation.json"):
        one.unlink()
    assert main(words) == 0
    assert len(list(tmp_path.rglob("evaluation.json"))) == 2


def test_options_reach_fairchem(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("trainer: a")
    options = {"num_gpus": 2, "amp": True, "cpu": False}
    command = HOSTS["fairchem"].command(tmp_path / "base.yml", tmp_path, 4, {}, options)
    assert command[command.index("--num-gpus") + 1] == "2"
    assert "--amp" in command and "--cpu" not in command
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "settings": {}}
    read = read_experiment(experiment(tmp_path, **changes, arms=ARMS, options=options))
    assert read.options == options
    for wrong, says in (
        ({"num_gpu": 2}, "options: fairchem takes no 'num_gpu'; did you mean 'num_gpus'?"),
        ({"num_gpus": 0}, "options.num_gpus: expected a whole number of 1 or more, got 0"),
        ({"amp": "yes"}, "options.amp: expected true or false, got 'yes'"),
        ({"amp": 1}, "options.amp: expected true or false, got 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            read_experiment(experiment(tmp_path, **changes, arms=ARMS, options=wrong))


ARMS: dict[str, Any] = {"control": {}, "student": {}}


def test_trust_is_given_where_it_is_meant(tmp_path: Path) -> None:
    """In the strings of model and teacher, and in the host's own settings."""
    (tmp_path / "base.yml").write_text("trainer: a")
    trusted = "task.distill.teacher.trust_pickle"
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "arms": ARMS}
    read = read_experiment(
        experiment(
            tmp_path,
            **changes,
            settings={trusted: True},
            model="fairchem checkpoint={run}/a.pt trust_pickle=true",
        )
    )
    made = HOSTS["fairchem"].settings(Path(read.base), read.settings)
    assert made["task"]["distill"]["teacher"]["trust_pickle"] is True
    run = Comparison(read, tmp_path / "out").runs()[0]
    named, _ = Comparison(read, tmp_path / "out")._student(run)
    assert named == f"fairchem checkpoint={run.folder}/a.pt trust_pickle=true"


def test_files_to_include_are_a_list(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("includes: {a: 1}")
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "settings": {}}
    read = read_experiment(experiment(tmp_path, **changes, arms=ARMS))
    with pytest.raises(ValueError, match=r"base\.yml: includes: expected a list of files"):
        Comparison(read, tmp_path / "out")
