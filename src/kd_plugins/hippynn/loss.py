"""The loss of Matin et al. 2025 as a graph of hippynn's own loss nodes, and its published weights.

hippynn builds a loss as a graph of nodes beside the model and saves both in one file. A node of
this package in it would make the file unreadable where the package is not installed, so everything
here is built from hippynn's nodes.

Matin et al., Digital Discovery 2025, https://doi.org/10.1039/d5dd00085h.
"""

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
from hippynn.graphs.nodes.inputs import SpeciesNode
from hippynn.graphs.nodes.loss import MAELoss, Mean, MSELoss, l2reg
from hippynn.graphs.nodes.tags import Network

from kd_plugins.core.schedules import Constant, Piecewise, Schedule
from kd_plugins.doctor.examine import check_allow
from kd_plugins.hippynn.convert import WEIGHT, is_gradient
from kd_plugins.hippynn.coverage import TEACHER, Coverage, read_coverage
from kd_plugins.names import look_up
from kd_plugins.numbers import check_number

logger = logging.getLogger(__name__)

ROUNDED_BELOW = 1e-6
"""Error, in its own unit, below which an RMSE is rounded off so that its gradient stays finite."""
SMALLEST_SHARE = 1e-12
"""Added to the mean weight of a batch, so that a batch without any target has a loss of 0."""

# Weights of Matin et al. 2025, appendix A.1 and table 1, for total energies in eV, forces in eV/Å
# and atomic energies in eV.

CONTROL: Mapping[str, float | Schedule] = MappingProxyType(
    {"energy": 1.0, "forces": 10.0, "l2": 1e-6, "hierarchicality": 0.01}
)
"""Weights of teachers, and of students without a teacher. Their weight of forces is a third of
`STUDENT`'s, so a fair control has ``{**CONTROL, "forces": 30.0}`` as well."""

STUDENT: Mapping[str, float | Schedule] = MappingProxyType(
    {"energy": 1.0, "forces": 30.0, "atomic_energies": 100.0, "l2": 1e-6, "hierarchicality": 0.01}
)
"""Weights of students."""

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
"""Weights of students of their teacher's size, table 1. It counts epochs from 1, hippynn from 0."""


@dataclass(frozen=True, eq=False)
class DistillationLoss:
    """The loss nodes of a student, for hippynn's ``assemble_for_training``.

    Args:
        train: the loss to train with.
        validation: name to unweighted error. Use one of them as ``stopping_key`` and not a
            weighted sum: hippynn copies the validation losses when it assembles them, so that a
            schedule does not change their weights.
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
    database: Any | None = None,
    allow: Sequence[str] = (),
) -> DistillationLoss:
    """Return a student's loss from labels and teacher targets, each as RMSE + MAE.

    Equations 3 and 5 of Matin et al. 2025. The terms by name: ``energy`` and ``forces`` compare
    with labels; ``atomic_energies``, ``teacher_energy`` and ``teacher_forces`` with the targets of
    `add_teacher_targets`; ``l2`` is the sum of the network's squared weights and
    ``hierarchicality`` HIPNN's own regulariser. A term of weight 0 is not part of the graph, so a
    run without teacher terms is hippynn's own, bit for bit.

    Args:
        energy_node: the student's ``HEnergyNode``, or one that sums several; with a ``db_name``.
        force_node: its ``GradientNode`` with ``sign=-1``, if forces are compared; or with
            ``sign=+1``, if the labels are gradients and their array's name contains ``grad``.
        weights: term to number, or to a schedule of `kd_plugins.core.schedules` over epochs, which
            `LossSchedule` applies; such as `STUDENT` or `BORN_AGAIN`.
        energies: how energy labels are compared. ``"total"`` is the paper's, in eV, and gives large
            structures more weight; ``"per_atom"`` needs an array ``energy_per_atom``, in eV/atom.
        database: a split one of which some structures lack labels, see `to_arrays`, or teacher
            targets. Each term is then the mean over the structures or atoms that have its label or
            target; in a batch it is multiplied by their part of the batch divided by their part of
            the training split. So each of them counts as much in whichever batch it comes, and a
            batch without any gives 0. Terms of which nothing is missing stay as they are without
            ``database``. Errors of labels that no validation structure has are left out of
            ``validation``.
        allow: ``["forces_sign"]`` for labels whose sign differs from what their name says.

    Raises:
        KeyError: for a term that does not exist.
        ValueError: for weights that are negative or all 0, a term that its node does not have, or
            forces of another model or the wrong sign; for a term of which no training structure
            has a label or target, or whose targets ``database`` does not have yet.

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
    _check_arguments(energy_node, force_node, weights, energies)
    all_schedules = {name: _as_schedule(name, weight) for name, weight in weights.items()}
    builders = {name: look_up(name, TERMS, "loss term") for name in weights}

    schedules = {name: one for name, one in all_schedules.items() if one != Constant(0.0)}
    if not schedules:
        raise ValueError(f"weights: expected one above 0 or more, got {dict(weights)}")

    coverage = None
    if database is not None:
        species = energy_node.find_unique_relative(lambda node: isinstance(node, SpeciesNode))
        coverage = read_coverage(database, species.db_name)

    student = _Student(energy_node, force_node, energies, allow, coverage)
    terms = {name: builders[name](student) for name in schedules}

    # A weight is a node with a buffer, so that a schedule can change it during training.
    first_weights = {
        name: check_number(f"weight of {name!r} at epoch 0", schedule(0), least=0)
        for name, schedule in schedules.items()
    }
    weight_nodes = {name: ValueNode(first_weights[name]) for name in schedules}
    weighted = [weight_nodes[name] * terms[name].train for name in schedules]

    return DistillationLoss(
        train=_add_up(weighted),
        validation={
            f"{name}_{kind}": node
            for name, term in terms.items()
            for kind, node in term.validation.items()
        },
        weights=weight_nodes,
        schedules={n: one for n, one in schedules.items() if not isinstance(one, Constant)},
    )


