"""Sweeps: each arm at each point, compared with the control at the same point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.config import ConfigError
from kd_plugins.report import read_results, verdict, write_report
from tests.compare.fixtures import write_experiment, write_scripted

SIZES = {"tiny": {"model.width": 12}, "large": {"model.width": 64, "steps": 5}}


def test_a_run_has_the_settings_of_its_point(tmp_path: Path) -> None:
    """And an arm that sets a key of an axis itself, or a part of it, is not swept over that one."""
    arms = {
        "control": {"of": "{runs}/teacher/seed{seed}"},
        "student": {"of": "{runs}/control-{weight}-{size}/seed{seed}"},
        "teacher": {"model": {"width": 128}},
    }
    sweep = {"weight": [0.5, 10], "size": SIZES}
    path = write_experiment(
        tmp_path, arms=arms, sweep=sweep, settings={"structures": ["{run}"]}, seeds=[3]
    )
    experiment = read_experiment(path)
    comparison = Comparison(experiment, tmp_path / "out")
    changes = {run.arm: comparison._changes(run) for run in comparison.runs()}
    assert list(changes) == [
        *(f"control-{w}-{s}" for w in ("0.5", "10") for s in SIZES),
        *(f"student-{w}-{s}" for w in ("0.5", "10") for s in SIZES),
        *("teacher-0.5", "teacher-10"),
    ]
    assert changes["student-10-large"] == {
        "structures": [str(tmp_path / "out/runs/student-10-large/seed3")],
        "of": str(tmp_path / "out/runs/control-10-large/seed3"),
        "weight": 10,
        "model.width": 64,
        "steps": 5,
    }
    assert changes["teacher-0.5"]["model"] == {"width": 128}
    assert experiment.controls["student-10-large"] == "control-10-large"
    assert "teacher-10" not in experiment.controls  # the control has two sizes, it has none


def test_points_are_trained_compared_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A control outside of the sweep is that of all points; more points may be added."""
    lines = "print(given['weight'])"
    arms = {"control": {"weight": 0}, "student": {}}
    sweep = {"weight": [1, 10], "size": {"tiny": {"width": 1}, "large": {"width": 2}}}
    changes = {"arms": arms, "seeds": [0], "settings": {"width": 0}, "best_over": "size"}
    published = {"teacher_force_rmse": {"student-1": "2.03 (0.09), large", "Teacher": 1.5}}
    words = write_scripted(
        tmp_path, lines, **changes, sweep={**sweep, "weight": [1]}, published=published
    )
    assert main(words) == 0
    names = ("student-1-tiny", "student-1-large", "control-tiny", "control-large")
    runs = tmp_path / "out" / "runs"
    assert sorted(path.name for path in runs.iterdir()) == sorted(names)

    written = {path: path.read_bytes() for path in runs.rglob("evaluation.json")}
    words = write_scripted(tmp_path, lines, **changes, sweep=sweep, published=published)
    assert main(words) == 0
    assert all(path.read_bytes() == content for path, content in written.items())
    assert len(list(runs.iterdir())) == 6

    results = read_results(tmp_path / "out")
    compared = {one.arm: one.sentence.split(":")[0] for one in verdict(results)}
    assert compared["student-10-large"] == "student-10-large against control-large"
    assert len(compared) == 4

    page = write_report([tmp_path / "out"], tmp_path / "page.html").read_text()
    for title in ("Force RMSE from the teacher over weight", "Best over size"):
        assert title in page
    assert "2.03 (0.09), large" in page
    tables = (tmp_path / "page_figures" / "e1-tables.md").read_text()
    assert tables.count("★") == 1 + 2  # in the caption, and of two metrics
    assert "| Teacher | – | – \\[1.5\\] |" in tables

    assert (
        main(["report", str(tmp_path / "out"), "-o", str(tmp_path / "few.html"), "--arms", "*-1-*"])
        == 0
    )
    few = (tmp_path / "few.html").read_text()
    assert "student-1-tiny against control-tiny" in few and "student-10" not in few
    with pytest.raises(ValueError, match="'weight-1' matches no arm"):
        write_report([tmp_path / "out"], tmp_path / "none.html", ["weight-1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep": {"a": []}}, "sweep: a: expected a list of values, or labels with settings"),
        ({"sweep": {"a": [1, 1]}}, "sweep: a: 1 stands there twice"),
        ({"sweep": {"a": [[1, 2]]}}, "is no name of a folder; give it a label"),
        ({"sweep": {"a": ["b/c"]}}, "'b/c' is no name of a folder; give it a label"),
        ({"sweep": {"a": {"b": 1}}}, "sweep: a.b: expected settings by dotted key, got 1"),
        ({"sweep": {"a": [1]}, "best_over": "b"}, "best_over: no axis 'b' of the sweep"),
        ({"sweep": {"out": [1]}}, "out is set by kd-plugins itself; leave it out"),
        ({"sweep": {"loss.a": [1]}, "arms": {"control": {"loss": {}}, "student": {"loss": {}}}},
         "sweep: loss.a: every arm sets it itself, so nothing is swept"),
        ({"sweep": {"a": [1]}, "arms": {"control": {}, "student": {}, "student-1": {"a": 2}}},
         "two arms are called 'student-1'; rename an arm or a label"),
        ({"sweep": {"size": [1]}, "settings": {"of": "{sizes}"}},
         "nothing is filled in for {sizes}; did you mean 'size'"),
    ],
)  # fmt: skip
def test_wrong_sweeps_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_experiment(write_experiment(tmp_path, **changes))
    assert message in str(caught.value)


def test_an_experiment_without_a_sweep_is_described_as_before(tmp_path: Path) -> None:
    words = write_scripted(tmp_path, seeds=[0])
    assert main(words) == 0
    plan = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert not {"points", "controls", "best_over", "published"} & plan.keys()
    settings = yaml.safe_load((tmp_path / "out" / "settings.json").read_text())
    assert list(settings["arms"]) == ["control", "student"]
