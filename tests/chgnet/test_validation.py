"""Validation data are other structures than the training data, and are checked as those are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_plugins.chgnet import (
    CachedData,
    DataError,
    DistillData,
    DistillLoss,
    FitSettings,
    FrozenTrunk,
    Ratios,
    distill,
    fit,
)
from kd_plugins.chgnet.preflight import check_student
from kd_plugins.chgnet.validation import check_apart, other_zero
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.store.structure import Structure
from kd_plugins.structures import LabelledStructure
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled

WEIGHTS = {"energy": 1, "forces": 1, "stress": 1}
Train = Callable[..., Any]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A dozen strained salts, so that there is enough to tell from."""
    generator, made = np.random.default_rng(0), []
    for index in range(12):
        atoms = list(fixtures.salts())[index % 4].atoms
        strain = generator.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.rattle(0.1, seed=index)
        made.append(LabelledStructure(f"salt/{index}", atoms))
    return fixtures.labelled(made, tmp_path_factory.mktemp("two"))


def with_trainer(train: DistillData, valid: DistillData, folder: Path, **settings: Any) -> None:
    """Train with CHGNet's Trainer."""
    made = fixtures.trainer(**{"epochs": 1, "allow": (), **settings})
    loaders = fixtures.loader(train, 2), fixtures.loader(valid, 2)
    made.train(*loaders, save_dir=str(folder / "run"))


def with_distill(train: DistillData, valid: DistillData, folder: Path, **settings: Any) -> None:
    """Train with `distill`."""
    folders = {"out": folder / "run", "cache": folder / "cache"}
    short = FitSettings(epochs=1, batch_size=2)
    distill(fixtures.student(), train, valid, settings=short, **folders, **settings)


def with_fit(train: DistillData, valid: DistillData, folder: Path, **settings: Any) -> None:
    """Train on features."""
    trunk = FrozenTrunk(fixtures.frozen())
    cached = [CachedData(data, trunk, folder / "trunk", progress=False) for data in (train, valid)]
    weights = {name: settings.pop(name) for name in ("soft", "hard") if name in settings}
    loss, short = DistillLoss(Ratios(**weights)), FitSettings(epochs=1, batch_size=2)
    fit(trunk, *cached, loss, short, folder / "run", progress=False, **settings)


WAYS = [with_trainer, with_distill, with_fit]


@pytest.mark.parametrize("source", ["hard", "soft"])
@pytest.mark.parametrize("way", WAYS)
def test_another_energy_zero_of_validation_is_refused(
    two: Labelled, tmp_path: Path, way: Train, source: str
) -> None:
    """Before training, in labels and in the teacher's targets; and may be overruled by name."""
    train = two.data(two.structures[:4], **{source: ("energy",)})
    if source == "hard":
        off = [
            fixtures.with_label(one, energy=one.labels["energy"] + 6.0)
            for one in two.structures[4:8]
        ]
        valid = two.data(off, hard=("energy",))
    else:
        store = fixtures.changed_store(
            two.store, tmp_path / "store", lambda name, v: v + 6.0 if name == "energy" else v
        )
        valid = two.data(two.structures[4:8], store=store, soft=("energy",))

    match = rf"in the validation data, the {source} targets cannot be right.*(\n.*)*\[energy_zero\]"
    with pytest.raises(DataError, match=match):
        way(train, valid, tmp_path, **{source: {"energy": 1}})
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=r"have another zero.*allow: \[validation_zero\] overrules"):
        way(train, valid, tmp_path, **{source: {"energy": 1}, "allow": ["energy_zero"]})
    assert not (tmp_path / "run").exists()

    allow = ["energy_zero", "validation-zero"]
    way(train, valid, tmp_path, **{source: {"energy": 1}, "allow": allow})

    assert (tmp_path / "run" / "last.pth.tar").exists()


@pytest.mark.parametrize("quantity", ["forces", "stress"])
def test_wrong_signs_of_validation_are_refused(
    two: Labelled, tmp_path: Path, quantity: str
) -> None:
    store = fixtures.changed_store(
        two.store, tmp_path / "store", lambda name, v: -v if name == quantity else v
    )
    train, valid = two.data(two.structures[:4]), two.data(two.structures, store=store)

    with pytest.raises(DataError, match="in the validation data, the soft targets.*(\n.*)*sign"):
        with_trainer(train, valid, tmp_path, soft=WEIGHTS)

    check_student(fixtures.student(), train, Ratios(soft=WEIGHTS))