def _check_arguments(energy: Any, forces: Any, weights: Any, energies: Any) -> None:
    """Refuse arguments of another type, and forces of another model."""
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"weights: expected term to number or schedule, such as STUDENT, got {weights!r}"
        )
    if energies not in ("total", "per_atom"):
        raise ValueError(f"energies: expected 'total' or 'per_atom', got {energies!r}")

    for name, node in (("energy_node", energy), ("force_node", forces)):
        is_left_out = name == "force_node" and node is None
        if not isinstance(node, _BaseNode) and not is_left_out:
            raise ValueError(
                f"{name}: expected a node of hippynn's graph, got {type(node).__name__}"
            )
    if forces is not None and energy.main_output not in forces.get_all_connected():
        raise ValueError(
            f"force_node: node {forces.name!r} belongs to another model than energy node "
            f"{energy.name!r}; give the forces of the same one"
        )


def _as_schedule(name: str, weight: float | Schedule) -> Schedule:
    if callable(weight):
        return weight
    try:
        # Constant refuses True, which float() would turn into 1.
        return Constant(float(weight) if not isinstance(weight, bool) else weight)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"weight of {name!r}: {error}") from error


def _add_up(nodes: Sequence[Any]) -> Any:
    """Return the sum of loss nodes, from left to right."""
    first, *rest = nodes
    for node in rest:
        first = first + node
    return first


# The terms


@dataclass(frozen=True, eq=False)
class _Term:
    """One term of the loss.

    Args:
        train: its node in the training loss, without its weight.
        validation: name to error, as validation reports it.
    """

    train: Any
    validation: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Student:
    """A student's nodes, and a method for each kind of loss term that returns it."""

    energy: Any
    forces: Any | None
    energies: str
    allow: Sequence[str]
    coverage: Coverage | None

    def energy_labels(self) -> _Term:
        """Return the errors of energies from labels."""
        if self.energies == "total":
            return self._label_term(_with_db_name(self.energy.main_output, "energy"))
        name = "energy_per_atom"
        return self._label_term(physics.PerAtom(name, self.energy.main_output, db_name=name))

    def force_labels(self) -> _Term:
        """Return the errors of forces from labels."""
        node = _with_db_name(self._force_node("forces"), "forces")
        check_sign(node, self.allow)
        return self._label_term(node)

    def teacher_targets(self, name: str) -> _Term:
        """Return the errors of a quantity from the teacher's targets."""
        nodes = {
            "atomic_energies": self._atomic_energy_node,
            "energy": lambda: self.energy.main_output,
            "forces": lambda: self._force_node("teacher_forces"),
        }
        node, array = nodes[name](), f"{TEACHER}{name}"
        if self.coverage is not None and array not in self.coverage.weighted:
            raise ValueError(
                f"the database has no array {array!r}, which the loss reads; call "
                f"add_teacher_targets(database, teacher, [..., {name!r}]) before "
                "distillation_loss(..., database=database)"
            )
        target = _read(node, array).true
        # The target's sign is turned, as hippynn finds no layout for the negative of a prediction.
        is_opposite = name == "forces" and sign_of(node) == 1
        return self._weighted_term(node, target * -1.0 if is_opposite else target, array)

    def l2(self) -> _Term:
        """Return the sum of the network's squared weights."""
        return _Term(l2reg(self.energy.find_unique_relative(lambda n: isinstance(n, Network))), {})

    def hierarchicality(self) -> _Term:
        """Return HIPNN's regulariser of its hierarchy of energies."""
        if not hasattr(self.energy, "hierarchicality"):
            raise ValueError(
                f"hierarchicality: node {self.energy.name!r} has none; expected an HEnergyNode, or "
                "leave that weight out"
            )
        return _Term(Mean(self.energy.hierarchicality.pred), {})

    def _label_term(self, node: Any) -> _Term:
        """Return the errors of a node from the labels of its db_name."""
        if self.coverage is not None and node.db_name in self.coverage.partial:
            return self._weighted_term(node, node.true, node.db_name)
        rmse = _root(MSELoss(node.pred, node.true))
        return _sum_of({"rmse": rmse, "mae": MAELoss(node.pred, node.true)})

    def _weighted_term(self, node: Any, target: Any, array: str) -> _Term:
        """Return the errors of a node from a target, each item with its weight.

        Args:
            node: of the student.
            target: node that reads it.
            array: its name; that of its weights has an ending more.
        """
        weight = _read(node, array + WEIGHT).true
        # The means of a batch divided by its mean weight are averages over the items with a target.
        share = Mean(weight) + SMALLEST_SHARE
        difference = node.pred - target
        errors = {
            "rmse": _root(Mean(difference * difference * weight) / share),
            "mae": MAELoss(node.pred * weight, target * weight) / share,
        }
        term = _sum_of(errors)
        if self.coverage is None or array not in self.coverage.partial:
            return term

        usual = self.coverage.partial[array]
        if not usual > 0:
            raise ValueError(
                f"no structure of the training split has {array!r}, but the loss gives it a "
                "weight; take that weight away, or put structures that have it into the split"
            )
        # A batch in which few items have a target counts so much less, and one with many more.
        # Otherwise the only item with a target in its batch would count as much as eight in one.
        validation = errors if array in self.coverage.validated else {}
        return _Term(Mean(weight) * (1 / usual) * term.train, validation)

    def _force_node(self, term: str) -> Any:
        node = self.forces
        if node is None:
            raise ValueError(f"{term} has a weight, but there is no force_node to compare; give it")
        return node.forces if isinstance(node, physics.StressForceNode) else node.main_output

    def _atomic_energy_node(self) -> Any:
        if not hasattr(self.energy, "atom_energies"):
            raise ValueError(
                f"node {self.energy.name!r} ({type(self.energy).__name__}) has no atomic energies; "
                "expected an HEnergyNode or a CombineEnergyNode; of an AtomizationEnergyNode, take "
                "create_henergy_equivalent()"
            )
        return self.energy.atom_energies


