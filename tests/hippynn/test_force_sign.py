"""Forces and gradients, which are negative forces, are never compared with each other."""

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
from tests.hippynn import fixtures
from tests.hippynn.test_loss import assemble, batch_loss

FORCES = {"energies": "total", "weights": {"forces": 1}}


def gradient(model: fixtures.Hipnn, sign: int, db_name: str) -> Any:
    positions = model.energy.find_unique_relative(lambda n: isinstance(n, inputs.PositionsNode))
    return physics.GradientNode("slope", (model.energy, positions), sign=sign, db_name=db_name)


def multiple(model: fixtures.Hipnn, sign: int) -> Any:
    positions = model.energy.find_unique_relative(lambda n: isinstance(n, inputs.PositionsNode))
    node = physics.MultiGradientNode("slopes", model.energy.main_output, (positions,), (sign,))
    child = node.children[0]
    child.set_dbname("forces")
    return child


@pytest.mark.parametrize("make", [lambda m: gradient(m, 1, "forces"), lambda m: multiple(m, 1)])
def test_gradient_node_with_force_labels_is_refused(make: Callable[[Any], Any]) -> None:
    """The message names node, sign, array and remedy."""
    model = fixtures.make_hipnn()
    message = r"node .slope.*sign=\+1.*array 'forces'; give sign=-1;.*allow: \[forces_sign\]"
    with pytest.raises(ValueError, match=message):
        distillation_loss(model.energy, make(model), **FORCES)


def test_force_node_with_gradient_labels_is_refused() -> None:
    model = fixtures.make_hipnn()
    with pytest.raises(ValueError, match=r"sign=-1.*array 'Grad'; give sign=\+1"):
        distillation_loss(model.energy, gradient(model, -1, "Grad"), **FORCES)


@pytest.mark.parametrize(("sign", "name"), [(1, "gradients"), (-1, "forces"), (-1, "F")])
def test_labels_of_the_same_sign_pass(sign: int, name: str) -> None:
    model = fixtures.make_hipnn()
    distillation_loss(model.energy, gradient(model, sign, name), **FORCES)


def test_allow_turns_the_sign_error_into_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = fixtures.make_hipnn()
    node = gradient(model, 1, "F")
    distillation_loss(model.energy, node, allow=["forces_sign"], **FORCES)
    assert "overruled by allow: [forces_sign]" in caplog.text
    with pytest.raises(ValueError, match="did you mean 'forces_sign'"):
        distillation_loss(model.energy, node, allow=["force_sign"], **FORCES)


def test_sign_is_followed_through_arithmetic() -> None:
    model = fixtures.make_hipnn()
    slope = gradient(model, 1, "gradients")
    assert [sign_of(one) for one in (slope, -slope, -0.5 * slope, slope * 2.0)] == [1, -1, -1, 1]
    assert sign_of(multiple(model, -1)) == -1
    assert sign_of(model.energy.main_output) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_teacher_forces_have_no_loss_for_either_sign_of_node(
    shared_file: Callable[[str], Path], sign: int
) -> None:
    """A teacher as its own student has no loss, and gradients as labels are compared as such."""
    name = "gradients" if sign == 1 else "forces"
    arrays = to_arrays(
        fixtures.read_molybdenum(shared_file, large=6), names=ArrayNames(forces=name)
    )
    data = Database(arrays, None, None, seed=0, test_size=3, valid_size=3, quiet=True)
    model = fixtures.make_hipnn()
    fixtures.initialise(model, data)
    node = gradient(model, sign, name)
    add_teacher_targets(data, model.energy, ("energy", "forces"), names=ArrayNames(forces=name))
    twin = fixtures.Hipnn(model.network, model.energy, node)
    _, modules = assemble(data, twin, weights={"teacher_forces": 30})
    assert abs(batch_loss(data, modules).item()) < 1e-3


def test_gradient_labels_are_negative_forces(
    shared_file: Callable[[str], Path],
) -> None:
    structures = fixtures.read_molybdenum(shared_file, small=2, large=0)
    forces = to_arrays(structures)["forces"]
    found = to_arrays(structures, names=ArrayNames(forces="gradients"))["gradients"]
    np.testing.assert_array_equal(found, -forces)


def test_forces_of_another_model_are_refused() -> None:
    model, other = fixtures.make_hipnn(), fixtures.make_hipnn(3)
    with pytest.raises(ValueError, match="node 'forces' belongs to another model than energy"):
        distillation_loss(model.energy, other.forces, **FORCES)


def test_force_node_with_stress_gives_its_forces() -> None:
    model = fixtures.make_hipnn()
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
def test_wrong_types_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = fixtures.make_hipnn()
    given = {"energy_node": model.energy, "force_node": model.forces, **FORCES, **arguments}
    with pytest.raises(ValueError, match=message):
        distillation_loss(given.pop("energy_node"), given.pop("force_node"), **given)


def test_loss_of_gradients_equals_loss_of_forces(shared_file: Callable[[str], Path]) -> None:
    """To the bit."""
    structures = fixtures.read_molybdenum(shared_file, small=4, large=4)
    losses = []
    for sign, name in ((-1, "forces"), (1, "gradients")):
        arrays = to_arrays(structures, names=ArrayNames(forces=name))
        data = Database(arrays, None, None, seed=0, test_size=1, valid_size=1, quiet=True)
        model = fixtures.make_hipnn()
        node = gradient(model, sign, name)
        _, modules = assemble(
            data, fixtures.Hipnn(model.network, model.energy, node), weights={"forces": 1}
        )
        losses.append(batch_loss(data, modules))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
