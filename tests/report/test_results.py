from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_plugins.files import read_json, write_json
from kd_plugins.report.results import read_results
from tests.report.fixtures import ARMS, evaluation, plan, write_experiment


def test_written_experiment_is_read_back(tmp_path: Path) -> None:
    found = read_results(write_experiment(tmp_path, arms=ARMS[:2], seeds=(0, 2)))
    assert (found.control, found.arms, len(found.runs)) == (ARMS[0], ARMS, 4)
    assert list(found.of(ARMS[1])) == [0, 2]
    assert (ARMS[1], 1) in found.missing
    assert found.values(ARMS[0], "force_rmse")[2] == evaluation(ARMS[0], 2)["metrics"]["force_rmse"]
    run = found.runs[ARMS[1], 0]
    assert run.speed["student"][0].atoms == 8
    assert run.elasticity["Mo"]["student"].unstable == "a shear modulus below zero"
    assert "teacher" not in run.elasticity["Mo"]


def test_evaluation_without_experiment_is_one_arm(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", {"model": "m", "metrics": {"force_rmse": 0.1}})
    found = read_results(tmp_path)
    assert (found.title, found.control, found.arms, found.missing) == ("m", None, ("student",), [])


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected experiment.json or evaluation.json"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "nobody"}, "control: expected one of the arms .* got 'nobody'"),
        ({"title": 3}, "title: expected a string, got 3"),
        ({"title": " "}, "title: expected a text, got ' '"),
        ({"arms": []}, "arms: expected a list with something in it"),
        ({"arms": ["../a"]}, "arms: expected the name of a folder"),
        ({"seeds": [1, 1]}, "seeds: expected each once"),
        ({"seeds": ["a"]}, r"seeds\[0\]: expected a whole number, got 'a'"),
        ({"metrics": None}, "metrics: expected a list, got None"),
        ({"arm": []}, "arm: unknown key; did you mean 'arms'"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_json(tmp_path / "experiment.json", plan(**changes))
    with pytest.raises(ValueError, match=rf"experiment\.json: (?s:.*){message}"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "model: missing; expected a string"),
        ({"model": "m", "curve": {}}, "curve: unknown key; did you mean 'curves'"),
        ({"model": "m", "metrics": {"force_rmse": "low"}}, "metrics.force_rmse: expected a number"),
        ({"model": "m", "metrics": [1]}, r"metrics: expected a mapping, got \[1\]"),
        ({"model": "m", "curves": {"a": {"epochs": [1], "values": []}}}, "one length"),
        ({"model": "m", "speed": {"student": [{"atoms": 1, "microseconds": 0}]}}, "above 0, got 0"),
        (
            {"model": "m", "elasticity": {"Si": {"student": {"bulky": 1}}}},
            "student.bulky: unknown key",
        ),
        ({"model": "m", "volumes": {"Si": {"student": -1}}}, "volumes.Si: student: expected"),
    ],
)
def test_a_wrong_evaluation_is_refused(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    write_json(tmp_path / "evaluation.json", content)
    with pytest.raises(ValueError, match=rf"evaluation\.json: (?s:.*){message}"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": NaN}', '{"model": Infinity}'])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json: (not JSON|expected a mapping)"):
        read_results(tmp_path)


def test_json_keeps_numbers_exactly(tmp_path: Path) -> None:
    content = {"a": 0.1 + 0.2, "b": [1e-300, 5], "c": "Å"}
    assert read_json(write_json(tmp_path / "deep" / "a.json", content)) == content
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match=r"a\.json: expected finite numbers"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
