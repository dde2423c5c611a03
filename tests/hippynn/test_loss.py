"""The loss of paper 003 against numpy, and what must be zero, equal or refused."""

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
from tests.hippynn import small
from tests.tolerances import REORDERED

ALL = {"energy": 1, "forces": 10, "atomic_energies": 100, "teacher_energy": 2, "teacher_forces": 3}
TAUGHT = {"atomic_energies": 100, "teacher_energy": 1, "teacher_forces": 30}


def assembled(data: Any, model: small.Hipnn, **settings: Any) -> tuple[Any, Any]:
    """Return a loss and hippynn's modules of it, with the database told what they need."""
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


def test_a_teacher_as_its_own_student_has_no_loss(shared_file: Callable[[str], Path]) -> None:
    """And finite gradients, where the root of the usual RMSE gives NaN."""
    data, model = small.database(small.frames(shared_file)), small.hipnn()
    small.initialise(model, data)
    add_teacher_targets(data, model.energy, tuple(name.removeprefix("teacher_") for name in TAUGHT))
    _, modules = assembled(data, model, weights=TAUGHT)
    loss = batch_loss(data, modules)
    loss.backward()
    gradients = [p.grad for p in modules.model.parameters() if p.grad is not None]
    assert abs(loss.item()) < 1e-3
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("energies", ["total", "per_atom"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_numpys(shared_file: Callable[[str], Path], energies: str, seed: int) -> None:
    """Of a shuffled and split database, padded, with targets of some atoms and structures gone."""
    data, model = small.database(small.frames(shared_file), seed=seed), small.hipnn()
    small.initialise(model, data)
    add_teacher_targets(data, small.near(model).energy, ("atomic_energies", "energy", "forces"))
    arrays = data.splits["train"]
    generator = torch.Generator().manual_seed(seed)
    for name in ("atomic_energies", "energy", "forces"):
        weight = arrays[f"teacher_{name}_weight"]
        weight *= torch.rand(weight.shape, generator=generator) > 0.4
    loss, modules = assembled(data, model, weights=ALL, energies=energies)
    expected = numpy_loss(arrays, small.predicted(model, arrays), energies)
    found = modules.evaluator.evaluate(data.make_generator("train", "eval", 5), "train")
    assert sorted(found) == sorted(loss.validation)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-5, abs=3e-6)
    total = sum(w * (expected[f"{n}_rmse"] + expected[f"{n}_mae"]) for n, w in ALL.items())
    assert batch_loss(data, modules).item() == pytest.approx(total, rel=1e-4)


def numpy_loss(arrays: Any, said: Any, energies: str) -> dict[str, float]:
    """Return the errors by name, atom by atom."""
    real = arrays["numbers"].numpy() != 0
    sizes = real.sum(axis=1)[:, None] if energies == "per_atom" else 1
    apart = {
        "energy": ((said["energy"] - arrays["energy"].numpy()) / sizes, np.ones((len(real), 1))),
        "forces": ((said["forces"] - arrays["forces"].numpy())[real], np.ones((real.sum(), 1))),
    }
    for name in ("atomic_energies", "energy", "forces"):
        target = arrays[f"teacher_{name}"].numpy()
        weight = arrays[f"teacher_{name}_weight"].numpy()
        difference = said[name] - target
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


def test_a_batch_without_targets_counts_nothing(shared_file: Callable[[str], Path]) -> None:
    data, model = small.database(small.frames(shared_file)), small.hipnn()
    small.initialise(model, data)
    add_teacher_targets(data, model.energy)
    data.splits["train"]["teacher_atomic_energies_weight"].zero_()
    _, modules = assembled(data, model, weights={"atomic_energies": 100})
    loss = batch_loss(data, modules)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    grads = [p.grad for p in modules.model.parameters() if p.grad is not None]
    assert all(not bool(grad.abs().max()) for grad in grads)


def test_with_weight_zero_a_run_is_hippynns_own(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Bit for bit, whether the term is left out or scheduled to count nothing."""
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
        data, model = small.database(small.frames(shared_file)), small.hipnn(3)
        if name == "scheduled":
            add_teacher_targets(data, small.hipnn(4).energy, align=True)
        metrics = small.student(tmp_path / name, model, data, chosen)
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
    frames = small.frames(shared_file, small=0, large=14)
    data, model = small.database([f for f in frames if len(f.atoms) == 53]), small.hipnn()
    small.initialise(model, data)
    values = [
        batch_loss(data, assembled(data, model, weights={"energy": 1}, energies=kind)[1])
        for kind in ("total", "per_atom")
    ]
    torch.testing.assert_close(values[0], 53 * values[1], **REORDERED[torch.float32])


def test_the_papers_weights() -> None:
    """A.1 and Table 1, whose epoch 1 is hippynn's 0."""
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
def test_what_a_loss_refuses(
    weights: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = small.hipnn()
    settings = {"force_node": model.forces, "energies": "total", **settings}
    with pytest.raises(error, match=message):
        distillation_loss(model.energy, weights=weights, **settings)


def test_a_node_without_labels_or_atomic_energies_is_refused() -> None:
    model = small.hipnn()
    with pytest.raises(ValueError, match="has no db_name"):
        model.energy.main_output.set_dbname(None)
        distillation_loss(model.energy, weights={"energy": 1}, energies="total")
    with pytest.raises(ValueError, match="has no atomic energies"):
        distillation_loss(model.forces, weights={"atomic_energies": 1}, energies="total")


def test_a_term_without_weight_needs_nothing_and_leaves_nothing() -> None:
    """No node of it hangs on the user's model, and a misspelt one is still refused."""
    model = small.hipnn()
    before = len(model.energy.get_all_connected())
    weights = {"energy": 1, "forces": 0, "atomic_energies": 0, "teacher_forces": 0}
    loss = distillation_loss(model.energy, weights=weights, energies="total")
    assert sorted(loss.validation) == ["energy_mae", "energy_rmse"]
    assert len(model.energy.get_all_connected()) == before
    with pytest.raises(KeyError, match="did you mean 'teacher_forces'"):
        distillation_loss(model.energy, weights={"energy": 1, "teacher_force": 0}, energies="total")


def test_a_constant_schedule_is_a_number() -> None:
    model = small.hipnn()
    loss = distillation_loss(model.energy, weights={"energy": Constant(2.0)}, energies="total")
    assert not loss.schedules and loss.weights["energy"].torch_module.value.item() == 2
