"""The loss of Matin et al. 2025: equal to numpy, zero for a teacher, plain hippynn at weight 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.experiment import assemble_for_training

from kd_plugins.core.schedules import Constant, Piecewise
from kd_plugins.hippynn import (
    BORN_AGAIN,
    CONTROL,
    STUDENT,
    add_teacher_targets,
    distillation_loss,
)
from tests.hippynn import fixtures
from tests.tolerances import REORDERED

ALL = {"energy": 1, "forces": 10, "atomic_energies": 100, "teacher_energy": 2, "teacher_forces": 3}
TEACHER_TERMS = {"atomic_energies": 100, "teacher_energy": 1, "teacher_forces": 30}


def assemble(data: Any, model: fixtures.Hipnn, **settings: Any) -> tuple[Any, Any]:
    """Return a loss and hippynn's modules of it; sets the inputs and targets of the database."""
    settings = {"energies": "total", **settings}
    loss = distillation_loss(model.energy, model.forces, **settings)
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    return loss, modules


def batch_loss(data: Any, modules: Any, split: str = "train") -> torch.Tensor:
    """Return the training loss of a whole split."""
    (batch,) = data.make_generator(split, "eval", len(data.splits[split]["indices"]))
    outputs = modules.model(*batch[: len(data.inputs)])
    return modules.loss(*outputs, *batch[-len(data.targets) :])[0]


def test_teacher_as_its_own_student_has_zero_loss(shared_file: Callable[[str], Path]) -> None:
    """With finite gradients; those of hippynn's usual RMSE are NaN there."""
    data, model = fixtures.make_initialised(shared_file)
    add_teacher_targets(
        data, model.energy, tuple(name.removeprefix("teacher_") for name in TEACHER_TERMS)
    )
    _, modules = assemble(data, model, weights=TEACHER_TERMS)
    loss = batch_loss(data, modules)
    loss.backward()
    gradients = [p.grad for p in modules.model.parameters() if p.grad is not None]
    assert abs(loss.item()) < 1e-3
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("energies", ["total", "per_atom"])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_equals_numpy(shared_file: Callable[[str], Path], energies: str, seed: int) -> None:
    """Padded, shuffled and split, with some targets of atoms and structures missing."""
    data, model = fixtures.make_initialised(shared_file, split_seed=seed)
    add_teacher_targets(
        data, fixtures.copy_perturbed(model).energy, ("atomic_energies", "energy", "forces")
    )
    arrays = data.splits["train"]
    generator = torch.Generator().manual_seed(seed)
    for name in ("atomic_energies", "energy", "forces"):
        weight = arrays[f"teacher_{name}_weight"]
        weight *= torch.rand(weight.shape, generator=generator) > 0.4
    loss, modules = assemble(data, model, weights=ALL, energies=energies)
    expected = numpy_errors(arrays, fixtures.predict_with_hippynn(model, arrays), energies)
    found = modules.evaluator.evaluate(data.make_generator("train", "eval", 5), "train")
    assert sorted(found) == sorted(loss.validation)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-5, abs=3e-6)
    total = sum(w * (expected[f"{n}_rmse"] + expected[f"{n}_mae"]) for n, w in ALL.items())
    assert batch_loss(data, modules).item() == pytest.approx(total, rel=1e-4)


def numpy_errors(arrays: Any, predicted: Any, energies: str) -> dict[str, float]:
    """Return the errors by name, atom by atom."""
    real = arrays["numbers"].numpy() != 0
    sizes = real.sum(axis=1)[:, None] if energies == "per_atom" else 1
    apart = {
        "energy": (
            (predicted["energy"] - arrays["energy"].numpy()) / sizes,
            np.ones((len(real), 1)),
        ),
        "forces": (
            (predicted["forces"] - arrays["forces"].numpy())[real],
            np.ones((real.sum(), 1)),
        ),
    }
    for name in ("atomic_energies", "energy", "forces"):
        target = arrays[f"teacher_{name}"].numpy()
        weight = arrays[f"teacher_{name}_weight"].numpy()
        difference = predicted[name] - target
        key = name if name == "atomic_energies" else f"teacher_{name}"
        if name == "energy":
            apart[key] = (difference, weight)
        else:
            apart[key] = (difference[real].reshape(real.sum(), -1), weight[real][:, None])
    errors = {}
    for name, (difference, weight) in apart.items():
        whole = np.broadcast_to(weight, difference.shape).astype(float)
        errors[f"{name}_rmse"] = float(np.sqrt((whole * difference**2).sum() / whole.sum()))
        errors[f"{name}_mae"] = float((whole * np.abs(difference)).sum() / whole.sum())
    return errors


def test_batch_without_targets_has_zero_loss(shared_file: Callable[[str], Path]) -> None:
    data, model = fixtures.make_initialised(shared_file)
    add_teacher_targets(data, model.energy)
    data.splits["train"]["teacher_atomic_energies_weight"].zero_()
    _, modules = assemble(data, model, weights={"atomic_energies": 100})
    loss = batch_loss(data, modules)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    grads = [p.grad for p in modules.model.parameters() if p.grad is not None]
    assert all(not bool(grad.abs().max()) for grad in grads)


