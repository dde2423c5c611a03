"""Structures with labels, with a teacher's targets, or with both, in one training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.databases import Database
from hippynn.experiment import assemble_for_training, load_checkpoint, train_model
from hippynn.pretraining import hierarchical_energy_initialization
from hippynn.tools import active_directory

from kd_plugins.hippynn import (
    DataError,
    add_teacher_targets,
    cache_pairs,
    check_database,
    distillation_loss,
    export_student,
    initialize_energies,
    to_arrays,
)
from kd_plugins.structures.readers import LabelledStructure
from tests.hippynn import fixtures
from tests.hippynn.test_docs import same
from tests.hippynn.test_targets import labelled as make_store

LABELS = {"energy": 1, "forces": 10}
TEACHER = {"atomic_energies": 100, "teacher_energy": 2, "teacher_forces": 3}
EVERYTHING = ("atomic_energies", "energy", "forces")


@pytest.fixture
def structures(shared_file: Callable[[str], Path]) -> list[LabelledStructure]:
    """Eight structures of as many atoms, so that a batch's share of them is that of its atoms."""
    all_sizes = fixtures.read_molybdenum(shared_file, small=0, large=14)
    return [one for one in all_sizes if len(one.atoms) == 53][:8]


@pytest.fixture
def teacher(structures: list[LabelledStructure]) -> fixtures.Hipnn:
    model = fixtures.make_hipnn(4)
    fixtures.initialise(model, make_database(structures))
    return model


def without_labels(
    structures: Sequence[LabelledStructure], rows: Sequence[int]
) -> list[LabelledStructure]:
    """Return the structures, some of them without labels."""
    return [replace(one, labels={}) if row in rows else one for row, one in enumerate(structures)]


def make_database(structures: Sequence[LabelledStructure], valid: int = 2) -> Any:
    """Return a database of which the last structures are for validation."""
    arrays = to_arrays(structures, allow_missing=True)
    data, n = Database(arrays, None, None, seed=0, quiet=True), len(structures)
    data.make_explicit_split("valid", torch.arange(n - valid, n))
    data.split_the_rest("train")
    return data


def batch_loss(
    data: Any, model: fixtures.Hipnn, weights: Any, rows: Sequence[int], **settings: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of some rows of the training split as a batch, and its gradient."""
    settings = {"database": data, "energies": "total", **settings}
    loss = distillation_loss(model.energy, model.forces, weights=weights, **settings)
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    arrays = data.splits["train"]
    inputs = [arrays[name][list(rows)] for name in info["inputs"]]
    targets = [arrays[name][list(rows)] for name in info["targets"]]

    modules.model.zero_grad()
    value = modules.loss(*modules.model(*inputs), *targets)[0]
    value.backward()
    named = modules.model.named_parameters()
    return value.item(), {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.mark.parametrize("energies", ["total", "per_atom"])
def test_complete_labels_give_the_loss_of_before(
    energies: str, structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    """Bit for bit, and without another array in hippynn's batches."""
    data, model = make_database(structures), fixtures.make_hipnn(3)
    add_teacher_targets(data, teacher.energy, EVERYTHING)
    results = [
        batch_loss(data, model, LABELS | TEACHER, range(6), database=database, energies=energies)
        for database in (data, None)
    ]
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


@pytest.mark.parametrize("energies", ["total", "per_atom"])
def test_unlabelled_structures_leave_the_labelled_loss_as_it_is(
    energies: str, structures: list[LabelledStructure]
) -> None:
    data, model = make_database(without_labels(structures, (1, 2, 4))), fixtures.make_hipnn(3)
    fixtures.initialise(model, make_database(structures))
    found, gradient = batch_loss(data, model, LABELS, range(6), energies=energies)
    expected, plain = batch_loss(
        make_database(structures), model, LABELS, (0, 3, 5), energies=energies
    )
    assert found == pytest.approx(expected, rel=1e-5)
    for name, value in plain.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-5)


def test_labelled_structure_counts_the_same_in_every_batch(
    structures: list[LabelledStructure],
) -> None:
    """The mean over an epoch of batches of one is that of the labelled structures alone."""
    data, model = make_database(without_labels(structures, (1, 2, 4))), fixtures.make_hipnn(3)
    single = [batch_loss(data, model, LABELS, [row])[0] for row in range(6)]
    whole = make_database(structures)
    alone = [batch_loss(whole, model, LABELS, [row])[0] for row in (0, 3, 5)]
    assert np.mean(single) == pytest.approx(np.mean(alone), rel=1e-5)

    empty, gradient = batch_loss(data, model, LABELS, [1, 2])
    assert empty == pytest.approx(0, abs=1e-6)
    assert not any(bool(value.abs().max()) for value in gradient.values())


