"""The loss of CHGNet's students: weighted errors against labels (hard) and a teacher (soft)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kd_plugins.chgnet.convert import LETTERS
from kd_plugins.config import weight as read_weight
from kd_plugins.core import DISTANCES, Constant, DistanceTerm, Huber, absolute_mean, masked_mean
from kd_plugins.core.distances import Distance, squared_mean
from kd_plugins.core.schedules import Schedule
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number

TargetKind = Literal["hard", "soft"]
"""Labels are hard targets, a teacher's predictions soft ones."""

PREFIX: Mapping[str, str] = {"hard": "", "soft": "soft_"}
"""What stands before CHGNet's letters among the targets of a batch; labels keep CHGNet's names."""

WEIGHT = "weight_"
"""What stands before a target's key where its numbers count unequally, see `DistillData.weighted`.
The weights have the target's shape, so that they take every way of its numbers."""

HARD = tuple(LETTERS)
"""Quantities that may be compared with labels."""

SOFT = ("energy", "forces", "stress")
"""Quantities that may be compared with a teacher. The magnetic moments may not: they are read off
before the readout MLP, so with a frozen trunk no loss can change them."""

OF_THE_HOST = ("MAE", "MSE", "Huber")
"""Criteria that CHGNet has; all numbers of a batch count alike."""

if TYPE_CHECKING:
    Criterion = str
else:
    # From core's table, so that a distance that is added there can be chosen here and in a YAML.
    Criterion = Literal[(*OF_THE_HOST, *DISTANCES)]

# Later than any step of a training, where every schedule has reached its last weight.
_END = 2**53


class Diverged(FloatingPointError):
    """A training whose errors are no longer finite."""


@dataclass(frozen=True)
class Ratios:
    """The weights of hard and soft targets, by quantity.

    They are r_H and r_S of Taniguchi 2024 (see `DistillLoss`).

    Args:
        hard: weights of the labels of ``energy``, ``forces``, ``stress`` and ``magmoms``. Each is a
            number, or a schedule over optimizer steps such as ``{"schedule": "linear", ...}``. A
            quantity left out does not count.
        soft: weights of the teacher's ``energy``, ``forces`` and ``stress``.

    Raises:
        ValueError: for another quantity, a weight that cannot be read, or if no weight is set.

    >>> Ratios(soft={"energy": 1, "forces": 1}).task
    'ef'
    >>> Ratios(soft={"energie": 1})
    Traceback (most recent call last):
    ValueError: soft: unknown quantity 'energie'; did you mean 'energy'?
    """

    hard: Mapping[str, Any] = field(default_factory=dict)
    soft: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names and read every weight once."""
        for kind, allowed in (("hard", HARD), ("soft", SOFT)):
            weights = getattr(self, kind) or {}
            if not isinstance(weights, Mapping):
                raise ValueError(f"{kind}: expected quantities with weights, got {weights!r}")

            # A checkpoint keeps them, and must hold no numpy types.
            weights = to_python(weights)
            object.__setattr__(self, kind, weights)

            for name in weights:
                if name not in allowed:
                    hint = suggestion(str(name), allowed)
                    raise ValueError(f"{kind}: unknown quantity {name!r}{hint}")
                _read_schedule(kind, name, weights[name])

        if not any(self.weighted.values()):
            raise ValueError("no target has a weight; give soft={'energy': 1, 'forces': 1}, say")

    def schedules(self, kind: str) -> dict[str, Schedule]:
        """Return quantity name to weight over steps, in CHGNet's order, of one kind of targets."""
        weights = getattr(self, kind)
        return {
            name: _read_schedule(kind, name, weights[name]) for name in LETTERS if name in weights
        }

    @property
    def weighted(self) -> dict[str, tuple[str, ...]]:
        """Kind of targets to the quantities whose weight is not always 0."""
        return {
            kind: tuple(
                name for name, weight in self.schedules(kind).items() if weight != Constant(0.0)
            )
            for kind in PREFIX
        }

    @property
    def task(self) -> str:
        """What CHGNet must compute, as its letters; the energy always, as its Trainer needs it."""
        names = {"energy", *self.weighted["hard"], *self.weighted["soft"]}
        return "".join(LETTERS[name] for name in LETTERS if name in names)


