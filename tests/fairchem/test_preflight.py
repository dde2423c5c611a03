"""Checks before the first step: which structures are read, and targets that cannot be right."""

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
from torch_geometric.data import Data

from kd_plugins.config import ConfigError
from kd_plugins.fairchem import eqv2
from kd_plugins.fairchem.preflight import EXAMINED, check_dataset
from tests.fairchem import tiny

Labels = Callable[[float, np.ndarray, int], tuple[float, np.ndarray]]

WRONG: dict[str, tuple[Labels, str, str]] = {
    "force sign": (lambda e, f, n: (e, -f), "forces", "sign"),
    "force unit": (lambda e, f, n: (e, f * 23.06), "forces", "kcal/mol"),
    "energy unit": (lambda e, f, n: (e / 27.211, f), "energy", "Hartree"),
}


@pytest.fixture(scope="module")
def strong_teacher(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with forces and energies that differ as much as real ones do."""
    checkpoint = tiny.load(teacher)
    for state in checkpoint["normalizers"].values():
        state["rmsd"] *= 50.0
    path = tmp_path_factory.mktemp("strong") / "checkpoint.pt"
    torch.save(checkpoint, path)
    return path


def labelled_by(teacher: Path, change: Labels, folder: Path) -> Path:
    """Write slabs with the teacher's own targets, changed, as labels."""
    model, slabs = eqv2(str(teacher), weights="raw"), []
    for index in range(24):
        atoms = tiny.slab(index)
        (values,) = model.predict([atoms], ["energy", "forces"])
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
def test_a_wrong_unit_or_sign_of_a_distilled_quantity_ends_the_run(
    tmp_path: Path, strong_teacher: Path, change: Labels, quantity: str, words: str
) -> None:
    """With the doctor's finding, if a term compares that quantity."""
    train = labelled_by(strong_teacher, change, tmp_path / "data")
    with pytest.raises(ConfigError, match=f"cannot be right:\n.*{words}"):
        tiny.run(settings(train, strong_teacher, tmp_path / "run", quantity))
    assert not list((tmp_path / "run" / "checkpoints").rglob("checkpoint.pt"))


def test_a_wrong_sign_of_another_quantity_is_logged(
    tmp_path: Path, strong_teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong force labels are a warning in a run that distils energies."""
    train = labelled_by(strong_teacher, WRONG["force sign"][0], tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        tiny.run(settings(train, strong_teacher, tmp_path / "run", "energy"))
    assert "teacher and labels:" in caplog.text
    assert "sign" in caplog.text


def test_nothing_is_logged_of_a_teacher_that_agrees(
    tmp_path: Path, strong_teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels that are the teacher's own targets are in order, but for how near they are."""
    train = labelled_by(strong_teacher, lambda e, f, n: (e, f), tmp_path / "data")
    with caplog.at_level(logging.INFO):
        tiny.run(settings(train, strong_teacher, tmp_path / "run", "forces"))
    assert "teacher and labels:" not in caplog.text
    assert caplog.text.count("teacher and labels are apart by") == 1
    assert "R² 1.000, slope 1.000 ± 0.000" in caplog.text


class Numbered:
    """A data set of any size that notes which structures were read."""

    def __init__(self, size: int) -> None:
        self.size, self.read = size, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Data:
        assert 0 <= index < self.size
        self.read.append(index)
        return Data(pos=torch.zeros(1, 3), atomic_numbers=torch.tensor([1]), index=index)


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 20_000_000, 133_934_018])
def test_checked_structures_are_spread_from_first_to_last(size: int) -> None:
    """Also where float32 cannot count them any more."""
    dataset = Numbered(size)
    check_dataset(dataset, "train", [], {"student": 90}, limit=50)
    assert len(set(dataset.read)) == min(size, 50)
    assert (dataset.read[0], dataset.read[-1]) == (0, size - 1)


@pytest.mark.parametrize("limit", [1, 50, 1000])
def test_the_teachers_sample_is_of_the_structures_that_were_read(limit: int) -> None:
    """So that nothing is read twice; from the first to the last, too."""
    dataset = Numbered(1000)
    sample = check_dataset(dataset, "train", [], {"student": 90}, limit)
    places = [data.index for data in sample]
    assert len(dataset.read) == limit
    assert len(places) == min(limit, EXAMINED)
    assert set(places) <= set(dataset.read)
    assert (places[0], places[-1]) == (dataset.read[0], dataset.read[-1])
