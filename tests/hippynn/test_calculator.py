"""A trained HIPNN as an ASE calculator and as a teacher in batches; its learning curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from kd_plugins.hippynn import (
    HippynnTeacher,
    add_teacher_targets,
    export_student,
    to_arrays,
    write_curves,
)
from kd_plugins.hippynn.calculator import LARGEST_IN_BATCH, hippynn
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import CalculatorTeacher, TeacherError, load_teacher
from kd_plugins.teachers.calculator import _device_of, describe, weight_dtype
from tests.devices import moves_a_model_to_meta
from tests.hippynn import fixtures
from tests.teachers.batching import assert_batch_independent

FLOAT32 = 1e-5
"""Rounding of a batch's sums, as a part of a structure's largest number; measured: 2e-6."""


@pytest.fixture(scope="module")
def structures(shared_file: Callable[[str], Path]) -> list[LabelledStructure]:
    return fixtures.read_molybdenum(shared_file, large=4)


@pytest.fixture(scope="module")
def run(structures: list[LabelledStructure], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a model was trained for two epochs."""
    folder = tmp_path_factory.mktemp("run") / "run"
    data, model = fixtures.make_database(structures), fixtures.make_hipnn()
    fixtures.initialise(model, data)
    weights = {"energy": 1, "forces": 1}
    fixtures.train_student(folder, model, data, weights, max_epochs=2)
    return folder


def make_bulk(repeats: int) -> Atoms:
    atoms = bulk("Mo", cubic=True) * (repeats, repeats, repeats)
    atoms.rattle(0.05, seed=0)
    return atoms


def predict(teacher: object, atoms: Atoms, *quantities: str) -> dict[str, np.ndarray]:
    (predicted,) = teacher.predict([atoms], quantities)
    return predicted


def test_predictions_equal_hippynns_own(
    run: Path, structures: list[LabelledStructure], tmp_path: Path
) -> None:
    export_student(run, tmp_path / "student")
    arrays = {name: torch.as_tensor(one) for name, one in to_arrays(structures).items()}
    expected = HippynnTeacher(str(run)).predict_arrays(arrays, ("energy", "forces"))
    for folder in (run, tmp_path / "student"):
        teacher = load_teacher(f"hippynn folder={folder}")
        for row, one in enumerate(structures[:3]):
            predicted = predict(teacher, one.atoms, "energy", "forces", "stress")
            forces = expected["forces"][row][: len(one.atoms)]
            assert float(predicted["energy"]) == pytest.approx(expected["energy"][row], rel=1e-5)
            np.testing.assert_allclose(predicted["forces"], forces, atol=2e-4)
            assert predicted["stress"].shape == (6,)


def test_targets_do_not_depend_on_the_batch(run: Path) -> None:
    """Small crystals, which are batched, one that is too large, and a molecule, which are not."""
    teacher = load_teacher(f"hippynn folder={run}", device="cpu")
    crystals = [make_bulk(1), make_bulk(2), make_bulk(3)]
    large, molecule = make_bulk(5), Atoms("Mo3", [[0, 0, 0], [0, 0, 2.3], [0, 2, 1]])
    assert len(large) > LARGEST_IN_BATCH
    assert_batch_independent(teacher, [*crystals, large], tolerance=FLOAT32)
    assert_batch_independent(teacher, [crystals[0], molecule, crystals[1]], ["forces"], FLOAT32)
    assert "stress" not in predict(teacher, molecule, *teacher.quantities)


def test_targets_of_models_do_not_depend_on_the_batch(run: Path) -> None:
    """Of one model, and the mean and spread of several."""
    crystals = [make_bulk(1), make_bulk(2), make_bulk(3)]
    for models in (str(run), [str(run), fixtures.make_hipnn(3).energy]):
        teacher = HippynnTeacher(models, batch_size=2, device="cpu")
        assert ("energy_std" in teacher.quantities) == isinstance(models, list)
        assert_batch_independent(teacher, crystals, tolerance=FLOAT32)


@pytest.mark.parametrize("unit", ["eV", "kcal/mol"])
def test_batches_equal_the_calculator(
    run: Path, structures: list[LabelledStructure], unit: str
) -> None:
    """In either unit of energy, for all quantities that the calculator has."""
    calculator = hippynn(str(run), energy_unit=unit, device="cpu")
    in_batches, one_by_one = calculator.as_teacher(), CalculatorTeacher(calculator)
    atoms = [one.atoms for one in structures]
    assert in_batches.batch_size > 1 == one_by_one.batch_size
    found, expected = (
        teacher.predict(atoms, teacher.quantities) for teacher in (in_batches, one_by_one)
    )
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other) == set(one_by_one.quantities)
        for name, value in other.items():
            largest = max(1.0, np.abs(value).max())
            np.testing.assert_allclose(one[name], value, rtol=0, atol=FLOAT32 * largest)


def test_fingerprint_is_that_of_version_0_1_0(run: Path) -> None:
    """So that a store which that version began to label goes on."""
    teacher = load_teacher(f"hippynn folder={run}")
    assert teacher.fingerprint == describe(teacher.calculator)
    assert teacher.receptive_field == 4.0
    assert teacher.fingerprint.startswith("kd_plugins.hippynn.calculator.ElementsCalculator(weig")
    assert HippynnTeacher(str(run)).fingerprint == HippynnTeacher(str(run), 2).fingerprint


