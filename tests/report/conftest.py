"""One experiment with every kind of result, and its report, written once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.fixtures import ARMS, write_experiment


@pytest.fixture(scope="session")
def experiment_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment of two arms and three seeds."""
    folder = tmp_path_factory.mktemp("experiment")
    return write_experiment(folder, seeds=(0, 1, 2), arms=ARMS[:2])


@pytest.fixture(scope="session")
def report(experiment_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from kd_plugins.report import write_report

    return write_report([experiment_folder], tmp_path_factory.mktemp("report") / "report.html")
