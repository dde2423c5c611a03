"""Costs of different devices or precisions: named in the figures, the tables and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.text import Text

from kd_plugins.report.figures import choose_styles
from kd_plugins.report.plots import _cost
from kd_plugins.report.results import Computing, ExperimentResults, read_results
from kd_plugins.report.tables import measurements_table
from kd_plugins.report.verdicts import verdict
from kd_plugins.report.worth import worth_of_best
from tests.report import fixtures

GPU = fixtures.ARMS[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fixtures.write_experiment(tmp_path / "runs")


def placed(folder: Path, arm: str | None, device: str, dtype: str) -> ExperimentResults:
    """Return results measured on a CPU in float32, but for one arm."""
    found = read_results(folder)
    runs = {}
    for (name, seed), run in found.runs.items():
        here = Computing(device, dtype) if name == arm else Computing("cpu", "float32")
        cells = {
            "student": tuple(
                replace(one, device=here.device, dtype=here.dtype) for one in run.speed["student"]
            ),
            "teacher": tuple(replace(one, device="cpu") for one in run.speed["teacher"]),
        }
        runs[name, seed] = replace(run, speed=cells, computing={"student": here})
    return replace(found, runs=runs)


def texts(results: ExperimentResults) -> list[str]:
    """Return caption and all text inside of each figure of costs."""
    plots = _cost(results, choose_styles(results.arms, results.control))
    return [
        plot.caption + " ".join(one.get_text() for one in plot.figure.findobj(Text))
        for plot in plots
    ]


@pytest.mark.parametrize(("device", "dtype"), [("cuda:0", "float32"), ("cpu", "float64")])
def test_other_places_are_named(folder: Path, device: str, dtype: str) -> None:
    results = placed(folder, GPU, device, dtype)
    place = f"{device.removesuffix(':0')}, {dtype}"

    found = texts(results)
    assert len(found) == 6
    for text in found:
        assert f"different precisions: {fixtures.ARMS[0]}, {fixtures.ARMS[2]} on cpu" in text
        assert f"{GPU} on {place}" in text
        assert text.count(place) > 1  # in the legend, too

    of_gpu, other = verdict(results)
    assert of_gpu.arm == GPU and f"are of {place}, those of" in of_gpu.sentence
    assert "costs of" not in other.sentence
    rows = {row[0]: row[1:] for row in measurements_table(results)[1]}
    assert rows["device and precision"][:2] == ["cpu, float32", f"{device}, {dtype}"]


def test_one_place_and_unknown_ones_change_nothing(folder: Path) -> None:
    """Results of earlier versions have no precision, and those of the first no device."""
    for results in (read_results(folder), placed(folder, None, "cpu", "float32")):
        assert not any("precision" in text for text in texts(results))
        assert all("costs of" not in one.sentence for one in verdict(results))


def test_the_worth_of_a_student_names_another_device_of_its_teacher(folder: Path) -> None:
    worth = worth_of_best(placed(folder, GPU, "cuda", "float32"))
    assert worth is not None and worth.arm == GPU
    assert f"costs of {GPU} are of cuda, float32, those of teacher of cpu" in worth.sentence