def test_run_of_weight_zero_equals_plain_hippynn(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Bit for bit, whether the term is left out or its scheduled weight is 0."""
    weights = {
        "plain": {"energy": 1, "forces": 10},
        "zero": {"energy": 1, "forces": 10, "atomic_energies": 0},
        "scheduled": {
            "energy": 1,
            "forces": 10,
            "atomic_energies": Piecewise(steps=(0, 2), weights=(0.0, 0.0)),
        },
    }
    histories = {}
    for name, chosen in weights.items():
        data, model = (
            fixtures.make_database(fixtures.read_molybdenum(shared_file)),
            fixtures.make_hipnn(3),
        )
        if name == "scheduled":
            add_teacher_targets(data, fixtures.make_hipnn(4).energy, align=True)
        metrics = fixtures.train_student(tmp_path / name, model, data, chosen)
        kept = ("energy_rmse", "energy_mae", "forces_rmse", "forces_mae")
        histories[name] = [
            [epoch[split][key] for split in ("train", "valid") for key in kept]
            for epoch in metrics.epoch_metric_values
        ]
        histories[name] += [dict(model.network.torch_module.named_parameters())]
    for name in ("zero", "scheduled"):
        *history, state = histories[name]
        *plain, expected = histories["plain"]
        assert history == plain
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_total_and_per_atom_differ_by_the_number_of_atoms(
    shared_file: Callable[[str], Path],
) -> None:
    structures = fixtures.read_molybdenum(shared_file, small=0, large=14)
    data, model = (
        fixtures.make_database([f for f in structures if len(f.atoms) == 53]),
        fixtures.make_hipnn(),
    )
    fixtures.initialise(model, data)
    values = [
        batch_loss(data, assemble(data, model, weights={"energy": 1}, energies=kind)[1])
        for kind in ("total", "per_atom")
    ]
    torch.testing.assert_close(values[0], 53 * values[1], **REORDERED[torch.float32])


def test_weights_are_those_of_matin_2025() -> None:
    """Appendix A.1 and table 1, which counts epochs from 1."""
    assert STUDENT["forces"] == 30 and CONTROL["forces"] == 10
    assert "atomic_energies" not in CONTROL
    rows = {0: (0.0, 75, 200), 198: (0.0, 75, 200), 199: (0.2, 63, 160), 500: (1, 15, 0)}
    for epoch, row in rows.items():
        names = ("energy", "forces", "atomic_energies")
        found = tuple(BORN_AGAIN[name](epoch) for name in names)  # type: ignore[operator]
        assert found == row


@pytest.mark.parametrize(
    ("weights", "settings", "error", "message"),
    [
        ({"atomic_energy": 1}, {}, KeyError, "did you mean 'atomic_energies'"),
        ({"energy": -1}, {}, ValueError, "weight of 'energy': a weight must be finite and >= 0"),
        ({"energy": float("nan")}, {}, ValueError, "weight of 'energy'"),
        ({"energy": "much"}, {}, ValueError, "weight of 'energy'"),
        ({"energy": 10**400}, {}, ValueError, "weight of 'energy'"),
        ({"energy": lambda epoch: -1.0}, {}, ValueError, "weight of 'energy' at epoch 0"),
        ({"energy": 0}, {}, ValueError, "expected one above 0 or more"),
        ({}, {}, ValueError, "expected one above 0 or more"),
        ({"energy": 1}, {"energies": "mean"}, ValueError, "expected 'total' or 'per_atom'"),
        ({"forces": 1}, {"force_node": None}, ValueError, "no force_node to compare"),
        ({"teacher_forces": 1}, {"force_node": None}, ValueError, "teacher_forces has a weight"),
    ],
)
def test_bad_weights_and_arguments_are_refused(
    weights: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = fixtures.make_hipnn()
    settings = {"force_node": model.forces, "energies": "total", **settings}
    with pytest.raises(error, match=message):
        distillation_loss(model.energy, weights=weights, **settings)


def test_node_without_labels_or_atomic_energies_is_refused() -> None:
    model = fixtures.make_hipnn()
    with pytest.raises(ValueError, match="has no db_name"):
        model.energy.main_output.set_dbname(None)
        distillation_loss(model.energy, weights={"energy": 1}, energies="total")
    with pytest.raises(ValueError, match="has no atomic energies"):
        distillation_loss(model.forces, weights={"atomic_energies": 1}, energies="total")


def test_term_of_weight_zero_adds_no_node() -> None:
    """The user's model stays as it is, and a misspelt term is still refused."""
    model = fixtures.make_hipnn()
    before = len(model.energy.get_all_connected())
    weights = {"energy": 1, "forces": 0, "atomic_energies": 0, "teacher_forces": 0}
    loss = distillation_loss(model.energy, weights=weights, energies="total")
    assert sorted(loss.validation) == ["energy_mae", "energy_rmse"]
    assert len(model.energy.get_all_connected()) == before
    with pytest.raises(KeyError, match="did you mean 'teacher_forces'"):
        distillation_loss(model.energy, weights={"energy": 1, "teacher_force": 0}, energies="total")


def test_constant_schedule_equals_a_number() -> None:
    model = fixtures.make_hipnn()
    loss = distillation_loss(model.energy, weights={"energy": Constant(2.0)}, energies="total")
    assert not loss.schedules and loss.weights["energy"].torch_module.value.item() == 2
