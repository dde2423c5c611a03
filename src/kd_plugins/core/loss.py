"""The distillation loss: named terms with weights, added as written and never renormalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from kd_plugins.core.reduction import masked_mean
from kd_plugins.core.sample import LossInputs as LossInputs
from kd_plugins.core.terms import CrackTerm as CrackTerm
from kd_plugins.core.terms import DistanceTerm as DistanceTerm
from kd_plugins.core.terms import Evaluation
from kd_plugins.core.terms import InstanceTerm as InstanceTerm
from kd_plugins.core.terms import Term as Term


@dataclass(frozen=True)
class TermReport:
    """What one term said of one batch on this rank.

    Args:
        name: of the term.
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
    count: int
    masked: int
    measures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossReport:
    """The total to differentiate, and one report a term."""

    total: Float[Tensor, ""]
    terms: tuple[TermReport, ...]


@dataclass(frozen=True)
class DistillationLoss:
    """A weighted sum of terms.

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
        self, sample: LossInputs, *, step: int, terms: tuple[Term, ...] | None = None
    ) -> LossReport:
        """Return the weighted total and one report a term.

        Args:
            sample: the batch.
            step: at which the weights are taken.
            terms: which to evaluate; those that are active at the step if left out. A term of
                weight zero, evaluated for its report, adds nothing to the total.
        """
        chosen = self.active(step) if terms is None else terms
        total = torch.zeros((), device=sample.teacher.n_atoms.device)
        reports = []
        for term in chosen:
            found, weight = term.evaluate(sample), term.weight(step)
            if weight != 0:
                total = total + weight * masked_mean(found.items, found.mask)
            reports.append(_report(term.name, weight, found))
        return LossReport(total, tuple(reports))


def _report(name: str, weight: float, found: Evaluation) -> TermReport:
    items, mask = found.items.detach(), found.mask
    count = int(mask.sum())
    total = torch.where(mask, items, torch.zeros_like(items)).sum()
    return TermReport(name, weight, total, count, len(mask) - count, found.measures)
