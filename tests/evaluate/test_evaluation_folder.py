"""The folder of an evaluation: resumed, extended, locked to its settings, checked when read."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from ase.io import read, write

from kd_plugins.cli import main
from kd_plugins.evaluate.measurements import crystal_files
from tests.evaluate.fixtures import (
    SOFTER,
    all_measurements,
    dynamics_and_crystals,
    read_evaluation,
    run_evaluate,
)


def test_a_second_call_measures_nothing(files: dict[str, str], tmp_path: Path) -> None:
    words = ["--dynamics", files["cell"], "--repeats", 1]
    assert run_evaluate(tmp_path, *words) == 0
    first = (tmp_path / "evaluation.json").read_text()
    assert run_evaluate(tmp_path, *words) == 0
    assert (tmp_path / "evaluation.json").read_text() == first


def test_a_killed_measurement_resumes(files: dict[str, str], tmp_path: Path) -> None:
    words = [str(word) for word in (*all_measurements(files)[:-1], "--out", tmp_path)]
    code = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "evaluate", "--student", "emt", *words]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "student" / "speed-1.json").is_file() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()

    speed = (tmp_path / "student" / "speed-1.json").read_text()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (
        json.loads(speed)["microseconds"]
        == read_evaluation(tmp_path)["metrics"]["microseconds_per_atom"]
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_another_potential_or_other_settings_are_refused(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--reference", files["labelled"]]
    assert run_evaluate(tmp_path, *words) == 0
    assert run_evaluate(tmp_path, *words, student=SOFTER) == 2
    assert "measurements of another potential" in capsys.readouterr().err
    assert run_evaluate(tmp_path, *words, "--ids", "path") == 2
    assert "other settings, ids: 'auto' there, 'path' here" in capsys.readouterr().err
    cell = ["--dynamics", files["cell"], "--repeats", 1]
    assert run_evaluate(tmp_path, *cell, "--temperature", 300) == 0
    assert run_evaluate(tmp_path, *cell, "--temperature", 400) == 2
    assert "dynamics: temperature: 300.0 there, 400.0 here" in capsys.readouterr().err


def test_parts_and_a_teacher_can_be_added_in_any_order(
    files: dict[str, str], tmp_path: Path
) -> None:
    """A teacher that is added later is measured on all parts."""
    parts = (["--reference", files["labelled"]], ["--crystals", files["crystal"]])
    for out, (first, second) in (("one", parts), ("two", parts[::-1])):
        alone = ["evaluate", "--student", SOFTER, "--out", str(tmp_path / out), *first]
        assert main(alone) == 0
        assert run_evaluate(tmp_path / out, *second, student=SOFTER) == 0
    one, two = read_evaluation(tmp_path / "one"), read_evaluation(tmp_path / "two")
    assert one.pop("provenance")["command"] != two.pop("provenance")["command"]
    assert one == two
    assert {"teacher_force_rmse", "teacher_volume_error_percent"} <= one["metrics"].keys()


def test_a_changed_structure_file_is_refused(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(files["cell"], tmp_path / "cell.extxyz")
    words = ["--dynamics", tmp_path / "cell.extxyz", "--repeats", 1]
    assert run_evaluate(tmp_path / "out", *words) == 0
    write(tmp_path / "cell.extxyz", read(files["cell"]) * (2, 1, 1))
    assert run_evaluate(tmp_path / "out", *words) == 2
    assert "cell.extxyz as it was before it was changed" in capsys.readouterr().err


def test_each_crystal_has_its_own_file_whatever_its_name(tmp_path: Path) -> None:
    """Two names that are one file's name would give one crystal the volume of the other."""
    names = ["a/b", "a_b", "a//b", "a b", "../a", "ä", "x" * 300, "CON", "x" * 299 + "y"]
    frames = []
    for place, name in enumerate(names):
        atoms = bulk("Cu", cubic=True, a=3.5 + 0.01 * place)
        atoms.info["structure_id"] = name
        frames.append(atoms)
    write(tmp_path / "many.xyz", frames)
    out = tmp_path / "out"
    assert run_evaluate(out, "--crystals", tmp_path / "many.xyz") == 0
    volumes = read_evaluation(out)["volumes"]
    assert {name: one["reference"] for name, one in volumes.items()} == {
        name: pytest.approx(atoms.get_volume()) for name, atoms in zip(names, frames, strict=True)
    }
    assert len(list((out / "student" / "crystals").iterdir())) == len(names)
    assert not (out / "student" / "a.json").exists()


def test_crystal_files_of_version_0_1_0_are_read_where_unambiguous(tmp_path: Path) -> None:
    """A file that two crystals could have written is not read."""
    for ids, files in (
        (["a/b", "c"], ["a_b.json", "c.json"]),
        (["a/b", "a_b"], ["a-b-c14cddc033f6.json", "a-b-648fa9b31bc7.json"]),
    ):
        (tmp_path / "a_b.json").write_text("{}")
        assert [path.name for path in crystal_files(tmp_path, ids).values()] == files


DAMAGES = {
    "empty": b"",
    "cut off": b'{"a": ',
    "a list": b"[]",
    "another mapping": b"{}",
    "NaN": b'{"fingerprint": NaN}',
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b'{"a": ' + b"[" * 50_000,
    "long": b'{"a": ' + b"9" * 400 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["measured", "speed-1", "run-0", "crystals/crystal"])
def test_a_damaged_record_is_named_with_a_remedy(
    files: dict[str, str],
    measured_once: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: str,
) -> None:
    """And nothing is written."""
    shutil.copytree(measured_once, tmp_path / "out")
    path = tmp_path / "out" / "student" / f"{name}.json"
    path.write_bytes(DAMAGES[damage])
    words = ["evaluate", "--student", "emt", "--out", str(tmp_path / "out")]
    assert main([*words, *map(str, dynamics_and_crystals(files))]) == 2
    err = capsys.readouterr().err
    assert f"error: {path}" in err and "remove" in err
    assert path.read_bytes() == DAMAGES[damage]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("measured", {"settings": []}, "settings: expected a mapping"),
        ("measured", {"files": 3}, "files: expected files"),
        ("measured", {"fingerprint": 3}, "fingerprint: expected a string"),
        ("speed-1", {"atoms": 0}, "expected atoms and bytes above 0"),
        ("speed-1", {"microseconds": -1}, "microseconds: expected a number above 0"),
        ("speed-1", {"bytes": "3"}, "bytes: expected a number"),
        ("run-0", {"values": [1.0]}, "expected as many distances as values"),
        ("run-0", {"values": "abc"}, "values: expected a list"),
        ("run-0", {"drift": None}, "drift: expected a number"),
        ("crystals/crystal", {"reference": 0}, "reference: expected a number above 0"),
        ("crystals/crystal", {"volume": "big"}, "volume: expected a number"),
        ("crystals/crystal", {"elasticity": [1]}, "elasticity: expected a mapping"),
        ("crystals/crystal", {"elasticity": {"bulk": 1}}, "shear: expected a number"),
        ("crystals/crystal", {"reason": 1}, "reason: expected a string"),
    ],
)
def test_a_record_with_wrong_values_is_named_with_a_remedy(
    files: dict[str, str],
    measured_once: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    shutil.copytree(measured_once, tmp_path / "out")
    path = tmp_path / "out" / "student" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    words = ["evaluate", "--student", "emt", "--out", str(tmp_path / "out")]
    assert main([*words, *map(str, dynamics_and_crystals(files))]) == 2
    err = capsys.readouterr().err
    assert f"error: {path}" in err and message in err and "remove" in err
