"""The loss of paper 003 as a hippynn loss graph, of hippynn's own nodes alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from hippynn.graphs import physics
from hippynn.graphs.nodes.base.algebra import MulNode, NegNode, ValueNode
from hippynn.graphs.nodes.base.node_functions import _BaseNode
from hippynn.graphs.nodes.indexers import AtomReIndexer
from hippynn.graphs.nodes.loss import MAELoss, Mean, MSELoss, l2reg
from hippynn.graphs.nodes.tags import Network

from kd_plugins.core.schedules import Constant, Piecewise, Schedule
from kd_plugins.doctor.examine import check_allow
from kd_plugins.hippynn.convert import is_gradient
from kd_plugins.names import look_up
from kd_plugins.numbers import check_number

logger = logging.getLogger(__name__)

TEACHER = "teacher_"
"""Prefix of the arrays that `kd_plugins.hippynn.add_teacher_targets` adds to a database."""
WEIGHT = "_weight"
"""Suffix of the array that says how much each of them counts, 0 where one is missing."""
SMALL = 1e-6
"""Error, in its own unit, below which the gradient of an RMSE is not that of a root any more."""
NOTHING = 1e-12
"""Keeps a batch without any target at zero."""


@dataclass(frozen=True, eq=False)
class DistillationLoss:
    """Nodes for hippynn's ``assemble_for_training``.

    Args:
        train: the loss to train with.
        validation: name to unweighted error; give one of them as ``stopping_key``, never a
            weighted sum, whose weights a schedule would leave behind.
        weights: term to the node that holds its weight.
        schedules: term to weight as a function of the epoch, of those that change.
    """

    train: Any
    validation: Mapping[str, Any]
    weights: Mapping[str, Any]
    schedules: Mapping[str, Schedule]


def distillation_loss(
    energy_node: Any,
    force_node: Any | None = None,
    *,
    weights: Mapping[str, float | Schedule],
    energies: Literal["total", "per_atom"],
    allow: Sequence[str] = (),
) -> DistillationLoss:
    """Return the loss of a student: labels and teacher, each RMSE + MAE (paper 003, eq. 3 and 5).

    Terms by name: ``energy`` and ``forces`` compare with labels; ``atomic_energies``,
    ``teacher_energy`` and ``teacher_forces`` with what `add_teacher_targets` has put into the
    database; ``l2`` is the network's squared weights and ``hierarchicality`` HIPNN's own
    regulariser. A term whose weight is 0 is not part of the graph, so the run without it is
    hippynn's own.

    Only nodes of hippynn are in it, so a student loads where this package is not.

    Args:
        energy_node: the student's ``HEnergyNode``, or one that sums several; with a ``db_name``.
        force_node: its ``GradientNode`` with ``sign=-1``, if forces are compared; or with
            ``sign=+1``, if the labels are gradients, and their array's name has ``grad`` in it.
        weights: term to number, or to a schedule of `kd_plugins.core.schedules` over epochs, which
            `LossSchedule` then carries out; such as `STUDENT` or `BORN_AGAIN`.
        energies: what energy labels are compared as. ``"total"`` is the paper's, in eV, and counts
            large structures for more; ``"per_atom"`` needs an array ``energy_per_atom``, in
            eV/atom.
        allow: ``["forces_sign"]`` for labels whose sign is what it seems not to be.

    Raises:
        KeyError: for a term that does not exist.
        ValueError: for weights that are not >= 0, none above it, a term that its node misses, or
            forces of another model or the wrong sign.

    >>> from hippynn.graphs import inputs, networks, physics, targets
    >>> species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    >>> sizes = dict(possible_species=[0, 1], n_features=4, n_sensitivities=4, dist_soft_min=1,
    ...     dist_soft_max=3, dist_hard_max=4, n_interaction_layers=1, n_atom_layers=1)
    >>> network = networks.Hipnn("net", (species, positions), module_kwargs=sizes)
    >>> energy = targets.HEnergyNode("energy", network, db_name="E")
    >>> loss = distillation_loss(energy, weights={"energy": 1, "atomic_energies": 100},
    ...     energies="total")
    >>> sorted(loss.validation)
    ['atomic_energies_mae', 'atomic_energies_rmse', 'energy_mae', 'energy_rmse']
    """
    allow = check_allow(allow)
    _check(energy_node, force_node, weights, energies)
    schedules = {name: _schedule(name, weight) for name, weight in weights.items()}
    makers = {name: look_up(name, TERMS, "loss term") for name in weights}
    nodes = _Nodes(energy_node, force_node, energies, allow)
    chosen = {name: one for name, one in schedules.items() if one != Constant(0.0)}
    if not chosen:
        raise ValueError(f"weights: expected one above 0 or more, got {dict(weights)}")
    errors = {name: makers[name](nodes) for name in chosen}
    at_first = {
        name: check_number(f"weight of {name!r} at epoch 0", one(0), least=0)
        for name, one in chosen.items()
    }
    values = {name: ValueNode(at_first[name]) for name in chosen}
    terms = [values[name] * sum_of(errors[name]) for name in chosen]
    return DistillationLoss(
        train=sum_of(dict(enumerate(terms))),
        validation={
            f"{name}_{kind}": node
            for name, kinds in errors.items()
            for kind, node in kinds.items()
            if kind
        },
        weights=values,
        schedules={n: one for n, one in chosen.items() if not isinstance(one, Constant)},
    )


def sum_of(nodes: Mapping[Any, Any]) -> Any:
    """Return the sum of loss nodes, from left to right."""
    first, *rest = nodes.values()
    for node in rest:
        first = first + node
    return first


def root(square: Any) -> Any:
    """Return the square root of a node, 0 at 0 and with a finite gradient there.

    The usual one has an infinite gradient, which turns into NaN in a student that starts as its
    teacher.
    """
    return (square + SMALL**2) ** 0.5 - SMALL


@dataclass(frozen=True, eq=False)
class _Nodes:
    energy: Any
    forces: Any | None
    energies: str
    allow: Sequence[str]

    def labels(self) -> dict[str, Any]:
        if self.energies == "total":
            return _label_error(_named(self.energy.main_output, "energy"))
        name = "energy_per_atom"
        return _label_error(physics.PerAtom(name, self.energy.main_output, db_name=name))

    def force_labels(self) -> dict[str, Any]:
        node = _named(self._forces("forces"), "forces")
        check_sign(node, self.allow)
        return _label_error(node)

    def teacher(self, name: str) -> dict[str, Any]:
        nodes = {
            "atomic_energies": self._atomic_energies,
            "energy": lambda: self.energy.main_output,
            "forces": lambda: self._forces("teacher_forces"),
        }
        node = nodes[name]()
        is_opposite = name == "forces" and sign_of(node) == 1
        return _teacher_error(node, f"{TEACHER}{name}", is_opposite)

    def l2(self) -> dict[str, Any]:
        return {"": l2reg(self.energy.find_unique_relative(lambda n: isinstance(n, Network)))}

    def hierarchicality(self) -> dict[str, Any]:
        if not hasattr(self.energy, "hierarchicality"):
            raise ValueError(
                f"hierarchicality: node {self.energy.name!r} has none; expected an HEnergyNode, or "
                "leave that weight out"
            )
        return {"": Mean(self.energy.hierarchicality.pred)}

    def _forces(self, term: str) -> Any:
        if self.forces is None:
            raise ValueError(f"{term} has a weight, but there is no force_node to compare; give it")
        return _forces_of(self.forces)

    def _atomic_energies(self) -> Any:
        if not hasattr(self.energy, "atom_energies"):
            raise ValueError(
                f"node {self.energy.name!r} ({type(self.energy).__name__}) has no atomic energies; "
                "expected an HEnergyNode or a CombineEnergyNode; of an AtomizationEnergyNode, take "
                "create_henergy_equivalent()"
            )
        return self.energy.atom_energies


TERMS: Mapping[str, Callable[[_Nodes], dict[str, Any]]] = {
    "energy": _Nodes.labels,
    "forces": _Nodes.force_labels,
    "atomic_energies": lambda nodes: nodes.teacher("atomic_energies"),
    "teacher_energy": lambda nodes: nodes.teacher("energy"),
    "teacher_forces": lambda nodes: nodes.teacher("forces"),
    "l2": _Nodes.l2,
    "hierarchicality": _Nodes.hierarchicality,
}
"""What a loss may be made of."""


def _named(node: Any, term: str) -> Any:
    if node.db_name is None:
        raise ValueError(
            f"{term}: node {node.name!r} has no db_name, so there are no labels to compare; give it"
        )
    return node


def check_sign(node: Any, allow: Sequence[str]) -> None:
    """Refuse forces that are compared with labels of the opposite sign.

    Args:
        node: of forces or of the energy's gradient, with the ``db_name`` of its labels.
        allow: ``forces_sign`` in it makes a warning of the error.

    Raises:
        ValueError: naming node, sign and array.
    """
    sign, array = sign_of(node), str(node.db_name)
    if sign is None or sign == (1 if is_gradient(array) else -1):
        return
    what = {
        1: "is the gradient of the energy (sign=+1), the opposite of forces",
        -1: "is forces (sign=-1), the opposite of a gradient",
    }[sign]
    message = f"forces: node {node.name!r} {what}, and is compared with array {array!r}"
    if "forces_sign" in allow:
        logger.warning(f"{message} (overruled by allow: [forces_sign])")
        return
    remedy = (
        "give sign=-1; if the array holds gradients, call it so, such as 'gradients'"
        if sign == 1
        else "give sign=+1; if the array holds forces, call it otherwise"
    )
    raise ValueError(f"{message}; {remedy}; allow: [forces_sign] overrules this")


def sign_of(node: Any) -> int | None:
    """Return 1 for a node of the energy's gradient, -1 for one of forces, None if not known."""
    parent = node.parents[0] if node.parents else None
    if isinstance(node, physics.GradientNode):
        return node.sign
    if isinstance(parent, physics.MultiGradientNode):
        return parent.signs[node.index]
    if isinstance(parent, physics.StressForceNode):
        return -1
    inner = [sign_of(one) for one in node.parents]
    if isinstance(node, AtomReIndexer):  # which arithmetic puts in between
        return inner[0]
    if isinstance(node, NegNode) and inner[0] is not None:
        return -inner[0]
    if isinstance(node, MulNode):
        factors = [one.torch_module.value for one in node.parents if isinstance(one, ValueNode)]
        known = [one for one in inner if one is not None]
        if len(factors) == len(known) == 1 and factors[0].numel() == 1:
            return known[0] if float(factors[0]) > 0 else -known[0]
    return None


