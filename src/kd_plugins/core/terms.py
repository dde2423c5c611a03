"""The distillation loss: named terms, each a quantity, a distance or relation, and a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd_plugins.core.contrastive import ContrastiveResult, Crack, Instance
from kd_plugins.core.distances import Distance
from kd_plugins.core.quantities import QUANTITIES, quantity
from kd_plugins.core.reduction import masked_mean
from kd_plugins.core.schedules import Schedule
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.names import look_up
from kd_plugins.numbers import check_whole, shown

# ----------------------------------------------------------------------------------------------
# What a loss takes


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One batch as its student and its teacher predict it.

    Args:
        student: quantity name to the student's tensor, shaped as the teacher's.
        teacher: the teacher's targets. An adapter may bring both sides to the host's normalised
            units first, so that a weight means what it means in the host's own loss.
        edge_index: (2, E) edges of the batch; needed by `CrackTerm` only.
        masks: quantity name to booleans over its items; items that are False do not count, such
            as the forces on fixed atoms.
    """

    student: Mapping[str, Tensor]
    teacher: TeacherTargets
    edge_index: Tensor | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a mask that would be ignored or broadcast."""
        for name, mask in self.masks.items():
            scope = look_up(name, QUANTITIES, "masks entry").scope
            expected = (self.teacher.n_items(scope),)
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(
                    f"masks[{name!r}]: expected booleans {expected}, "
                    f"got {mask.dtype} {tuple(mask.shape)}"
                )

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's tensor of a quantity.

        Raises:
            KeyError: if one of them does not hold it.
        """
        for source, values in (("student", self.student), ("teacher", self.teacher.values)):
            if name not in values:
                raise KeyError(f"the {source} gives no {name!r}; it gives {', '.join(values)}")

        student, teacher = self.student[name], self.teacher.values[name]
        if student.shape != teacher.shape:
            raise ValueError(
                f"{name}: student and teacher must have one shape, "
                f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        return student, teacher

    def mask(self, name: str) -> Tensor:
        """Return which items of a quantity have a target and count."""
        present = self.teacher.mask(name)
        return present & self.masks[name] if name in self.masks else present

    def is_complete(self, name: str) -> bool:
        """Return whether all items of a quantity are known to count, without a look at the mask."""
        return name not in self.masks and name not in self.teacher.present


# ----------------------------------------------------------------------------------------------
# Terms


@dataclass(frozen=True)
class TermResult:
    """A term's numbers for a batch, or those of one degree l of its embeddings.

    Args:
        items: (I,) one number an item.
        mask: (I,) which of them count; all if left out.
        measures: name to a sum over the items that count, for the log; without a graph.
        left_out: how many items there were besides, which have no number.
        degree: l of the rows that were compared; None where all were.
    """

    items: Tensor
    mask: Tensor | None = None
    measures: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: Tensor | int = 0
    degree: int | None = None


@dataclass(frozen=True)
class Degrees:
    """Compare the rows (l, m) of each degree l alone; a term is then the sum over the degrees.

    Each degree is averaged over its own items and all have equal weights, as in ARK (Lim et al.
    2026) on OMat24. Within a degree, norms and inner products are invariant to rotations.

    Args:
        lmax: highest degree; that of the embeddings if left out.

    Raises:
        ValueError: if ``lmax`` is no whole number of 0 or more.

    >>> Degrees(lmax=1).rows(9)
    [slice(0, 1, None), slice(1, 4, None)]
    """

    lmax: int | None = None

    def __post_init__(self) -> None:
        """Check the degree."""
        if self.lmax is not None:
            check_whole("lmax", self.lmax, least=0)

    def rows(self, n_rows: int) -> list[slice]:
        """Return which of the (lmax + 1)² rows of embeddings belong to each degree.

        Raises:
            ValueError: if the embeddings lack a degree.
        """
        held = math.isqrt(n_rows) - 1
        lmax = held if self.lmax is None else self.lmax
        if (held + 1) ** 2 != n_rows or lmax > held:
            wanted = "(lmax + 1)²" if self.lmax is None else f"(lmax + 1)² >= {(lmax + 1) ** 2}"
            raise ValueError(f"equivariant_embeddings: expected {wanted} rows, got {n_rows}")
        return [slice(degree**2, (degree + 1) ** 2) for degree in range(lmax + 1)]


@dataclass(frozen=True)
class DistanceTerm:
    """A distance between student and teacher in one quantity.

    Args:
        name: unique among the terms of a loss; it names the term in logs.
        quantity: a row of the table.
        distance: one of `kd_plugins.core.distances`.
        weight: as a function of the step.
        degrees: compare each degree of ``equivariant_embeddings`` alone.

    Raises:
        KeyError: for a quantity that is not in the table.
        ValueError: for no name, or a distance or weight that is no function.
    """

    name: str
    quantity: str
    distance: Distance
    weight: Schedule
    degrees: Degrees | None = None

    def __post_init__(self) -> None:
        """Check names, distance and weight."""
        _check_term(self)
        if not callable(self.distance):
            raise ValueError(
                f"term {self.name!r}: distance: expected a function of kd_plugins.core.DISTANCES, "
                f"got {shown(self.distance)}"
            )

    def evaluate(self, inputs: LossInputs, step: int = 0) -> list[TermResult]:
        """Return one number an item; a distance has no other measures, and is that of any step."""
        compared = _compared(self.degrees, *inputs.pair(self.quantity))
        mask = inputs.mask(self.quantity)
        return [
            TermResult(self.distance(student, teacher), mask, degree=degree)
            for degree, student, teacher in compared
        ]


@dataclass(frozen=True)
class CrackTerm:
    """CRACK's loss over the edges of the batch.

    It measures ``top1_accuracy``, the share of the anchors whose positive is the most similar key,
    and, where asked for, ``excess``, the loss above that of a student that equals its teacher.

    Args:
        name: unique among the terms of a loss.
        relation: its settings.
        weight: as a function of the step; the paper's lambda_1.
        quantity: ``node_embeddings``, as in the paper, or ``equivariant_embeddings``, whose
            relations run over all (l, m) and whose lengths are invariant to rotations.
        excess: whether to measure it, for about a third of the term's own cost in training.
        degrees: form the relations of each degree of ``equivariant_embeddings`` alone.
    """

    name: str
    relation: Crack
    weight: Schedule
    quantity: str = "node_embeddings"
    excess: bool = False
    degrees: Degrees | None = None

    def __post_init__(self) -> None:
        """Check names and weight."""
        _check_term(self)

    def evaluate(self, inputs: LossInputs, step: int = 0) -> list[TermResult]:
        """Return one number a relation; those that are too short are left out."""
        if inputs.edge_index is None:
            raise ValueError(f"term {self.name!r} needs the edge_index of the batch; got none")

        compared = _compared(self.degrees, *inputs.pair(self.quantity))
        sides = [(_vectors(student), _vectors(teacher)) for _, student, teacher in compared]
        atoms = None if inputs.is_complete(self.quantity) else inputs.mask(self.quantity)

        comparisons = self.relation.compare_each(
            sides, inputs.edge_index, atoms=atoms, perfect=self.excess, step=step
        )
        return [
            _to_result(comparison, left_out=(~comparison.kept).sum(), degree=degree)
            for (degree, *_), comparison in zip(compared, comparisons, strict=True)
        ]


@dataclass(frozen=True)
class InstanceTerm:
    """Instance-level InfoNCE over the atoms of the batch; measures as of `CrackTerm`.

    Args:
        name: unique among the terms of a loss.
        relation: its settings.
        weight: as a function of the step.
        quantity: as of `CrackTerm`.
        excess: as of `CrackTerm`.
        degrees: contrast each degree of ``equivariant_embeddings`` alone.
    """

    name: str
    relation: Instance
    weight: Schedule
    quantity: str = "node_embeddings"
    excess: bool = False
    degrees: Degrees | None = None

    def __post_init__(self) -> None:
        """Check names and weight."""
        _check_term(self)

    def evaluate(self, inputs: LossInputs, step: int = 0) -> list[TermResult]:
        """Return one number an atom that has a target."""
        student, teacher = inputs.pair(self.quantity)
        left_out: Tensor | int = 0

        # Atoms without a target are left out before, because they would be negatives of others.
        if not inputs.is_complete(self.quantity):
            mask = inputs.mask(self.quantity)
            student, teacher = student[mask], teacher[mask]
            left_out = (~mask).sum()

        results = []
        for degree, ours, theirs in _compared(self.degrees, student, teacher):
            comparison = self.relation.compare(
                _vectors(ours), _vectors(theirs), perfect=self.excess, step=step
            )
            results.append(_to_result(comparison, left_out=left_out, degree=degree))
        return results


Term = DistanceTerm | CrackTerm | InstanceTerm


def _check_term(term: Term) -> None:
    if not isinstance(term.name, str) or not term.name:
        raise ValueError(f"a term needs a name, as text, got {shown(term.name)}")
    quantity(term.quantity)
    if not callable(term.weight):
        raise ValueError(
            f"term {term.name!r}: weight: expected a schedule such as Constant(1.0), got "
            f"{shown(term.weight)}"
        )
    if term.degrees is not None and term.quantity != "equivariant_embeddings":
        raise ValueError(
            f"term {term.name!r}: degrees are those of equivariant_embeddings, got {term.quantity}"
        )


def _compared(
    degrees: Degrees | None, student: Tensor, teacher: Tensor
) -> list[tuple[int | None, Tensor, Tensor]]:
    """Return degree, student and teacher of each comparison: one of all rows, or one a degree."""
    if degrees is None:
        return [(None, student, teacher)]
    rows = degrees.rows(student.shape[1])
    return [(degree, student[:, those], teacher[:, those]) for degree, those in enumerate(rows)]


def _vectors(embeddings: Tensor) -> Tensor:
    """Return embeddings of several (l, m) as one long vector an atom, (N, D)."""
    return embeddings.flatten(1) if embeddings.ndim > 2 else embeddings


def _to_result(
    comparison: ContrastiveResult, *, left_out: Tensor | int, degree: int | None
) -> TermResult:
    losses = comparison.losses
    measures = {"top1_accuracy": comparison.is_correct.sum()}
    if comparison.perfect_losses is not None:
        measures["excess"] = (losses.detach() - comparison.perfect_losses).sum()
    return TermResult(losses, None, measures, left_out, degree)


# ----------------------------------------------------------------------------------------------
# The loss


@dataclass(frozen=True)
class TermReport:
    """What one term was for one batch on this rank, or one degree of a term.

    Counts stay on the device, so that a training step does not wait for them.

    Args:
        name: of the term; with ``_l0``, ``_l1``, ... where degrees are compared alone.
        weight: that it had at this step.
        total: sum of the items that count, unweighted, detached.
        count: how many count.
        masked: how many were left out; for CRACK the relations that are too short to have a
            direction, not those of atoms without a target.
        measures: name to another sum over the items that count, detached; see the terms.
    """

    name: str
    weight: float
    total: Float[Tensor, ""]
    count: Int[Tensor, ""]
    masked: Int[Tensor, ""]
    measures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossReport:
    """The total to differentiate, and one report a term or degree of a term."""

    total: Float[Tensor, ""]
    terms: tuple[TermReport, ...]


@dataclass(frozen=True)
class DistillationLoss:
    """A weighted sum of terms, added as written and never renormalised.

    Args:
        terms: with unique names.

    Raises:
        ValueError: if two terms have one name, or for one term in place of several.

    >>> from kd_plugins.core import Constant, TeacherTargets, squared_sum
    >>> loss = DistillationLoss((DistanceTerm("soft", "energy", squared_sum, Constant(2.0)),))
    >>> teacher = TeacherTargets(("a",), torch.tensor([1]), {"energy": torch.tensor([1.0])})
    >>> loss(LossInputs({"energy": torch.tensor([3.0])}, teacher), step=0).total
    tensor(8.)
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Refuse two terms of one name."""
        if not isinstance(self.terms, (tuple, list)):
            raise ValueError(f"terms: expected a tuple of terms, got {type(self.terms).__name__}")
        names = [term.name for term in self.terms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two terms are called {repeated[0]!r}; a term's name must be unique")

    def active(self, step: int) -> tuple[Term, ...]:
        """Return the terms whose weight is not zero at a step."""
        return tuple(term for term in self.terms if term.weight(step) != 0)

    def __call__(
        self, inputs: LossInputs, *, step: int, terms: tuple[Term, ...] | None = None
    ) -> LossReport:
        """Return the weighted total and one report a term or degree of a term.

        Args:
            inputs: the batch.
            step: at which the weights are taken, and by which negatives are drawn if they are.
            terms: which to evaluate; those that are active at the step if left out. A term of
                weight zero, evaluated for its report, adds nothing to the total.
        """
        total = torch.zeros((), device=inputs.teacher.n_atoms.device)
        reports = []

        for term in self.active(step) if terms is None else terms:
            weight = term.weight(step)
            for result in term.evaluate(inputs, step):
                # Not 0 * mean, which is NaN where a term that is switched off diverges.
                if weight != 0:
                    total = total + weight * masked_mean(result.items, result.mask)
                reports.append(_report(term.name, weight, result))

        return LossReport(total, tuple(reports))


def _report(name: str, weight: float, result: TermResult) -> TermReport:
    items, mask = result.items.detach(), result.mask
    if mask is None:
        mask = torch.ones_like(items, dtype=torch.bool)
    total = torch.where(mask, items, torch.zeros_like(items)).sum()
    masked = (~mask).sum() + result.left_out
    name = name if result.degree is None else f"{name}_l{result.degree}"
    return TermReport(name, weight, total, mask.sum(), masked, result.measures)