class DistillLoss(nn.Module):
    """The weighted sum of errors against labels and teacher, in the place of CHGNet's loss.

    T. Taniguchi, Faraday Discuss. (2024), DOI 10.1039/d4fd00090k, "Loss function in knowledge
    distillation":

        L = r_HE L(E_H, E) + r_HF L(F_H, F) + r_SE L(E_S, E) + r_SF L(F_S, F)

    here with stress and magnetic moments, too. The distance L is CHGNet's own by default: a mean
    over all numbers of the batch, so that with one kind of targets value and gradients are to the
    bit those of CHGNet's ``CombinedLoss``. Targets that are missing, NaN or None, do not count;
    where all are missing, the error is 0. Where structures have weights of their own, every mean is
    the weighted one, sum(w x) / sum(w): a structure of weight 2 counts as if the batch held it
    twice, in loss and reported errors alike.

    Args:
        ratios: weights of hard and soft targets, over optimizer steps.
        criterion: the distance: ``MAE`` (as in the paper), ``MSE`` or ``Huber`` of CHGNet over
            single numbers; or one of `kd_plugins.core.DISTANCES`, such as ``norm``, over energies,
            force vectors and stress tensors (nine numbers each), where a vector with a missing
            number does not count.
        delta: where Huber's distance turns linear, in CHGNet's units (eV/atom, eV/Å, GPa).
        select: the kind of targets whose errors CHGNet's Trainer reports, and by which it chooses
            its best model; left out, ``soft``, or ``hard`` where there are labels alone.
        l2_to_start: weight of the sum of squared distances of the weights that train from those at
            the start (L2-SP: Li, Grandvalet, Davoine, ICML 2018), added in training alone.

    Raises:
        ValueError: for an unknown criterion or kind, a delta that is not above 0, or an
            ``l2_to_start`` below 0.
    """

    def __init__(
        self,
        ratios: Ratios,
        criterion: Criterion = "MAE",
        delta: float = 0.1,
        select: TargetKind | None = None,
        l2_to_start: float = 0.0,
    ) -> None:
        super().__init__()
        if select not in (None, *PREFIX):
            raise ValueError(f"select: expected 'hard' or 'soft', got {select!r}")

        self.ratios, self.name, self.delta = ratios, criterion, to_python(delta)
        self.select: TargetKind = select or ("soft" if ratios.weighted["soft"] else "hard")
        check_number("l2_to_start", l2_to_start, least=0)
        self.l2_to_start = float(l2_to_start)
        self.step = 0
        self.parameters_to_train: Sequence[nn.Parameter] = ()
        self._trained: dict[str, nn.Parameter] = {}
        self.start: dict[str, Tensor] = {}

        distance = _find_distance(criterion, delta)
        self.terms: dict[str, DistanceTerm] = {}
        for kind in PREFIX:
            for quantity, weight in ratios.schedules(kind).items():
                name = f"{kind}_{LETTERS[quantity]}"
                self.terms[name] = DistanceTerm(name, quantity, distance, weight)

        self._host_mean = _host_mean(criterion, delta)
        self._sums: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0])

    @property
    def is_of_vectors(self) -> bool:
        """Whether whole force vectors are compared, and not their numbers one by one."""
        return self._host_mean is None

    def hold_start(self, model: nn.Module) -> None:
        """Keep the weights of a model that train as they are now, for ``l2_to_start``."""
        self._trained, self.start = {}, {}
        if self.l2_to_start:
            named = model.named_parameters()
            self._trained = {name: weight for name, weight in named if weight.requires_grad}
            self.start = {name: weight.detach().clone() for name, weight in self._trained.items()}

    def check_force_share(self, force_share: float) -> None:
        """Refuse to compare whole force vectors of which only some components count.

        Raises:
            ValueError: naming the criterion.
        """
        if self.is_of_vectors and force_share != 1:
            raise ValueError(
                f"criterion: {self.name} compares whole force vectors, so force_share must be 1, "
                f"got {force_share}; or take one of {', '.join(OF_THE_HOST)}"
            )

    def forward(
        self, targets: Mapping[str, Any], prediction: Mapping[str, Any]
    ) -> dict[str, Tensor | int]:
        """Return ``loss`` and, as CHGNet's loss does, ``e_MAE`` and ``e_MAE_size`` for each letter.

        In training mode the loss carries gradients to `parameters_to_train` that are computed
        already (see `_with_known_gradient`), and every call is one step of the schedules.

        Args:
            targets: what CHGNet's ``collate_graphs`` makes of a `DistillData`.
            prediction: of the model.
        """
        out: dict[str, Any] = {"loss": 0.0}
        for kind, prefix in PREFIX.items():
            for letter in self.ratios.task:
                if prefix + letter not in targets:
                    continue

                key = prefix + letter
                target, found = _pair(letter, targets[key], prediction[letter])
                known = ~torch.isnan(target)
                numbers = target[known], found[known]
                counts = _join_weights(letter, targets[key], targets.get(WEIGHT + key))

                term = self.terms.get(f"{kind}_{letter}")
                weight = term.weight(self.step) if term is not None else 0.0
                kept = None if counts is None else counts[known]

                if term is not None and weight != 0 and len(numbers[0]):
                    if self._host_mean is None:
                        error = _mean_over_vectors(term, target, found, known, counts)
                    else:
                        # The value of masked_mean(distance(...)) over single numbers, but with
                        # CHGNet's own kernels, whose gradients are rounded differently.
                        error = self._host_mean(*numbers, kept)
                    out["loss"] += weight * error

                self._report(out, kind, letter, *numbers, kept)

        if not isinstance(out["loss"], Tensor):
            # No target at all: a zero with a graph, so that backward() works.
            out["loss"] = 0.0 * prediction["e"].sum()

        if self.training:
            self.step += 1
            if self.l2_to_start:
                out["loss"] = out["loss"] + self.l2_to_start * self._squared_distance_to_start()
            out["loss"] = _with_known_gradient(out["loss"], self.parameters_to_train)
        return out

    def _squared_distance_to_start(self) -> Tensor:
        """Return the sum over all weights that train of (now - start)²."""
        parts = [
            (weight - self.start[name].to(weight.device)).square().sum()
            for name, weight in self._trained.items()
        ]
        return torch.stack(parts).sum()

    def _report(
        self,
        out: dict[str, Any],
        kind: str,
        letter: str,
        target: Tensor,
        found: Tensor,
        counts: Tensor | None,
    ) -> None:
        """Add the absolute errors of one quantity to the epoch's sums and to CHGNet's report."""
        error = (target - found).detach().abs()
        size: Any = len(error)
        if counts is not None:
            error, size = error * counts, counts.double().sum()

        # Kept as a tensor: a number would make the host wait for the device in every step.
        total = self._sums[f"{kind}_{letter}"]
        total[0] = total[0] + error.double().sum()
        total[1] = total[1] + size

        if kind == self.select or f"{letter}_MAE" not in out:
            mean = error.mean() if counts is None else error.sum() / size
            out[f"{letter}_MAE"] = mean if len(error) else torch.zeros(())
            out[f"{letter}_MAE_size"] = float(size) if counts is not None else size

    def take_errors(self) -> dict[str, float]:
        """Return the mean absolute errors since the last call, by name such as ``soft_e``.

        Raises:
            Diverged: if one is NaN or infinite.
        """
        errors = {
            name: float(total) / float(count)
            for name, (total, count) in self._sums.items()
            if count
        }
        self._sums.clear()

        for name, error in errors.items():
            if not math.isfinite(error):
                raise Diverged(
                    f"the error {name} is {error}: the training has diverged; lower learning_rate"
                )
        return errors

    def score(self, errors: Mapping[str, float]) -> float:
        """Return what the best model is chosen by: weighted mean absolute errors of one kind.

        Args:
            errors: as `take_errors` returns them; what is missing does not count.
        """
        return sum(
            (weight * errors.get(name, 0.0) for name, weight in self.scored.items()), start=0.0
        )

    @property
    def scored(self) -> Mapping[str, float]:
        """The errors that `score` adds up, such as ``soft_e``, with their weights.

        The weights are those at which the schedules end, so that scores of different epochs can be
        compared. If all end at 0, every error has weight 1; without any, that of the energy has.
        """
        names = [f"{self.select}_{LETTERS[name]}" for name in self.ratios.weighted[self.select]]
        last = {name: self.terms[name].weight(_END) for name in names}
        if not any(last.values()):
            return dict.fromkeys(names or [f"{self.select}_e"], 1.0)
        return {name: weight for name, weight in last.items() if weight}