def _check(energy: Any, forces: Any, weights: Any, energies: Any) -> None:
    """Refuse arguments that are not what they must be, whatever the weights."""
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"weights: expected term to number or schedule, such as STUDENT, got {weights!r}"
        )
    if energies not in ("total", "per_atom"):
        raise ValueError(f"energies: expected 'total' or 'per_atom', got {energies!r}")
    for name, node in (("energy_node", energy), ("force_node", forces)):
        if not isinstance(node, _BaseNode) and not (name == "force_node" and node is None):
            raise ValueError(
                f"{name}: expected a node of hippynn's graph, got {type(node).__name__}"
            )
    if forces is not None and energy.main_output not in forces.get_all_connected():
        raise ValueError(
            f"force_node: node {forces.name!r} belongs to another model than energy node "
            f"{energy.name!r}; give the forces of the same one"
        )


def _forces_of(node: Any) -> Any:
    """Return the forces of a node that may compute the stress as well."""
    return node.forces if isinstance(node, physics.StressForceNode) else node.main_output


def _label_error(node: Any) -> dict[str, Any]:
    return {"rmse": root(MSELoss(node.pred, node.true)), "mae": MAELoss(node.pred, node.true)}


def _teacher_error(node: Any, name: str, is_opposite: bool) -> dict[str, Any]:
    """Return the errors of a student's node against an array, each item with its weight.

    A teacher's forces are forces, whatever the labels of a node that gives gradients are.
    """
    target, weight = _read(node, name).true, _read(node, name + WEIGHT).true
    shares = Mean(weight) + NOTHING
    # Turned is the target: hippynn finds no layout for the negative of a prediction.
    target = target * -1.0 if is_opposite else target
    difference = node.pred - target
    return {
        "rmse": root(Mean(difference * difference * weight) / shares),
        "mae": MAELoss(node.pred * weight, target * weight) / shares,
    }


