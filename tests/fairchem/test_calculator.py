"""A checkpoint by the name ``fairchem`` is measured as any other potential."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.io import write

from kd_plugins.cli import main
from kd_plugins.teachers import TeacherError, load_teacher
from tests.devices import moves_a_model_to_meta
from tests.fairchem import tiny


def test_energies_equal_those_of_the_labelling_teacher(teacher: Path) -> None:
    """With the weights as they are stored: fairchem's calculator reads no averaged ones."""
    moved = load_teacher(f"fairchem checkpoint={teacher}")
    raw, averaged = (load_teacher(f"eqv2 checkpoint={teacher} weights={w}") for w in ("raw", "ema"))
    for index in range(2):
        energies = [
            float(one.predict([tiny.slab(index)], ["energy"])[0]["energy"])
            for one in (moved, raw, averaged)
        ]
        assert energies[0] == pytest.approx(energies[1], abs=1e-4)
        assert energies[0] != pytest.approx(energies[2], abs=1e-4)


def test_it_is_measured_from_the_command_line(teacher: Path, tmp_path: Path) -> None:
    """Speed and memory of growing cells, which ``eqv2`` cannot do."""
    write(tmp_path / "cell.extxyz", tiny.slab(0))
    words = ["--dynamics", str(tmp_path / "cell.extxyz"), "--repeats", "1", "2"]
    code = main(
        ["evaluate", "--student", "fairchem", f"checkpoint={teacher}", *words]
        + ["--out", str(tmp_path / "out"), "--require", "microseconds_per_atom<1e9"]
    )
    assert code == 0
    cells = json.loads((tmp_path / "out" / "evaluation.json").read_text())["speed"]["student"]
    assert cells[1]["atoms"] == 2 * cells[0]["atoms"]
    assert min(cell["bytes"] for cell in cells) > 0


def test_eqv2_cannot_be_moved(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "cell.extxyz", tiny.slab(0))
    words = ["--dynamics", str(tmp_path / "cell.extxyz"), "--out", str(tmp_path / "out")]
    student = ["eqv2", f"checkpoint={teacher}", "weights=raw"]
    assert main(["evaluate", "--student", *student, *words]) == 2
    assert "take 'fairchem checkpoint=PATH'" in capsys.readouterr().err


def test_the_labelling_teacher_moves_its_model_to_the_device(teacher: Path) -> None:
    with moves_a_model_to_meta():
        load_teacher(f"eqv2 checkpoint={teacher} weights=raw", device="meta")


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no such checkpoint"):
        load_teacher(f"fairchem checkpoint={tmp_path / 'none.pt'}")