TERMS: Mapping[str, Callable[[_Student], _Term]] = {
    "energy": _Student.energy_labels,
    "forces": _Student.force_labels,
    "atomic_energies": lambda student: student.teacher_targets("atomic_energies"),
    "teacher_energy": lambda student: student.teacher_targets("energy"),
    "teacher_forces": lambda student: student.teacher_targets("forces"),
    "l2": _Student.l2,
    "hierarchicality": _Student.hierarchicality,
}
"""Name of a loss term to the function that returns it."""


def _with_db_name(node: Any, term: str) -> Any:
    if node.db_name is None:
        raise ValueError(
            f"{term}: node {node.name!r} has no db_name, so there are no labels to compare; give it"
        )
    return node


def _sum_of(errors: Mapping[str, Any]) -> _Term:
    return _Term(_add_up(list(errors.values())), errors)


def _read(node: Any, array: str) -> Any:
    """Return a node by which the loss reads an array with the layout of another node's values.

    hippynn finds the layout of a target, of atoms or of structures, by the node that predicts it. A
    teacher's array has none, so it gets this copy of the student's node, which is never computed.
    """
    carrier = node * 1.0
    carrier.set_dbname(array)
    return carrier


def _root(square: Any) -> Any:
    """Return the square root of a node, which is 0 at 0 and has a finite gradient there.

    The gradient of the plain root is infinite at 0. A student that starts as a copy of its teacher
    has errors of 0, and infinity times 0 would make all its gradients NaN.
    """
    return (square + ROUNDED_BELOW**2) ** 0.5 - ROUNDED_BELOW


# Signs of forces and gradients


def check_sign(node: Any, allow: Sequence[str]) -> None:
    """Refuse forces that are compared with labels of the opposite sign.

    Args:
        node: of forces or of the energy's gradient, with the ``db_name`` of its labels.
        allow: with ``forces_sign`` in it, the error is logged as a warning.

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
    """Return 1 for a node of the energy's gradient, -1 for one of forces, None if not known.

    Arithmetic between the node that differentiates and this one is followed: a minus sign, and a
    product with one number.
    """
    parent = node.parents[0] if node.parents else None
    if isinstance(node, physics.GradientNode):
        return node.sign
    if isinstance(parent, physics.MultiGradientNode):
        return parent.signs[node.index]
    if isinstance(parent, physics.StressForceNode):
        return -1

    signs = [sign_of(one) for one in node.parents]
    if isinstance(node, AtomReIndexer):  # hippynn inserts one before arithmetic
        return signs[0]
    if isinstance(node, NegNode) and signs[0] is not None:
        return -signs[0]
    if isinstance(node, MulNode):
        factors = [one.torch_module.value for one in node.parents if isinstance(one, ValueNode)]
        known = [sign for sign in signs if sign is not None]
        if len(factors) == len(known) == 1 and factors[0].numel() == 1:
            return known[0] if float(factors[0]) > 0 else -known[0]
    return None
