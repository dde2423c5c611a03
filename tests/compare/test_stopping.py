"""Comparisons that fail, are stopped, or meet another one in their folder."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd_plugins.cli import main
from kd_plugins.compare.trainings import Trainings
from tests.compare.fixtures import (
    MAIN,
    SOFTER,
    write_aluminium,
    write_experiment,
    write_scripted,
    write_without_training,
)
from tests.hosts import in_one_environment

pytestmark = in_one_environment


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A comparison within its first training, which ends when the file ``go`` exists."""
    wait = f"import os\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.05)"
    words = write_scripted(tmp_path, wait, seeds=[0])
    command = [sys.executable, "-c", MAIN, *words]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/runs/control/seed0/training.log")):
        assert running.poll() is None
        time.sleep(0.02)
    yield running
    (tmp_path / "go").touch()
    running.wait()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's time and bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_no_training_starts_after_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the next arm nor the next seed."""
    words = write_scripted(tmp_path, "sys.exit(3)", seeds=[0, 1, 2])
    assert main(words) == 2
    assert "control, seed 0: the training ended with exit code 3" in capsys.readouterr().err
    assert [path.parent.name for path in tmp_path.rglob("training.log")] == ["seed0"]


def test_trainings_beside_a_failure_are_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are named, and their results are kept."""
    lines = f"""
import os
other = {str(tmp_path / "out" / "runs" / "control" / "seed1" / "training.log")!r}
while given["seed"] == 0 and not os.path.exists(other): time.sleep(0.05)
time.sleep(2 * given["seed"])
sys.exit(3 * (given["seed"] == 0))
"""
    words = write_scripted(tmp_path, lines, seeds=[0, 1, 2])
    assert main([*words, "--workers", "2"]) == 2
    err = capsys.readouterr().err
    assert "no other training starts; waiting for control, seed1 (Ctrl-C ends" in err
    assert "error: control, seed 0: the training ended with exit code 3" in err
    trained = [path.parent for path in tmp_path.rglob("trained.json")]
    assert trained == [tmp_path / "out" / "runs" / "control" / "seed1"]
    assert len(list(tmp_path.rglob("training.log"))) == 2


def test_a_failed_training_is_reported_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_aluminium(tmp_path, count=3)
    script = tmp_path / "script.py"
    script.write_text("import sys; print('no aluminium here'); sys.exit(3)")
    settings = {"base": str(script), "seeds": [0], "model": SOFTER}
    measure = {"structures": [str(tmp_path / "test.extxyz")]}
    path = write_experiment(tmp_path, **settings, measure=measure)
    words = ["compare", str(path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "control, seed 0: the training ended with exit code 3" in err
    assert "no aluminium here" in err

    script.write_text("")
    assert main(words) == 0
    assert "too few seeds to tell" in capsys.readouterr().out
    runs = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("evaluation.json")]
    assert sorted(run["train_seconds"] is None for run in runs) == [False, True]

    script.write_text("print('another script')")
    assert main(words) == 2
    assert f"{script} was changed after 2 runs of" in capsys.readouterr().err


def test_a_failed_worker_ends_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the worker's error."""
    words = write_without_training(
        tmp_path, model="tests.evaluate.calculators:unreadable folder={run}/no"
    )
    assert main([*words, str(tmp_path / "out")]) == 2
    assert re.search(r"error: .*seed0/no", capsys.readouterr().err)


def test_workers_end_with_a_killed_comparison(tmp_path: Path) -> None:
    """A worker that goes on would write into folders that the next call writes, too."""
    words = [*write_without_training(tmp_path), str(tmp_path / "out")]
    command = [sys.executable, "-c", MAIN, *words]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/runs/*/seed0/measured/measured.json")):
        assert running.poll() is None
        time.sleep(0.02)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.wait()

    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(alive(pid) for pid in workers)
    assert main(words) == 0


def alive(pid: str) -> bool:
    """Return whether a process runs; one that has ended may still be listed."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_second_comparison_in_one_folder_is_refused(
    tmp_path: Path, started: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """It changes no file, and the first one ends as usual."""
    words = ["compare", str(tmp_path / "experiment.yml"), "--out", str(tmp_path / "out")]
    before = contents(tmp_path / "out")
    assert main(words) == 2
    assert "another compare is at work there" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    (tmp_path / "go").touch()
    assert started.wait() == 0
    assert len(list(tmp_path.rglob("evaluation.json"))) == 2


def test_ctrl_c_ends_the_trainings(tmp_path: Path, started: subprocess.Popen[bytes]) -> None:
    """Also where the signal reaches this process alone. Another comparison may start at once."""
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=60) == 130
    (tmp_path / "go").touch()
    words = ["compare", str(tmp_path / "experiment.yml"), "--out", str(tmp_path / "out")]
    assert main(words) == 0


def test_cpu_time_is_that_of_the_whole_process_tree(tmp_path: Path) -> None:
    """And not the time of the clock."""
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys, time; time.sleep(1); "
        f"subprocess.run([sys.executable, '-c', {burn!r}])",
    ]
    start = time.perf_counter()
    ended = Trainings().run(command, tmp_path)
    assert ended is not None and ended.code == 0
    assert 0.5 < ended.cpu_seconds < 1.4 < time.perf_counter() - start
