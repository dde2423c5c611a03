"""Forces and gradients are told apart, and nobody learns one from labels of the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.databases import Database
from hippynn.graphs import inputs, physics
from hippynn.graphs.nodes.misc import StrainInducer

from kd_plugins.hippynn import ArrayNames, add_teacher_targets, distillation_loss, to_arrays
from kd_plugins.hippynn.loss import sign_of
from tests.hippynn import small
from tests.hippynn.test_loss import assembled, batch_loss

FORCES = {"energies": "total", "weights": {"forces": 1}}


def gradient(model: small.Hipnn, sign: int, db_name: str) -> Any:
    positions = model.energy.find_unique_relative(lambda n: isinstance(n, inputs.PositionsNode))
    return physics.GradientNode("slope", (model.energy, positions), sign=sign, db_name=db_name)


def multiple(model: small.Hipnn, sign: int) -> Any:
    positions = model.energy.find_unique_relative(lambda n: isinstance(n, inputs.PositionsNode))
    node = physics.MultiGradientNode("slopes", model.energy.main_output, (positions,), (sign,))
    child = node.children[0]
    child.set_dbname("forces")
    return child


@pytest.mark.parametrize("make", [lambda m: gradient(m, 1, "forces"), lambda m: multiple(m, 1)])
def test_gradients_do_not_learn_forces(make: Callable[[Any], Any]) -> None:
    """Node, sign, array and remedy are named."""
    model = small.hipnn()
    message = r"node .slope.*sign=\+1.*array 'forces'; give sign=-1;.*allow: \[forces_sign\]"
    with pytest.raises(ValueError, match=message):
        distillation_loss(model.energy, make(model), **FORCES)


def test_forces_do_not_learn_gradients() -> None:
    model = small.hipnn()
    with pytest.raises(ValueError, match=r"sign=-1.*array 'Grad'; give sign=\+1"):
        distillation_loss(model.energy, gradient(model, -1, "Grad"), **FORCES)


@pytest.mark.parametrize(("sign", "name"), [(1, "gradients"), (-1, "forces"), (-1, "F")])
def test_labels_of_the_nodes_sign_are_taken(sign: int, name: str) -> None:
    model = small.hipnn()
    distillation_loss(model.energy, gradient(model, sign, name), **FORCES)


def test_who_knows_better_overrules(caplog: pytest.LogCaptureFixture) -> None:
    model = small.hipnn()
    node = gradient(model, 1, "F")
    distillation_loss(model.energy, node, allow=["forces_sign"], **FORCES)
    assert "overruled by allow: [forces_sign]" in caplog.text
    with pytest.raises(ValueError, match="did you mean 'forces_sign'"):
        distillation_loss(model.energy, node, allow=["force_sign"], **FORCES)


def test_the_sign_is_read_through_arithmetic() -> None:
    model = small.hipnn()
    slope = gradient(model, 1, "gradients")
    assert [sign_of(one) for one in (slope, -slope, -0.5 * slope, slope * 2.0)] == [1, -1, -1, 1]
    assert sign_of(multiple(model, -1)) == -1
    assert sign_of(model.energy.main_output) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_teachers_forces_are_forces_for_either_node(
    shared_file: Callable[[str], Path], sign: int
) -> None:
    """A teacher as its own student has no loss, and gradients as labels are compared as such."""
    name = "gradients" if sign == 1 else "forces"
    arrays = to_arrays(small.frames(shared_file, large=6), names=ArrayNames(forces=name))
    data = Database(arrays, None, None, seed=0, test_size=3, valid_size=3, quiet=True)
    model = small.hipnn()
    small.initialise(model, data)
    node = gradient(model, sign, name)
    add_teacher_targets(data, model.energy, ("energy", "forces"), names=ArrayNames(forces=name))
    twin = small.Hipnn(model.network, model.energy, node)
    _, modules = assembled(data, twin, weights={"teacher_forces": 30})
    assert abs(batch_loss(data, modules).item()) < 1e-3


def test_gradients_as_labels_are_the_opposite_of_forces(
    shared_file: Callable[[str], Path],
) -> None:
    frames = small.frames(shared_file, small=2, large=0)
    forces = to_arrays(frames)["forces"]
    found = to_arrays(frames, names=ArrayNames(forces="gradients"))["gradients"]
    np.testing.assert_array_equal(found, -forces)


def test_forces_of_another_model_are_refused() -> None:
    model, other = small.hipnn(), small.hipnn(3)
    with pytest.raises(ValueError, match="node 'forces' belongs to another model than energy"):
        distillation_loss(model.energy, other.forces, **FORCES)


def test_a_node_of_forces_and_stress_gives_its_forces() -> None:
    model = small.hipnn()
    nodes = [
        model.energy.find_unique_relative(lambda n, k=kind: isinstance(n, k))
        for kind in (inputs.PositionsNode, inputs.CellNode)
    ]
    strain = StrainInducer("strain", nodes).strain
    both = physics.StressForceNode("both", (model.energy, strain, *nodes))
    both.forces.set_dbname("forces")
    assert sign_of(both.forces) == -1
    found = distillation_loss(model.energy, both, **FORCES)
    assert sorted(found.validation) == ["forces_mae", "forces_rmse"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy_node": 3}, "energy_node: expected a node of hippynn's graph, got int"),
        ({"force_node": "forces"}, "force_node: expected a node of hippynn's graph, got str"),
        ({"weights": [1.0]}, "weights: expected term to number or schedule"),
        ({"energies": "mean", "weights": {"forces": 1}}, "expected 'total' or 'per_atom'"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = small.hipnn()
    given = {"energy_node": model.energy, "force_node": model.forces, **FORCES, **arguments}
    with pytest.raises(ValueError, match=message):
        distillation_loss(given.pop("energy_node"), given.pop("force_node"), **given)


def test_the_gradient_of_a_loss_turns_with_the_sign(shared_file: Callable[[str], Path]) -> None:
    """By numbers: the same error for forces from forces as for gradients from gradients."""
    frames = small.frames(shared_file, small=4, large=4)
    losses = []
    for sign, name in ((-1, "forces"), (1, "gradients")):
        arrays = to_arrays(frames, names=ArrayNames(forces=name))
        data = Database(arrays, None, None, seed=0, test_size=1, valid_size=1, quiet=True)
        model = small.hipnn()
        node = gradient(model, sign, name)
        _, modules = assembled(
            data, small.Hipnn(model.network, model.energy, node), weights={"forces": 1}
        )
        losses.append(batch_loss(data, modules))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
