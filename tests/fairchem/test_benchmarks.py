"""The table of goals is made by one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_goal_has_a_measurement() -> None:
    """In its small form, whose figures say nothing but that each part runs."""
    command = [sys.executable, str(BENCHMARKS / "all.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 8 and all(measured.strip() for _, measured, _ in rows)
    for what in ("crack_loss", "memory", "epoch", "labelling", "with a note"):
        assert any(what in row[0] for row in rows), what
