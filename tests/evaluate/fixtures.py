"""A command line of `kd-plugins evaluate` with EMT as teacher, and its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd_plugins.cli import main

SOFTER = "tests.evaluate.calculators:softer"
CUTOFF = 3.6
"""Å. The cell for dynamics, 32 atoms of copper, holds a sphere of half its length of 7.2 Å."""


def run_evaluate(out: Path, *words: object, student: str = "emt") -> int:
    """Measure a student beside EMT; return the exit code."""
    arguments = ["evaluate", "--student", student, "--teacher", "emt", "--out", out, *words]
    return main([str(word) for word in arguments])


def read_evaluation(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())


def dynamics_and_crystals(files: dict[str, str]) -> list[object]:
    dynamics = ["--dynamics", files["cell"], "--steps", 40, "--repeats", 1, "--cutoff", CUTOFF]
    return [*dynamics, "--crystals", files["crystal"]]


def all_measurements(files: dict[str, str]) -> list[object]:
    """Return the options with which everything is measured; the last one is ``--elasticity``."""
    return ["--reference", files["labelled"], *dynamics_and_crystals(files), "--elasticity"]
