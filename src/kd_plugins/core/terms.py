"""The terms of a distillation loss: what is compared, how, and with which weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kd_plugins.core.distances import Distance
from kd_plugins.core.pairing import Comparison
from kd_plugins.core.quantities import quantity
from kd_plugins.core.relations import Crack, Instance
from kd_plugins.core.sample import LossInputs
from kd_plugins.core.schedules import Schedule
from kd_plugins.numbers import shown


@dataclass(frozen=True)
class Evaluation:
    """What a term says of a batch.

    Args:
        items: (I,) one number an item.
        mask: (I,) which of them count.
        measures: name to a sum over the items that count, for the log; without a graph.
    """

    items: Tensor
    mask: Tensor
    measures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class DistanceTerm:
    """A distance between student and teacher in one quantity.

    Args:
        name: unique among the terms of a loss; it names the term in logs.
        quantity: a row of the table.
        distance: one of `kd_plugins.core.distances`.
        weight: as a function of the step.

    Raises:
        KeyError: for a quantity that is not in the table.
        ValueError: for no name, or a distance or weight that is no function.
    """

    name: str
    quantity: str
    distance: Distance
    weight: Schedule

    def __post_init__(self) -> None:
        """Check names and weight."""
        _check_term(self)
        if not callable(self.distance):
            raise ValueError(
                f"term {self.name!r}: distance: expected a function of kd_plugins.core.DISTANCES, "
                f"got {shown(self.distance)}"
            )

    def items(self, sample: LossInputs) -> tuple[Tensor, Tensor]:
        """Return one number an item, and which of the items count."""
        student, teacher = sample.pair(self.quantity)
        return self.distance(student, teacher), sample.mask(self.quantity)

    def evaluate(self, sample: LossInputs) -> Evaluation:
        """Return the items; a distance has no other measures."""
        return Evaluation(*self.items(sample))


@dataclass(frozen=True)
class CrackTerm:
    """CRACK's loss over the edges of the batch.

    It measures ``hits``, the relations of the student that are told from all others, and, where
    asked for, ``excess``, the loss above that of a student that is its teacher.

    Args:
        name: unique among the terms of a loss.
        relation: its settings.
        weight: as a function of the step; the paper's lambda_1.
        quantity: ``node_embeddings``, as in the paper, or ``equivariant_embeddings``, whose
            relations run over all (l, m) and whose lengths are invariant to rotations.
        excess: whether to measure it, for about a third of the term's own cost in training.
    """

    name: str
    relation: Crack
    weight: Schedule
    quantity: str = "node_embeddings"
    excess: bool = False

    def __post_init__(self) -> None:
        """Check names and weight."""
        _check_term(self)

    def items(self, sample: LossInputs) -> tuple[Tensor, Tensor]:
        """Return one number a relation kept, padded with a mask over the relations chosen."""
        evaluation = self.evaluate(sample)
        return evaluation.items, evaluation.mask

    def evaluate(self, sample: LossInputs) -> Evaluation:
        """Return those items with their measures."""
        if sample.edge_index is None:
            raise ValueError(f"term {self.name!r} needs the edge_index of the batch; got none")
        student, teacher = (
            side.flatten(1) if side.ndim > 2 else side for side in sample.pair(self.quantity)
        )
        atoms = sample.mask(self.quantity)
        found = self.relation.compare(
            student, teacher, sample.edge_index, atoms=atoms, floor=self.excess
        )
        return _padded(found, found.kept)


@dataclass(frozen=True)
class InstanceTerm:
    """Instance-level InfoNCE over the atoms of the batch; compares ``node_embeddings``.

    Args:
        name: unique among the terms of a loss.
        relation: its settings.
        weight: as a function of the step.
        quantity: a row of the table, with one vector an atom.
        excess: as of `CrackTerm`.
    """

    name: str
    relation: Instance
    weight: Schedule
    quantity: str = "node_embeddings"
    excess: bool = False

    def __post_init__(self) -> None:
        """Check names and weight."""
        _check_term(self)

    def items(self, sample: LossInputs) -> tuple[Tensor, Tensor]:
        """Return one number an atom, and which of the atoms count."""
        evaluation = self.evaluate(sample)
        return evaluation.items, evaluation.mask

    def evaluate(self, sample: LossInputs) -> Evaluation:
        """Return those items with their measures."""
        student, teacher = sample.pair(self.quantity)
        mask = sample.mask(self.quantity)
        found = self.relation.compare(student[mask], teacher[mask], floor=self.excess)
        return _padded(found, mask)


def _check_term(term: DistanceTerm | CrackTerm | InstanceTerm) -> None:
    if not isinstance(term.name, str) or not term.name:
        raise ValueError(f"a term needs a name, as text, got {shown(term.name)}")
    quantity(term.quantity)
    if not callable(term.weight):
        raise ValueError(
            f"term {term.name!r}: weight: expected a schedule such as Constant(1.0), got "
            f"{shown(term.weight)}"
        )


def _padded(found: Comparison, mask: Tensor) -> Evaluation:
    """Return the items kept at their places among all, with their measures."""
    measures = {"hits": found.hits.sum()}
    if found.floor is not None:
        measures["excess"] = (found.losses.detach() - found.floor).sum()
    items = found.losses.new_zeros(len(mask)).masked_scatter(mask, found.losses)
    return Evaluation(items, mask, measures)


Term = DistanceTerm | CrackTerm | InstanceTerm
