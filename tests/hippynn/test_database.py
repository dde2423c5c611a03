"""Checks of a database beside a model: errors that hippynn does not explain, before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.databases import Database
from hippynn.experiment import assemble_for_training
from hippynn.graphs import inputs, networks, physics, targets

from kd_plugins.hippynn import (
    DataError,
    add_teacher_targets,
    cache_pairs,
    check_database,
    distillation_loss,
    to_arrays,
)
from tests.hippynn import fixtures

WEIGHTS = {"energy": 1, "forces": 10, "atomic_energies": 100, "teacher_energy": 1}


def assemble(
    data: Any, model: fixtures.Hipnn, weights: Mapping[str, Any] = WEIGHTS, energies: str = "total"
) -> Any:
    loss = distillation_loss(model.energy, model.forces, weights=weights, energies=energies)
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    return modules


def make_labelled(shared_file: Callable[[str], Path]) -> tuple[Any, fixtures.Hipnn]:
    data, model = fixtures.make_initialised(shared_file, small=6, large=6)
    add_teacher_targets(data, model.energy, ("atomic_energies", "energy"))
    return data, model


def test_matching_database_passes(shared_file: Callable[[str], Path]) -> None:
    data, model = make_labelled(shared_file)
    check_database(assemble(data, model), data)


@pytest.mark.parametrize("check", [check_database, cache_pairs])
def test_missing_targets_name_the_call_that_adds_them(
    check: Any, shared_file: Callable[[str], Path]
) -> None:
    """hippynn itself raises KeyError: 'teacher_atomic_energies'."""
    data, model = (
        fixtures.make_database(fixtures.read_molybdenum(shared_file)),
        fixtures.make_hipnn(),
    )
    modules = assemble(data, model, {"energy": 1, "atomic_energies": 100})
    with pytest.raises(KeyError, match="teacher_atomic_energies"):
        data.make_generator("train", "train", 4)
    message = (
        r"split '\w+': no array 'teacher_atomic_energies.*call add_teacher_targets\(database, "
        r"teacher, \[..., 'atomic_energies'\]\) before, or leave 'atomic_energies' out of the w"
    )
    with pytest.raises(DataError, match=message):
        check(modules, data)


@pytest.mark.parametrize("element", [47, 20])
def test_element_that_the_student_lacks_is_refused(
    element: int, shared_file: Callable[[str], Path]
) -> None:
    """hippynn raises IndexError, or no error if the element is lighter than the heaviest."""
    data, model = make_labelled(shared_file)
    data.splits["train"]["numbers"][2, 0] = element
    modules = assemble(data, model)
    message = f"'train': the model does not know element {element} .it knows 42. in 1 of .*row 2"
    for check in (check_database, cache_pairs):
        with pytest.raises(DataError, match=message):
            check(modules, data)


def without(name: str, split: str = "train") -> Callable[[Any], None]:
    return lambda data: data.splits[split].pop(name)


def nan(name: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        data.splits["valid"][name][1] = float("nan")

    return change


def negative(data: Any) -> None:
    data.splits["train"]["teacher_energy_weight"][3] = -1


def doubled(data: Any) -> None:
    arrays = data.splits["train"]
    arrays["positions"] = arrays["positions"].double()


def shorter(data: Any) -> None:
    arrays = data.splits["train"]
    arrays["forces"] = arrays["forces"][:-1]


BAD: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "no energies": (without("energy"), "'train': no array 'energy'.* db_name"),
    "no weights": (without("teacher_energy_weight", "valid"), r"\[..., 'energy'\]"),
    "no positions": (without("positions"), "no array 'positions'"),
    "NaN labels": (nan("forces"), "split 'valid': 'forces' is NaN or inf in 1 of .*row 1"),
    "NaN targets": (nan("teacher_atomic_energies"), "'teacher_atomic_energies' is NaN or inf"),
    "negative weights": (negative, "'teacher_energy_weight' is negative in 1 of .*row 3"),
    "float64": (doubled, r"torch.float64, but the model's weights are torch.float32"),
    "rows": (shorter, "'forces': expected .* rows as of the species"),
    "a molecule": (lambda d: d.splits["test"]["cell"][0].zero_(), "'test': 'cell' has no volume"),
    "no validation": (lambda d: d.splits.pop("valid"), "has no split 'valid' among .*train"),
    "no split": (lambda d: d.splits.clear(), "has not been split; split it first"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_database_is_refused_before_training(
    name: str, shared_file: Callable[[str], Path]
) -> None:
    change, message = BAD[name]
    data, model = make_labelled(shared_file)
    modules = assemble(data, model)
    change(data)
    for check in (check_database, cache_pairs):
        with pytest.raises(DataError, match=message):
            check(modules, data)
    assert not any("AutoPrecomputedPairs" in arrays for arrays in data.splits.values())


def test_missing_energies_per_atom_are_refused(shared_file: Callable[[str], Path]) -> None:
    data, model = make_labelled(shared_file)
    del data.splits["train"]["energy_per_atom"]
    modules = assemble(data, model, {"energy": 1}, energies="per_atom")
    with pytest.raises(DataError, match="no array 'energy_per_atom'"):
        check_database(modules, data)


@pytest.mark.parametrize("wrong", [3, None, {"train": {}}])
def test_wrong_types_are_refused(wrong: Any, shared_file: Callable[[str], Path]) -> None:
    data, model = make_labelled(shared_file)
    modules = assemble(data, model)
    for check in (check_database, cache_pairs):
        with pytest.raises(DataError, match="expected a hippynn Database, got"):
            check(modules, wrong)
    with pytest.raises(DataError, match="expected the training modules of assemble_for_training"):
        check_database(wrong, data)


def test_cells_that_a_model_does_not_read_are_logged(
    shared_file: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"possible_species": [0, 42], "n_features": 4, "n_sensitivities": 4}
    sizes |= {"dist_soft_min": 1.5, "dist_soft_max": 3.5, "dist_hard_max": 4.0}
    sizes |= {"n_interaction_layers": 1, "n_atom_layers": 1}
    species, positions = inputs.SpeciesNode(db_name="numbers"), inputs.PositionsNode("positions")
    positions.set_dbname("positions")
    network = networks.Hipnn("hipnn", (species, positions), module_kwargs=sizes)
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    forces = physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")
    arrays = to_arrays(fixtures.read_molybdenum(shared_file, small=4, large=2))
    data = Database(arrays, None, None, seed=0, test_size=1, valid_size=1, quiet=True)
    modules = assemble(data, fixtures.Hipnn(network, energy, forces), {"energy": 1, "forces": 1})
    check_database(modules, data)
    assert "there are cells, but the model has none" in caplog.text
    with pytest.raises(DataError, match="OpenPairIndexer; hippynn caches those of one Periodic"):
        cache_pairs(modules, data)


def test_half_precision_is_refused(shared_file: Callable[[str], Path]) -> None:
    data, model = make_labelled(shared_file)
    modules = assemble(data, model)
    for arrays in data.splits.values():
        arrays["positions"] = torch.as_tensor(arrays["positions"].numpy().astype(np.float16))
    with pytest.raises(DataError, match="expected float32 or float64"):
        check_database(modules, data)


def test_nan_in_the_padding_of_labels_passes(shared_file: Callable[[str], Path]) -> None:
    data, model = make_labelled(shared_file)
    for arrays in data.splits.values():
        arrays["forces"][arrays["numbers"] == 0] = float("nan")
    check_database(assemble(data, model), data)