def _read(node: Any, name: str) -> Any:
    """Return a node by which the loss reads an array that is laid out as another node's values.

    It is never computed: hippynn finds a target's layout by its place in the model graph.
    """
    carrier = node * 1.0
    carrier.set_dbname(name)
    return carrier


def _schedule(name: str, weight: float | Schedule) -> Schedule:
    if callable(weight):
        return weight
    try:
        return Constant(float(weight) if not isinstance(weight, bool) else weight)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"weight of {name!r}: {error}") from error


CONTROL: Mapping[str, float | Schedule] = MappingProxyType(
    {"energy": 1.0, "forces": 10.0, "l2": 1e-6, "hierarchicality": 0.01}
)
"""Teachers, and students that have none. Their weight of forces is a third of `STUDENT`'s, so a
fair control has ``{**CONTROL, "forces": 30.0}`` as well."""

STUDENT: Mapping[str, float | Schedule] = MappingProxyType(
    {"energy": 1.0, "forces": 30.0, "atomic_energies": 100.0, "l2": 1e-6, "hierarchicality": 0.01}
)
"""Students."""

_EPOCHS = (0, 199, 249, 299, 349, 399)
BORN_AGAIN: Mapping[str, float | Schedule] = MappingProxyType(
    {
        "energy": Piecewise(_EPOCHS, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        "forces": Piecewise(_EPOCHS, (75.0, 63.0, 51.0, 39.0, 27.0, 15.0)),
        "atomic_energies": Piecewise(_EPOCHS, (200.0, 160.0, 120.0, 80.0, 40.0, 0.0)),
        "l2": 1e-6,
        "hierarchicality": 0.01,
    }
)
"""Students of their teacher's size, Table 1. The paper counts epochs from 1, hippynn from 0."""
