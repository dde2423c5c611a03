"""The folder of a comparison: locked to its settings, its records checked when read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.files import write_json
from tests.compare.fixtures import (
    experiment_settings,
    write_experiment,
    write_scripted,
)


def test_a_folder_takes_more_arms_and_seeds_but_no_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Comparison(read_experiment(write_experiment(tmp_path)), out).write_settings()

    more = experiment_settings(tmp_path)["arms"] | {"student_20": {"loss.atomic_energies": 20}}
    Comparison(
        read_experiment(write_experiment(tmp_path, arms=more, seeds=[0, 1, 2, 3])), out
    ).write_settings()

    with pytest.raises(ValueError, match="another teacher: 'emt'"):
        Comparison(read_experiment(write_experiment(tmp_path, teacher="chgnet")), out)
    changed = {**more, "student_20": {"loss.atomic_energies": 30}}
    with pytest.raises(ValueError, match="arm 'student_20' with other settings"):
        Comparison(read_experiment(write_experiment(tmp_path, arms=changed)), out)


def test_changed_included_files_are_refused(tmp_path: Path) -> None:
    """Files that the base or an arm includes, and files that those include."""
    for name, inner in (("deep", []), ("base", ["deep.yml"]), ("arm", [])):
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({"includes": inner}))
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "settings": {}}
    arms = {"control": {}, "student": {"includes": [str(tmp_path / "arm.yml")]}}
    path, out = write_experiment(tmp_path, **changes, arms=arms), tmp_path / "out"
    write_json(out / "runs" / "student" / "seed0" / "trained.json", {"train_seconds": None})
    Comparison(read_experiment(path), out).write_settings()
    Comparison(read_experiment(path), out).write_settings()

    for name in ("deep", "base", "arm"):
        included = tmp_path / f"{name}.yml"
        included.rename(tmp_path / "kept")
        with pytest.raises(FileNotFoundError, match=f"{name}.yml: no such file"):
            Comparison(read_experiment(path), out)
        included.write_text((tmp_path / "kept").read_text() + "# changed")
        with pytest.raises(ValueError, match=f"{name}.yml was changed after 1 runs of"):
            Comparison(read_experiment(path), out)
        (tmp_path / "kept").rename(included)


def test_a_folder_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store, a file, or a path below a file."""
    words = write_scripted(tmp_path)[:2]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    assert main([*words, "--out", str(tmp_path / "store")]) == 2
    assert "store: holds manifest.json and no experiment" in capsys.readouterr().err
    for out in ("script.py", "script.py/below"):
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        assert "script.py is a file; expected a folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A comparison that has ended: its command line without folder, and the folder."""
    words = write_scripted(tmp_path_factory.mktemp("finished"), seeds=[0])
    assert main(words) == 0
    *words, option, out = words
    assert option == "--out"
    return words, Path(out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", {"host": 3}, "settings.json: host: expected a text, got 3"),
        ("settings.json", {"sources": []}, "settings.json: sources: expected a mapping, got []"),
        ("settings.json", {"seeds": 3}, "settings.json: seeds: expected a list, got 3"),
        ("settings.json", None, "settings.json: not JSON"),
        ("experiment.json", {"arms": 3}, "experiment.json"),
        ("runs/control/seed0/trained.json", {"train_seconds": "1"}, "trained.json: 1 error"),
        ("runs/control/seed0/trained.json", {"seconds": 1.0}, "trained.json.seconds: unknown key"),
        ("runs/control/seed0/trained.json", None, "trained.json: not JSON"),
        ("runs/control/seed0/costs.json", {"train_seconds": -1.0}, "train_seconds: expected a num"),
        (
            "runs/control/seed0/curves.json",
            {"loss": [1]},
            "curves.loss: expected a mapping, got [1]",
        ),
        (
            "runs/control/seed0/terms.json",
            {"l": {"epochs": [1], "values": []}},
            "terms.l: expected lists of one length, got epochs 1, values 0",
        ),
        (
            "runs/control/seed0/evaluation.json",
            {"metrics": {"drift": 10**400}},
            "not JSON (the int",
        ),
        ("runs/control/seed0/evaluation.json", {"weights": -5}, "weights: expected a whole number"),
        (
            "runs/control/seed0/evaluation.json",
            {"parity": {"x": {}}},
            "parity.x: unknown key; known: labels, teacher",
        ),
        ("teacher/measured.json", {"fingerprint": 3}, "measured.json is no record of ours"),
    ],
)
def test_a_damaged_record_is_named(
    finished: tuple[list[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: dict[str, Any] | None,
    message: str,
) -> None:
    """Each record of a folder, before another is written from it."""
    words, folder = finished
    out = tmp_path / "out"
    shutil.copytree(folder, out)

    path = out / name
    evaluation = path.parent / "evaluation.json"
    is_source = path.parent.name == "seed0" and path != evaluation
    if is_source:
        evaluation.unlink()
    content_before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text("{" if content is None else json.dumps({**content_before, **content}))

    words = [*words, "--out", str(out)]
    if name == "experiment.json":
        words = ["report", str(out), "-o", str(tmp_path / "page.html")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n  ") <= 1 and str(path) in err and message in err
    if is_source:
        assert not evaluation.exists()
