"""Checkpoints of strangers: nothing in them is run, and nothing that they name is opened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.teachers import TeacherError, load_teacher
from tests import house
from tests.fairchem import tiny

NAMES = ("eqv2 checkpoint={} weights=raw", "fairchem checkpoint={}")


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        """Return the call."""
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def write(teacher: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Return what writes an edited copy of a teacher's checkpoint."""

    def edited(change: Callable[[dict[str, Any]], Any]) -> Path:
        raw = tiny.load(teacher)
        change(raw)
        torch.save(raw, tmp_path / "theirs.pt")
        return tmp_path / "theirs.pt"

    return edited


def load(name: str, path: Path, more: str = "") -> FrozenEquiformerV2:
    """Return the teacher."""
    return load_teacher(f"{name.format(path)}{more}")


@pytest.mark.parametrize("name", NAMES)
def test_pickled_code_needs_trust(write, tmp_path: Path, name: str) -> None:
    """And is named, with the words to type."""
    path = write(lambda raw: raw.update(extra=Touches(tmp_path / "mark")))
    with pytest.raises(TeacherError, match="theirs.pt: .*posix.system.*trust_pickle"):
        load(name, path)
    assert not (tmp_path / "mark").exists()
    assert load(name, path, " trust_pickle=true").quantities
    assert (tmp_path / "mark").exists()


def test_the_identity_is_that_of_fairchem_s_own_reading(teacher: Path) -> None:
    """So that stores which were labelled before go on."""
    checked, as_ever = (load(NAMES[1], teacher, more) for more in ("", " trust_pickle=true"))
    assert checked.fingerprint == as_ever.fingerprint
    assert checked.quantities == as_ever.quantities


def popen(mark: Path) -> dict[str, Any]:
    """Return the settings of a part of a model that would start a program."""
    return {"args": ["touch", str(mark)]}


PARTS = {
    "backbone": lambda model, mark: model.update(
        backbone={"model": "subprocess.Popen", **popen(mark)}
    ),
    "head": lambda model, mark: model["heads"].update(
        theirs={"module": "subprocess.check_call", "cwd": str(mark.parent)}
    ),
    "model": lambda model, mark: (model.clear(), model.update(name="os.system")),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_part_that_is_named_by_a_module_is_not_called(
    write, tmp_path: Path, name: str, part: str
) -> None:
    """fairchem calls whatever has a dot in its name."""
    path = write(lambda raw: PARTS[part](raw["config"]["model"], tmp_path / "mark"))
    with pytest.raises(TeacherError, match=r"theirs.pt: .*(subprocess|os\.system)"):
        load(name, path)
    assert not (tmp_path / "mark").exists()


FILES = {
    "a model to start from": lambda raw, file: raw["config"]["model"].update(
        finetune_config={"starting_checkpoint": str(file)}
    ),
    "only a model to start from": lambda raw, file: raw["config"].update(
        model={"name": "hydra", "finetune_config": {"starting_checkpoint": str(file)}}
    ),
    "a backbone that starts from one": lambda raw, file: raw["config"]["model"].update(
        backbone={"model": "hydra", "finetune_config": {"starting_checkpoint": str(file)}}
    ),
    "scale factors of the model": lambda raw, file: raw["config"]["model"].update(
        backbone={"model": "painn_backbone", "num_layers": 1, "scale_file": str(file)}
    ),
    "scale factors of the weights": lambda raw, file: raw.update(scale_dict=str(file)),
    "a Slurm job": lambda raw, file: raw["config"].update(
        slurm={"folder": str(file.parent)}, is_debug=False
    ),
    "normalizers": lambda raw, file: raw["config"].update(
        dataset={"src": str(file), "transforms": {"normalizer": {"file": str(file)}}}
    ),
    "references": lambda raw, file: raw["config"].update(
        dataset={"src": str(file), "transforms": {"element_references": {"file": str(file)}}}
    ),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_checkpoint_names_are_not_opened(
    write, tmp_path: Path, name: str, what: str, monkeypatch
) -> None:
    """Though fairchem would; the rest of the checkpoint is used, or refused in one line."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    trap, mark = tmp_path / "1_submitted.pkl", tmp_path / "mark"
    torch.save(Touches(mark), tmp_path / "trap.pt")
    trap.write_bytes((tmp_path / "trap.pt").read_bytes())
    path = write(lambda raw: FILES[what](raw, tmp_path / "trap.pt"))
    try:
        load(name, path)
    except TeacherError as error:
        assert "theirs.pt: " in str(error)
    assert not mark.exists()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", r"is a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (None, "is cut short"),
    ],
)
def test_what_is_no_checkpoint_is_named(
    teacher: Path, tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    """And no message suggests to trust it."""
    whole = teacher.read_bytes()
    (tmp_path / "theirs.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(TeacherError, match=f"theirs.pt: .*{expected}") as caught:
        load(name, tmp_path / "theirs.pt")
    assert "trust" not in str(caught.value)


def test_the_page_s_way_to_use_a_student_works(teacher: Path, tmp_path: Path) -> None:
    """Word for word, in an interpreter that has imported nothing."""
    page = (house.ROOT / "docs" / "fairchem.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "OCPCalculator" in b)
    target = tmp_path / "checkpoints" / "my-run" / "best_checkpoint.pt"
    target.parent.mkdir(parents=True)
    raw = tiny.load(teacher)
    raw["config"]["trainer"] = "ocp"  # as our trainers write it
    torch.save(raw, target)
    lines = [
        "from ase.build import fcc111",
        "atoms = fcc111('Cu', (1, 1, 2), vacuum=5)",
        "atoms.pbc = True",
        block,
        "print(atoms.get_potential_energy())",
    ]
    code = "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(0, abs=1e4)


def test_another_architecture_names_the_way_that_works(write) -> None:
    """fairchem's own calculator labels, and the store teaches."""
    for model in ("schnet", "painn", "gemnet_oc", "escn"):
        path = write(lambda raw, model=model: raw["config"].update(model={"name": model}))
        with pytest.raises(TeacherError, match=f"a '{model}'; .*--teacher fairchem checkpoint="):
            load(NAMES[0], path)
