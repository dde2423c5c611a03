"""A teacher whose targets cannot be right is refused before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.config import ConfigError
from kd_plugins.fairchem import eqv2
from tests.fairchem import tiny

Labels = Callable[[float, np.ndarray, int], tuple[float, np.ndarray]]

WRONG: dict[str, tuple[Labels, str, str]] = {
    "force sign": (lambda e, f, n: (e, -f), "forces", "sign"),
    "force unit": (lambda e, f, n: (e, f * 23.06), "forces", "kcal/mol"),
    "energy unit": (lambda e, f, n: (e / 27.211, f), "energy", "Hartree"),
}


@pytest.fixture(scope="module")
def strong_teacher(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose forces and energies differ as much as real ones do."""
    checkpoint = tiny.load(teacher)
    for state in checkpoint["normalizers"].values():
        state["rmsd"] *= 50.0
    path = tmp_path_factory.mktemp("strong") / "checkpoint.pt"
    torch.save(checkpoint, path)
    return path


def labelled_by(teacher: Path, change: Labels, folder: Path) -> Path:
    """Write slabs whose labels are the teacher's own targets, changed."""
    model, slabs = eqv2(str(teacher), weights="raw"), []
    for index in range(24):
        atoms = tiny.slab(index)
        values = model(atoms, ["energy", "forces"])
        energy, forces = change(float(values["energy"]), values["forces"], len(atoms))
        slabs.append(with_labels(atoms, energy, forces))
    folder.mkdir()
    return tiny.write_database(folder / "train.db", slabs)


def with_labels(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    """Replace the labels of a structure."""
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def settings(train: Path, teacher: Path, folder: Path, quantity: str) -> dict[str, Any]:
    """Return a run that distils one quantity."""
    terms = {quantity: {"weight": 1.0, "distance": "absolute_sum"}}
    return tiny.config(
        folder,
        train,
        trainer="kd_plugins.fairchem.EqV2DistillTrainer",
        task=tiny.distill(teacher, terms),
    )


@pytest.mark.parametrize(("change", "quantity", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_right_is_refused(
    tmp_path: Path, strong_teacher: Path, change: Labels, quantity: str, words: str
) -> None:
    """With the doctor's sentence, if a term teaches that quantity."""
    train = labelled_by(strong_teacher, change, tmp_path / "data")
    with pytest.raises(ConfigError, match=f"cannot be right:\n.*{words}"):
        tiny.run(settings(train, strong_teacher, tmp_path / "run", quantity))
    assert not list((tmp_path / "run" / "checkpoints").rglob("checkpoint.pt"))


def test_what_no_term_teaches_is_logged(
    tmp_path: Path, strong_teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong force labels are said aloud in a run that distils energies."""
    train = labelled_by(strong_teacher, WRONG["force sign"][0], tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        tiny.run(settings(train, strong_teacher, tmp_path / "run", "energy"))
    assert "teacher and labels:" in caplog.text
    assert "sign" in caplog.text


def test_nothing_is_said_of_a_teacher_that_agrees(
    tmp_path: Path, strong_teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels that are the teacher's own targets are in order."""
    train = labelled_by(strong_teacher, lambda e, f, n: (e, f), tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        tiny.run(settings(train, strong_teacher, tmp_path / "run", "forces"))
    assert "teacher and labels:" not in caplog.text