def test_structure_with_both_equals_the_sum_of_its_parts(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    data, model = make_database(without_labels(structures, (1, 2))), fixtures.make_hipnn(3)
    add_teacher_targets(data, teacher.energy, EVERYTHING)
    both, label, target = (
        batch_loss(data, model, weights, [0]) for weights in (LABELS | TEACHER, LABELS, TEACHER)
    )
    assert both[0] == pytest.approx(label[0] + target[0], rel=1e-5)
    for name, value in both[1].items():
        total = label[1][name] + target[1][name]
        torch.testing.assert_close(value, total, rtol=1e-4, atol=1e-3)


def test_teacher_as_its_own_student_has_no_loss_on_unlabelled_structures(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    data = make_database(without_labels(structures, (1, 2)))
    add_teacher_targets(data, teacher.energy, EVERYTHING)
    loss, gradient = batch_loss(data, teacher, LABELS | TEACHER, [1, 2])
    assert loss == pytest.approx(0, abs=0.05)
    assert all(bool(value.isfinite().all()) for value in gradient.values())


def test_zero_of_energy_is_aligned_by_structures_that_have_both(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn, tmp_path: Path
) -> None:
    """Found on three labelled structures, taken off all, and said."""
    store = make_store(tmp_path, structures, teacher.energy)
    data = make_database(without_labels(structures, (1, 2, 4)))
    for arrays in data.splits.values():
        arrays["energy"] -= 53 * 2.5 * arrays["energy_weight"]  # another zero of the labels
    with pytest.raises(DataError, match="give align=True"):
        add_teacher_targets(data, store, EVERYTHING)

    report = add_teacher_targets(data, store, EVERYTHING, align=True)
    assert report.offsets[42] == pytest.approx(2.5, abs=0.02)
    said = r"aligned to the labels of 3 training structures.*: Mo \+2\.\d+$"
    assert re.search(said, str(report))
    expected = make_database(structures)
    add_teacher_targets(expected, store, EVERYTHING)
    for name, move in (("energy", 53 * report.offsets[42]), ("forces", 0.0)):
        moved = data.splits["train"][f"teacher_{name}"] + move
        target = expected.splits["train"][f"teacher_{name}"]
        torch.testing.assert_close(moved, target, rtol=0, atol=2e-3)


def test_unknown_zero_of_energy_is_refused(
    structures: list[LabelledStructure],
    teacher: fixtures.Hipnn,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing compares both where no labelled structure has a target."""
    store = make_store(tmp_path, structures[1:3], teacher.energy)
    data = make_database(without_labels(structures, (1, 2)))
    settings: dict[str, Any] = {"quantities": EVERYTHING, "allow_missing": True}
    with pytest.raises(DataError, match="no training structure has both .*energy_offset"):
        add_teacher_targets(data, store, **settings)
    with pytest.raises(DataError, match="align: no training structure has both"):
        add_teacher_targets(data, store, align=True, **settings)
    add_teacher_targets(data, store, ("forces",), allow_missing=True)

    data = make_database(without_labels(structures, (1, 2)))
    add_teacher_targets(data, store, allow=["energy_offset"], **settings)
    assert "overruled" in caplog.text


def test_teacher_fills_gaps_only(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    data = make_database(without_labels(structures, (1, 2)))
    add_teacher_targets(data, teacher.energy, EVERYTHING, skip_labelled=True)
    arrays = data.splits["train"]
    for name in ("energy", "forces"):
        total = arrays[f"{name}_weight"] + arrays[f"teacher_{name}_weight"]
        assert torch.equal(total, torch.ones_like(total))
    assert bool(arrays["teacher_atomic_energies_weight"].all())


def test_energies_of_atoms_start_from_labels_and_targets(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    partial, n = make_database(without_labels(structures, (1, 2))), 53

    def fitted(data: Any, start: Callable[..., None] = initialize_energies) -> float:
        model = fixtures.make_hipnn(3)
        start(model.energy, data)
        return model.energy.torch_module.layers[0].weight.item()

    whole = make_database(structures)
    assert fitted(whole) == fitted(whole, hierarchical_energy_initialization)
    labels = whole.splits["train"]["energy"]
    assert fitted(partial) == pytest.approx(labels[[0, 3, 4, 5]].mean().item() / n, rel=1e-6)
    add_teacher_targets(partial, teacher.energy, ("atomic_energies",))
    target = partial.splits["train"]["teacher_atomic_energies"].sum(1, keepdim=True)
    mixed = torch.cat([labels[[0, 3, 4, 5]], target[[1, 2]]]).mean().item() / n
    assert fitted(partial) == pytest.approx(mixed, rel=1e-6)

    nothing = make_database(without_labels(structures, range(8)))
    with pytest.raises(DataError, match="no training structure has an energy"):
        fitted(nothing)


def test_loss_that_takes_gaps_for_labels_is_refused(structures: list[LabelledStructure]) -> None:
    data, model = make_database(without_labels(structures, (1, 2))), fixtures.make_hipnn(3)
    loss = distillation_loss(model.energy, model.forces, weights=LABELS, energies="total")
    modules, _ = assemble_for_training(loss.train, dict(loss.validation))
    message = r"'train': '\w+': there is no label in 2 of 6 .*rows 1, 2; .*database=database"
    for check in (check_database, cache_pairs):
        with pytest.raises(DataError, match=message):
            check(modules, data)


def test_labels_that_the_training_lacks_are_refused_if_they_have_a_weight(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    data, model = make_database(without_labels(structures, range(6))), fixtures.make_hipnn(3)
    settings: dict[str, Any] = {"energies": "total", "database": data}
    with pytest.raises(ValueError, match=r"call add_teacher_targets\(database, teacher, .* before"):
        distillation_loss(model.energy, model.forces, weights=TEACHER, **settings)

    add_teacher_targets(data, teacher.energy, EVERYTHING)
    with pytest.raises(ValueError, match="no structure of the training split has 'energy'"):
        distillation_loss(model.energy, model.forces, weights=LABELS, **settings)

    loss = distillation_loss(model.energy, model.forces, weights=TEACHER, **settings)
    modules, _ = assemble_for_training(loss.train, dict(loss.validation))
    check_database(modules, data)


def test_validation_reports_no_error_of_labels_that_it_lacks(
    structures: list[LabelledStructure],
) -> None:
    """An error of 0 would make the first epoch's model the best."""
    model = fixtures.make_hipnn(3)
    for rows, names in (((1, 6), 4), ((1, 6, 7), 0)):
        data = make_database(without_labels(structures, rows))
        loss = distillation_loss(
            model.energy, model.forces, weights=LABELS, energies="total", database=data
        )
        assert len(loss.validation) == names


def test_validation_error_is_that_of_labelled_structures(
    structures: list[LabelledStructure],
) -> None:
    model = fixtures.make_hipnn(3)
    errors = []
    for rows, valid in (((1, 6), 2), ((1,), 1)):
        data = make_database(without_labels(structures, rows), valid)
        loss = distillation_loss(
            model.energy, model.forces, weights=LABELS, energies="total", database=data
        )
        modules, info = assemble_for_training(loss.train, dict(loss.validation))
        data.inputs, data.targets = info["inputs"], info["targets"]
        errors.append(modules.evaluator.evaluate(data.make_generator("valid", "eval", 1), "valid"))
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore:May override plots")
def test_resumed_training_equals_uninterrupted_and_exports(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn, tmp_path: Path
) -> None:
    """Bit for bit, with labelled, taught and both kinds of structures."""

    def prepare() -> Any:
        data = make_database(without_labels(structures, (1, 2)))
        add_teacher_targets(data, teacher.energy, ("energy", "forces"))
        data.splits["train"]["teacher_forces_weight"][3] = 0
        return data

    data, model = prepare(), fixtures.make_hipnn(3)
    weights = {**LABELS, "teacher_energy": 1, "teacher_forces": 10}
    loss = distillation_loss(
        model.energy, model.forces, weights=weights, energies="total", database=data
    )
    modules, controller, metrics = fixtures.set_up(model, data, loss, max_epochs=4)
    fixtures.train(tmp_path, modules, data, controller, metrics, store_every=1)
    whole = (tmp_path / "model_epoch_3.pt").rename(tmp_path / "whole.pt")

    run = load_checkpoint(
        str(tmp_path / "experiment_structure.pt"),
        str(tmp_path / "checkpoint_epoch_1.pt"),
        weights_only=False,
    )
    data = prepare()
    info = run["training_modules"].evaluator.db_info
    data.inputs, data.targets = info["inputs"], info["targets"]
    with active_directory(str(tmp_path), create=False):
        train_model(
            run["training_modules"],
            data,
            run["controller"],
            run["metric_tracker"],
            None,
            None,
            store_every=1,
            store_structure_file=False,
            quiet=True,
        )
    assert same(tmp_path / "model_epoch_3.pt", whole)

    # It refuses a model or loss that holds something of this package.
    export_student(tmp_path, tmp_path / "student")