def test_device_is_reported_and_must_exist(run: Path) -> None:
    assert load_teacher(f"hippynn folder={run}", device="cpu").device == "cpu"
    assert HippynnTeacher(str(run), device="cpu").device == "cpu"
    missing = f"cuda:{torch.cuda.device_count()}"
    for make in (
        lambda: load_teacher(f"hippynn folder={run}", device=missing),
        lambda: hippynn(str(run), device=missing),
        lambda: HippynnTeacher(str(run), device=missing),
    ):
        with pytest.raises(TeacherError, match="device: expected one that this machine has"):
            make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_targets_of_a_cuda_device_equal_the_cpus(
    run: Path, structures: list[LabelledStructure]
) -> None:
    atoms = [one.atoms for one in structures]
    teachers = [load_teacher(f"hippynn folder={run}", device=one) for one in ("cuda", "cpu")]
    assert [teacher.device.partition(":")[0] for teacher in teachers] == ["cuda", "cpu"]
    assert teachers[0].fingerprint == teachers[1].fingerprint
    found, expected = (one.predict(atoms, one.quantities) for one in teachers)
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-4, atol=1e-4)


def test_stress_is_the_derivative_of_the_energy(run: Path) -> None:
    """In eV/Å³ and Voigt order, tension positive."""
    teacher, atoms = load_teacher(f"hippynn folder={run}"), make_bulk(2)
    stress, step, volume = predict(teacher, atoms, "stress")["stress"], 1e-3, atoms.get_volume()
    for place, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(float(predict(teacher, strained, "energy")["energy"]))
        slope = (energies[0] - energies[1]) / (2 * step * volume)
        assert stress[place] == pytest.approx(slope, abs=2e-3), place


def test_unknown_element_is_refused(run: Path) -> None:
    """hippynn itself would take it for padding. In a batch it is refused as alone."""
    teacher, copper = load_teacher(f"hippynn folder={run}"), bulk("Cu", cubic=True) * (2, 2, 2)
    for structures in ([copper], [make_bulk(1), copper]):
        with pytest.raises(ValueError, match="does not know element 29; it knows 42"):
            teacher.predict(structures, ["energy"])


def test_models_refuse_structures_of_another_periodicity(run: Path) -> None:
    molecule = Atoms("Mo2", [[0, 0, 0], [0, 0, 2.3]])
    with pytest.raises(ValueError, match="Mo2: expected a structure that is periodic along all"):
        HippynnTeacher(str(run)).predict([make_bulk(1), molecule], ["energy"])


def test_energy_unit_is_converted_and_bad_arguments_are_refused(
    run: Path, structures: list[LabelledStructure], tmp_path: Path
) -> None:
    atoms = structures[0].atoms
    in_ev, in_kcal = (
        float(
            predict(load_teacher(f"hippynn folder={run} energy_unit={unit}"), atoms, "energy")[
                "energy"
            ]
        )
        for unit in ("eV", "kcal/mol")
    )
    assert in_kcal == pytest.approx(in_ev / 23.0605, rel=1e-4)
    with pytest.raises(TeacherError, match="expected eV or kcal/mol, got 'J'"):
        load_teacher(f"hippynn folder={run} energy_unit=J")
    with pytest.raises(TeacherError, match="has no best_model.pt"):
        load_teacher(f"hippynn folder={tmp_path}")


def test_curves_hold_every_finite_metric(tmp_path: Path) -> None:
    epochs = [
        {"train": {"loss": 2.0}, "valid": {"loss": 3.0}},
        {"train": {"loss": float("nan")}, "valid": {"loss": torch.tensor(1.0)}},
    ]
    write_curves(SimpleNamespace(epoch_metric_values=epochs), tmp_path / "curves.json")
    assert json.loads((tmp_path / "curves.json").read_text()) == {
        "train loss": {"epochs": [1], "values": [2.0]},
        "valid loss": {"epochs": [1, 2], "values": [3.0, 1.0]},
    }
    with pytest.raises(ValueError, match="no epoch yet"):
        write_curves(SimpleNamespace(epoch_metric_values=[]), tmp_path / "none.json")


def test_device_and_dtype_reach_the_model(run: Path, structures: list[LabelledStructure]) -> None:
    """On torch's ``meta`` a model has a device without any hardware."""
    assert _device_of(HippynnTeacher(str(run), device="meta")) == "meta"
    with moves_a_model_to_meta():
        add_teacher_targets(fixtures.make_database(structures), str(run), device="meta")
    assert weight_dtype(hippynn(str(run), dtype="float64")) == "float64"
    assert weight_dtype(HippynnTeacher(str(run), dtype="float64")) == "float64"
    assert weight_dtype(hippynn(str(run))) == "float32"


def test_float64_has_the_same_forces_with_less_rounding(run: Path) -> None:
    """The sum of all forces is zero but for rounding."""
    atoms = make_bulk(2)
    single, double = (
        predict(load_teacher(f"hippynn folder={run} dtype={dtype}"), atoms, "forces")["forces"]
        for dtype in ("float32", "float64")
    )
    assert np.abs(single - double).max() < 1e-4
    assert np.abs(double.sum(axis=0)).max() < 1e-12


def test_another_dtype_is_refused(run: Path) -> None:
    with pytest.raises(TeacherError, match="dtype: expected float32 or float64, got 'float16'"):
        hippynn(str(run), dtype="float16")
