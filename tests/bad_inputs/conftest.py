"""The folder of the bad inputs, and how many were refused clearly, at the end of a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

from tests.bad_inputs.folder import build

TESTS = "tests/bad_inputs/test_cases.py::test_it_is_refused_clearly["


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the share of the cases."""
    counts = {
        outcome: sum(
            report.nodeid.startswith(TESTS) for report in terminalreporter.stats.get(outcome, [])
        )
        for outcome in ("passed", "failed")
    }
    total = sum(counts.values())
    if total:
        share = 100 * counts["passed"] / total
        terminalreporter.write_line(
            f"bad inputs: {counts['passed']} of {total} refused clearly ({share:.4g} %)"
        )


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every case gets a copy of."""
    folder = tmp_path_factory.mktemp("bad") / "original"
    build(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to work in, without the type checks that our tests, but no user, have."""
    copied = tmp_path / "work"
    shutil.copytree(original, copied)
    monkeypatch.chdir(copied)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield copied
    jaxtyping.config.update("jaxtyping_disable", False)