def to_python(value: Any) -> Any:
    """Return a copy of a setting in Python's own types, the only ones that a checkpoint may hold.

    >>> to_python({"energy": np.float64(0.5), "forces": (np.int64(1), 2)})
    {'energy': 0.5, 'forces': (1, 2)}
    """
    if isinstance(value, Mapping):
        return {key: to_python(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_python(inner) for inner in value)
    return value.item() if isinstance(value, np.generic) else value


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Return the tensors of several structures as one, along the first axis."""
    return torch.stack(list(parts)) if parts[0].ndim == 0 else torch.cat(list(parts))


def _read_schedule(kind: str, name: str, weight: object) -> Schedule:
    try:
        return read_weight(weight)
    except ValueError as error:
        raise ValueError(f"{kind}.{name}: {error}") from error


def _find_distance(criterion: str, delta: float) -> Distance:
    """Return core's distance for a criterion; the host's three compare single numbers."""
    check_number("delta", delta, above=0)
    known: dict[str, Distance] = {
        "MAE": absolute_mean,
        "MSE": squared_mean,
        "Huber": Huber(float(delta)),
        **DISTANCES,
    }
    if criterion not in known:
        raise ValueError(f"unknown criterion {criterion!r}{suggestion(criterion, known)}")
    return known[criterion]


def _host_mean(
    criterion: str, delta: float
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return CHGNet's own criterion of that name, if it has one.

    It takes target, prediction, and the weights of the numbers, None if all count alike.
    """
    modules = {
        "MAE": nn.L1Loss,
        "MSE": nn.MSELoss,
        "Huber": partial(nn.HuberLoss, delta=float(delta)),
    }
    if criterion not in modules:
        return None
    mean, one_by_one = (modules[criterion](reduction=kind) for kind in ("mean", "none"))

    def compare(target: Tensor, found: Tensor, counts: Tensor | None) -> Tensor:
        if counts is None:
            return mean(target, found)
        return _weighted_mean(one_by_one(target, found), counts)

    return compare


def _weighted_mean(items: Tensor, weights: Tensor) -> Tensor:
    """Return sum(w x) / sum(w)."""
    weights = weights.to(items.dtype)
    return masked_mean(items * weights) / masked_mean(weights)


def _pair(letter: str, target: Any, prediction: Any) -> tuple[Tensor, Tensor]:
    """Return target and prediction of one quantity as tensors, one item a row.

    Args:
        letter: CHGNet's, of the quantity.
        target: a tensor, NaN where it is missing, or one tensor a structure, None where missing.
        prediction: of the same form.
    """
    if isinstance(target, Tensor):
        return target, prediction

    there = [index for index, one in enumerate(target) if one is not None]
    if not there:
        return torch.empty(0), torch.empty(0)

    join = torch.stack if letter == LETTERS["stress"] else concatenate
    return join([target[index] for index in there]), join([prediction[index] for index in there])


def _join_weights(letter: str, target: Any, weights: Any) -> Tensor | None:
    """Return the weights of a batch's numbers, shaped as `_pair` returns the target."""
    if weights is None:
        return None
    if isinstance(target, Tensor):
        return weights if isinstance(weights, Tensor) else concatenate(weights)
    return _pair(letter, target, weights)[1]


def _mean_over_vectors(
    term: DistanceTerm, target: Tensor, found: Tensor, known: Tensor, counts: Tensor | None
) -> Tensor:
    """Return the mean of core's distance over energies, force vectors or stress tensors.

    Args:
        term: with the distance and the quantity.
        target: one item a row; of forces also one number after another, as features have them.
        found: the same of the student.
        known: which numbers of the target are there; an item counts if all of its numbers are.
        counts: weights of the numbers, the same within an item; None if all count alike.
    """
    if term.quantity == "forces":
        known, target, found = (one.view(-1, 3) for one in (known, target, found))
    is_whole = known if known.ndim == 1 else known.flatten(1).all(dim=1)

    # A NaN would reach the gradient in spite of the mask, as 0 x NaN.
    filled = torch.where(known, target, found.detach())
    distances = term.distance(found, filled)
    if counts is None or not is_whole.any():
        return masked_mean(distances, is_whole)
    of_items = counts.reshape(len(is_whole), -1)[:, 0]
    return _weighted_mean(distances[is_whole], of_items[is_whole])


def _with_known_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the same loss with its gradient computed already, towards some parameters alone.

    CHGNet's Trainer calls ``loss.backward()``, which differentiates with respect to the positions
    as well, since forces need a graph through them: a third pass through the whole model that
    nobody uses. So the gradient is taken here, of the parameters that train; the loss becomes its
    value plus a sum p . g that is zero in value and has the gradient g, to the bit.
    """
    if not parameters or not loss.requires_grad:
        return loss

    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    products = [
        (parameter * gradient).sum()
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    ]
    if not products:
        return loss

    carrier = torch.stack(products).sum()
    return loss.detach() + (carrier - carrier.detach())
