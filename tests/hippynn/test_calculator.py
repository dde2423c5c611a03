"""A trained HIPNN by the name ``hippynn``, and its learning curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import bulk

from kd_plugins.hippynn import HippynnTeacher, export_student, to_arrays, write_curves
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import TeacherError, load_teacher
from tests.hippynn import small


@pytest.fixture(scope="module")
def run(
    shared_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[LabelledStructure]]:
    """A model that was trained for two epochs, with structures."""
    folder, frames = tmp_path_factory.mktemp("run"), small.frames(shared_file, large=4)
    data, model = small.database(frames), small.hipnn()
    small.initialise(model, data)
    weights = {"energy": 1, "forces": 1}
    small.student(folder / "run", model, data, weights, max_epochs=2)
    return folder / "run", frames


def test_it_says_what_hippynn_says(
    run: tuple[Path, list[LabelledStructure]], tmp_path: Path
) -> None:
    folder, frames = run
    export_student(folder, tmp_path / "student")
    arrays = {name: torch.as_tensor(one) for name, one in to_arrays(frames).items()}
    expected = HippynnTeacher(str(folder)).predict_arrays(arrays, ("energy", "forces"))
    for name in (folder, tmp_path / "student"):
        teacher = load_teacher(f"hippynn folder={name}")
        for row, frame in enumerate(frames[:3]):
            said = teacher(frame.atoms, ["energy", "forces", "stress"])
            real = expected["forces"][row][: len(frame.atoms)]
            assert float(said["energy"]) == pytest.approx(expected["energy"][row], rel=1e-5)
            np.testing.assert_allclose(said["forces"], real, atol=2e-4)
            assert said["stress"].shape == (6,)


def test_stress_is_the_derivative_of_the_energy(run: tuple[Path, list[LabelledStructure]]) -> None:
    """In eV/Å³ and Voigt order, tension positive."""
    teacher, atoms = load_teacher(f"hippynn folder={run[0]}"), bulk("Mo", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    stress, step, volume = teacher(atoms, ["stress"])["stress"], 1e-3, atoms.get_volume()
    for place, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(float(teacher(strained, ["energy"])["energy"]))
        slope = (energies[0] - energies[1]) / (2 * step * volume)
        assert stress[place] == pytest.approx(slope, abs=2e-3), place


def test_an_unknown_element_is_refused(run: tuple[Path, list[LabelledStructure]]) -> None:
    """hippynn itself would take it for padding."""
    teacher = load_teacher(f"hippynn folder={run[0]}")
    with pytest.raises(ValueError, match="does not know element 29; it knows 42"):
        teacher(bulk("Cu", cubic=True) * (2, 2, 2), ["energy"])


def test_units_and_folders(run: tuple[Path, list[LabelledStructure]], tmp_path: Path) -> None:
    folder, frames = run
    atoms = frames[0].atoms
    in_ev, in_kcal = (
        float(
            load_teacher(f"hippynn folder={folder} energy_unit={unit}")(atoms, ["energy"])["energy"]
        )
        for unit in ("eV", "kcal/mol")
    )
    assert in_kcal == pytest.approx(in_ev / 23.0605, rel=1e-4)
    with pytest.raises(TeacherError, match="expected eV or kcal/mol, got 'J'"):
        load_teacher(f"hippynn folder={folder} energy_unit=J")
    with pytest.raises(TeacherError, match="has no best_model.pt"):
        load_teacher(f"hippynn folder={tmp_path}")


def test_curves(tmp_path: Path) -> None:
    """Every metric over its epochs; what is not finite is left out."""
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