@pytest.mark.parametrize("way", WAYS)
def test_training_structures_are_refused_as_validation_data(
    two: Labelled, tmp_path: Path, way: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor are they under other ids, in other cells, or some of them alone."""
    train = two.data(two.structures[:4])
    soft = {"energy": 1}

    for valid in (train, two.data(two.structures[:4]), train.part([1, 2])):
        with pytest.raises(DataError, match=r"all . validation.*allow: \[same_validation\]"):
            way(train, valid, tmp_path, soft=soft)

    assert not (tmp_path / "run").exists()

    way(train, train, tmp_path, soft=soft, allow=["same_validation"])
    assert "overruled by allow: [same_validation]" in caplog.text


def test_a_few_shared_structures_are_a_warning(
    two: Labelled, caplog: pytest.LogCaptureFixture
) -> None:
    train = two.data(two.structures[:4], store=None, hard=("energy",))
    renamed = [
        replace(one, structure_id=f"b{index}") for index, one in enumerate(two.structures[3:8])
    ]

    for structure in renamed[:1]:  # the same structure, written elsewhere with fewer digits
        structure.atoms.positions = np.round(
            structure.atoms.positions + structure.atoms.cell.array[0], 5
        )

    valid = two.data(renamed, store=None, hard=("energy",))
    with caplog.at_level(logging.WARNING):
        check_apart(train, valid)

    assert "1 of 5 validation structures are in the training data, too, such as b0" in caplog.text

    caplog.clear()
    check_apart(train, valid.part([1, 2]))

    assert not caplog.text


def case(numbers: list[int], off: float, index: int = 0) -> DoctorInput:
    """Return a structure whose target is off the student's energy, eV/atom."""
    structure = Structure(
        numbers,
        np.random.default_rng(index).random((len(numbers), 3)) * 9,
        np.eye(3) * 9,
        [True] * 3,
    )
    energy = -3.0 * len(numbers)
    return DoctorInput(
        f"x{index}", structure, {"energy": energy}, {"energy": energy + off * len(numbers)}
    )


def test_scatter_and_unknown_elements_are_not_another_zero() -> None:
    """Nor are other offsets an element, as of a teacher that is not aligned."""
    generator = np.random.default_rng(0)
    rough = [case([11, 17], generator.normal(scale=0.2), index) for index in range(9)]

    assert other_zero(rough, [case([11, 17], 0.4)]) == []

    train = [case([11], 1.0), case([17], -1.0), case([11, 17], 0.0)]
    assert other_zero(train, [case([11, 11, 17], 1 / 3)]) == []
    assert other_zero(train, [case([26], 5.0)]) == []
    assert other_zero(train, []) == other_zero([], train) == []

    (found,) = other_zero(train, [case([11, 11, 17], 1 / 3 + 0.5)])
    assert "+0.50 eV/atom off" in found.message


def test_names_to_overrule_are_checked(two: Labelled, tmp_path: Path) -> None:
    data = two.data()
    for allow, match in ((["same_validaton"], "did you mean 'same_validation'"), ("x", "list of")):
        with pytest.raises(ValueError, match=match):
            fixtures.trainer(allow=allow)
        with pytest.raises(ValueError, match=match):
            with_distill(data, data, tmp_path, allow=allow)


def test_units_are_overruled_by_name(
    two: Labelled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = fixtures.changed_store(
        two.store, tmp_path / "store", lambda name, v: -v if name == "stress" else v
    )
    train = two.data(store=store)

    with pytest.raises(DataError, match=r"allow: \[stress_sign\] overrules this"):
        check_student(fixtures.student(), train, Ratios(soft=WEIGHTS))

    check_student(fixtures.student(), train, Ratios(soft=WEIGHTS), allow=["stress_sign"])
    assert "overruled by allow: [stress_sign]" in caplog.text
    assert torch.isfinite(train.samples[0].targets["soft_s"]).all()
