"""On-policy rounds: structures and targets grow by what the student visits, also after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kd_plugins import TargetStore
from kd_plugins.cli import main
from kd_plugins.compare.rounds import take_rounds
from tests.compare.fixtures import write_aluminium, write_scripted
from tests.hosts import in_one_environment

SEEN = """
import re
texts = [open(name).read() for name in given["structures"]]
ids = [one for text in texts for one in re.findall(r"structure_id=(\\S+)", text)]
open(given["out"] + "/ids.txt", "w").write(" ".join(ids))
"""
"""Lines of a training script that writes the ids of the structures that it gets."""
SHORT = {"count": 2, "temperatures": [300], "interval": 2, "equilibration": 2}


def write_rounds(folder: Path, **changes: Any) -> list[str]:
    """Write an experiment with an arm of two rounds; return the command line."""
    words = write_scripted(
        folder,
        SEEN,
        seeds=[0],
        settings={"structures": [str(folder / "train.extxyz")], "store": str(folder / "targets")},
        arms={"control": {}, "student": {"rounds": rounds(folder, **changes)}},
    )
    label = ["label", str(folder / "train.extxyz"), "--teacher", "emt"]
    assert main([*label, "--store", str(folder / "targets")]) == 0
    return words


def rounds(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"count": 2, "seeds": [str(folder / "cell.extxyz")], "sample": {"md": SHORT}, **changes}


def seen(out: Path) -> dict[str, list[str]]:
    """Return the ids that each training got, by folder."""
    return {
        str(path.parent.relative_to(out)): path.read_text().split() for path in out.rglob("ids.txt")
    }


@in_one_environment
def test_each_round_trains_on_what_the_student_has_visited(tmp_path: Path) -> None:
    """And a comparison that was stopped within a round ends like one that was not."""
    words = write_rounds(tmp_path)
    assert main(words) == 0
    out = tmp_path / "out" / "runs"
    found = seen(out)
    visited = [[f"round{number}/cell/md-000{i}" for i in range(2)] for number in (1, 2)]
    (first,) = found["control/seed0"]
    assert found == {
        "control/seed0": [first],
        "student/seed0/round1": [first],
        "student/seed0/round2": [first, *visited[0]],
        "student/seed0": [first, *visited[0], *visited[1]],
    }

    run = out / "student" / "seed0"
    targets = TargetStore.open(run / "round2" / "targets")
    assert sorted(targets.ids()) == sorted(found["student/seed0"])
    one = json.loads((run / "evaluation.json").read_text())
    parts = [json.loads((path).read_text()) for path in run.rglob("trained.json")]
    assert len(parts) == 3
    assert one["train_cpu_seconds"] == pytest.approx(sum(p["train_cpu_seconds"] for p in parts))

    for path in ("trained.json", "ids.txt", "evaluation.json", "round2/grown.json"):
        (run / path).unlink()
    pool = (run / "round2" / "pool.extxyz").read_bytes()
    assert main(words) == 0
    assert seen(out) == found
    assert (run / "round2" / "pool.extxyz").read_bytes() == pool


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"count": 0}, {}, "arm 'student': 1 error in rounds:\n  rounds: count: expected"),
        ({"seeds": ["no.xyz"]}, {}, "seeds: no.xyz: no such file"),
        ({"sampel": {}}, {}, "rounds.sampel: unknown key"),
        ({}, {"teacher": None, "metrics": ["force_rmse"]}, "rounds: expected an experiment with a"),
        ({}, {"settings": {"structures": "a", "store": "b"}}, "structures, a list of files, and"),
    ],
)
def test_wrong_rounds_are_refused_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    write_aluminium(tmp_path, count=3)
    arms = {"control": {}, "student": {"rounds": rounds(tmp_path, **changes)}}
    given = {"settings": {"structures": [], "store": "s"}, "arms": arms, **settings}
    assert main(write_scripted(tmp_path, SEEN, **given)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_rounds_of_another_host_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds: expected the host script, .* got chgnet"):
        take_rounds({"rounds": {}}, "chgnet", "emt")
