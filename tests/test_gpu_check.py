"""The GPU check without a GPU: its dry run on the CPU, and what becomes of a part that fails."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.hosts import ABSENT_HOSTS
from tests.house import ROOT

BENCHMARKS = ROOT / "benchmarks"
IS_NEW = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)

needs_new_torch = pytest.mark.skipif(not IS_NEW, reason="the check is for torch 2.9 or newer")
needs_hosts = pytest.mark.skipif(
    bool({"hippynn", "chgnet"} & set(ABSENT_HOSTS)), reason="hippynn and CHGNet are part of it"
)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, imported as it imports its own parts."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    yield gpu_check
    for name in set(sys.modules) - before:
        if name.startswith("gpu_check"):
            del sys.modules[name]


@pytest.mark.slow
@needs_new_torch
@needs_hosts
def test_the_dry_run_has_every_part_and_none_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--dry", "--out", "report"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = (tmp_path / "report.json").read_text()
    report = json.loads(text)
    parts = report["parts"]
    assert list(parts) == [
        "device",
        "correctness",
        "operators",
        "waits",
        "speed",
        "hippynn",
        "chgnet",
        "labeller",
    ]
    assert [name for name, part in parts.items() if not part["ok"]] == []
    assert report["dry"] is True

    # what the parts are for was done, not passed over
    assert len(parts["correctness"]["worst"]) == 5
    assert parts["operators"]["passed"] > 0
    assert all(row["ours"]["ms"] > 0 for row in parts["speed"]["rows"])
    assert parts["labeller"]["labelled"] == 2
    assert (tmp_path / "report.md").read_text().count("| good |") == len(parts)

    # the report may be shown to anyone
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


@needs_new_torch
@pytest.mark.parametrize(
    ("part", "says"),
    [
        (lambda setup, found: found.update(half=1.0) or 1 / 0, "ZeroDivisionError: division"),
        (lambda setup, found: found.update(half=1.0) or time.sleep(5), "TimeoutError: not done"),
    ],
)
def test_a_part_that_fails_says_so_and_keeps_what_it_found(
    check: ModuleType, part: Callable[[Any, Any], None], says: str
) -> None:
    result = check.run(part, check.Setup(torch.device("cpu"), True), 0.3)
    assert result["ok"] is False
    assert says in result["error"]
    assert result["half"] == 1.0
    assert result["seconds"] < 3


@needs_new_torch
def test_one_part_that_fails_ends_no_other(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(setup: Any, found: Any) -> None:
        raise OSError(f"{tmp_path}/site-packages/torch/a.py is\nbroken")

    monkeypatch.setattr(check, "PARTS", {"broken": (broken, 9), "device": (check.device, 9)})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry", "--out", str(tmp_path / "a")])
    assert check.main() == 1
    parts = json.loads((tmp_path / "a.json").read_text())["parts"]
    assert parts["broken"]["error"] == "OSError: torch/a.py is broken"
    assert parts["device"]["ok"] is True


@needs_new_torch
def test_a_wrong_loss_is_found(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check_losses

    right = gpu_check_losses.crack_loss
    monkeypatch.setattr(
        gpu_check_losses, "crack_loss", lambda *given, **asked: 1.001 * right(*given, **asked)
    )
    some = list(itertools.islice(gpu_check_losses.cases(check.Setup(torch.device("cpu"), True)), 2))
    monkeypatch.setattr(gpu_check_losses, "cases", lambda setup: some)
    found: dict[str, Any] = {}
    with pytest.raises(gpu_check_losses.CheckFailed, match="cases are off"):
        check.correctness(check.Setup(torch.device("cpu"), True), found)
    assert found["wrong"]


@needs_new_torch
def test_without_a_gpu_only_the_dry_run_is_offered(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit):
        check.main()
    assert "--dry" in capsys.readouterr().err
