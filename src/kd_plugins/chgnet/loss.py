"""CHGNet's loss with labels (hard targets) and a teacher (soft targets), and its weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kd_plugins.chgnet.convert import LETTERS
from kd_plugins.config import weight
from kd_plugins.core.schedules import Constant, Schedule
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number

HARD = tuple(LETTERS)
"""Quantities that labels may teach."""
SOFT = ("energy", "forces", "stress")
"""Quantities that a teacher may teach: a frozen trunk alone decides the magnetic moments."""


@dataclass(frozen=True)
class Ratios:
    """Quantity name to weight, of hard and of soft targets; paper 004's r_H and r_S.

    Args:
        hard: of the labels, a number or a mapping such as ``{"schedule": "linear", ...}`` over
            optimizer steps, of ``energy``, ``forces``, ``stress`` and ``magmoms``. A quantity left
            out has none.
        soft: of the teacher's targets, of ``energy``, ``forces`` and ``stress``.

    Raises:
        ValueError: for another quantity, a weight that is no weight, or if nothing has one.

    >>> Ratios(soft={"energy": 1, "forces": 1}).task
    'ef'
    >>> Ratios(soft={"energie": 1})
    Traceback (most recent call last):
    ValueError: soft: unknown quantity 'energie'; did you mean 'energy'?
    """

    hard: Mapping[str, Any] = field(default_factory=dict)
    soft: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names and that each weight can be read."""
        for source, allowed in (("hard", HARD), ("soft", SOFT)):
            raw = getattr(self, source) or {}
            if not isinstance(raw, Mapping):
                raise ValueError(f"{source}: expected quantities with weights, got {raw!r}")
            raw = plain(raw)
            object.__setattr__(self, source, raw)
            for name in raw:
                if name not in allowed:
                    known = suggestion(str(name), allowed)
                    raise ValueError(f"{source}: unknown quantity {name!r}{known}")
                _read(source, name, raw[name])
        if not any(self.taught.values()):
            raise ValueError("no target has a weight; give soft={'energy': 1, 'forces': 1}, say")

    def schedules(self, source: str) -> dict[str, Schedule]:
        """Return CHGNet's letter to weight, in its order, of one source."""
        raw = getattr(self, source)
        return {LETTERS[name]: _read(source, name, raw[name]) for name in LETTERS if name in raw}

    @property
    def taught(self) -> dict[str, tuple[str, ...]]:
        """Source to the quantities whose weight is not always 0."""
        return {
            source: tuple(
                name
                for name in LETTERS
                if name in getattr(self, source)
                and _read(source, name, getattr(self, source)[name]) != Constant(0.0)
            )
            for source in ("hard", "soft")
        }

    @property
    def task(self) -> str:
        """What CHGNet must compute; the energy always, as its Trainer asks for it."""
        taught = {name for names in self.taught.values() for name in names}
        return "".join(LETTERS[name] for name in LETTERS if name == "energy" or name in taught)


def plain(value: Any) -> Any:
    """Return a copy of a setting in Python's own types, the only ones that a checkpoint may hold.

    >>> plain({"energy": np.float64(0.5), "forces": (np.int64(1), 2)})
    {'energy': 0.5, 'forces': (1, 2)}
    """
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(inner) for inner in value)
    return value.item() if isinstance(value, np.generic) else value


def _read(source: str, name: str, raw: object) -> Schedule:
    try:
        return weight(raw)
    except ValueError as error:
        raise ValueError(f"{source}.{name}: {error}") from error


Criterion = Literal["MAE", "MSE", "Huber"]
Source = Literal["hard", "soft"]
PREFIX: Mapping[str, str] = {"hard": "", "soft": "soft_"}
"""Of CHGNet's letters, among the targets of a batch: labels are called as CHGNet calls them."""
_END = 2**53
"""A step after all others."""


class Diverged(FloatingPointError):
    """A training whose errors are no longer finite."""


class DistillLoss(nn.Module):
    """The weighted sum of errors against labels and teacher, in the place of CHGNet's loss.

    Paper 004, "Loss function in knowledge distillation": L = r_HE L(E_H, E) + r_HF L(F_H, F) +
    r_SE L(E_S, E) + r_SF L(F_S, F), here with stress and magnetic moments too and each L a mean
    over all numbers of the batch, as CHGNet's. With soft targets alone it is to the bit what
    CHGNet's ``CombinedLoss`` makes of the teacher's values in the place of labels. Numbers that
    are missing, NaN or None, do not count; if all are, the term is 0.

    Args:
        ratios: of hard and soft targets, over optimizer steps.
        criterion: ``MAE`` (paper), ``MSE`` or ``Huber``.
        delta: where Huber's turns linear, in CHGNet's units (eV/atom, eV/Å, GPa).
        select: whose errors CHGNet's Trainer sees and chooses its best model by; the teacher's if
            left out, unless there are labels alone.

    Raises:
        ValueError: for an unknown criterion or source, or a delta that is not above 0.
    """

    def __init__(
        self,
        ratios: Ratios,
        criterion: Criterion = "MAE",
        delta: float = 0.1,
        select: Source | None = None,
    ) -> None:
        super().__init__()
        self.ratios, self.name, self.delta = ratios, criterion, plain(delta)
        self.criterion = _criterion(criterion, delta)
        if select not in (None, *PREFIX):
            raise ValueError(f"select: expected 'hard' or 'soft', got {select!r}")
        self.select: Source = select or ("soft" if ratios.taught["soft"] else "hard")
        self.step = 0
        self.parameters_to_train: Sequence[nn.Parameter] = ()
        self._weights = {source: ratios.schedules(source) for source in PREFIX}
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def forward(
        self, targets: Mapping[str, Any], prediction: Mapping[str, Any]
    ) -> dict[str, Tensor | int]:
        """Return ``loss`` and, as CHGNet's loss does, ``e_MAE`` and ``e_MAE_size`` a letter.

        In training mode the loss is backed by gradients to `parameters_to_train` that are known
        already, so that ``backward()`` spends no time on the positions; they are the same to the
        bit. In that mode every call is a step of the schedules.

        Args:
            targets: what CHGNet's ``collate_graphs`` returns of a `DistillData`.
            prediction: of the model.
        """
        out: dict[str, Any] = {"loss": 0.0}
        for source, prefix in PREFIX.items():
            for letter in self.ratios.task:
                if prefix + letter in targets:
                    target, found = _valid(targets[prefix + letter], prediction[letter])
                    weight = self._weights[source].get(letter, _never)(self.step)
                    if weight != 0 and len(target):
                        out["loss"] += weight * self.criterion(target, found)
                    self._report(out, source, letter, target, found)
        if not isinstance(out["loss"], Tensor):
            out["loss"] = 0.0 * prediction["e"].sum()
        if self.training:
            self.step += 1
            out["loss"] = _known(out["loss"], self.parameters_to_train)
        return out

    def _report(
        self, out: dict[str, Any], source: str, letter: str, target: Tensor, found: Tensor
    ) -> None:
        error = (target - found).detach().abs()
        total = self._sums[f"{source}_{letter}"]
        total[0] += float(error.double().sum())
        total[1] += len(error)
        if source == self.select or f"{letter}_MAE" not in out:
            out[f"{letter}_MAE"] = error.mean() if len(error) else torch.zeros(())
            out[f"{letter}_MAE_size"] = len(error)

    def take_errors(self) -> dict[str, float]:
        """Return the mean absolute errors since they were last taken, ``soft_e`` and so on.

        Raises:
            Diverged: if one is NaN or infinite.
        """
        errors = {name: total / count for name, (total, count) in self._sums.items() if count}
        self._sums.clear()
        for name, error in errors.items():
            if not math.isfinite(error):
                raise Diverged(
                    f"the error {name} is {error}: the training has diverged; lower learning_rate"
                )
        return errors

    def score(self, errors: Mapping[str, float]) -> float:
        """Return what the best model is chosen by: weighted mean absolute errors of one source.

        Args:
            errors: as `take_errors` gives them; what is missing does not count.
        """
        return sum(
            (weight * errors.get(name, 0.0) for name, weight in self.scored.items()), start=0.0
        )

    @property
    def scored(self) -> Mapping[str, float]:
        """The errors that `score` adds up, such as ``soft_e``, and their weights.

        The weights at which the schedules end, so that scores of different epochs compare. Of
        those that all end at 0 each error counts alike; without any, that of the energy.
        """
        schedules = self._weights[self.select]
        taught = [LETTERS[name] for name in self.ratios.taught[self.select]]
        ends = {letter: schedules[letter](_END) for letter in taught}
        weights = ends if any(ends.values()) else dict.fromkeys(taught or ["e"], 1.0)
        return {f"{self.select}_{letter}": weight for letter, weight in weights.items() if weight}


def _criterion(name: str, delta: float) -> nn.Module:
    check_number("delta", delta, above=0)
    known = {"MAE": nn.L1Loss(), "MSE": nn.MSELoss(), "Huber": nn.HuberLoss(delta=delta)}
    if name not in known:
        raise ValueError(f"unknown criterion {name!r}{suggestion(name, known)}")
    return known[name]


def _never(step: int) -> float:
    return 0.0


def _valid(target: Any, prediction: Any) -> tuple[Tensor, Tensor]:
    """Return the numbers that are there, flat, of the target and of the prediction."""
    if not isinstance(target, Tensor):
        there = [index for index, one in enumerate(target) if one is not None]
        if not there:
            return torch.empty(0), torch.empty(0)
        target, prediction = (
            joined([side[index] for index in there]) for side in (target, prediction)
        )
    valid = ~torch.isnan(target)
    return target[valid], prediction[valid]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors of several structures as one, along the first axis."""
    return torch.stack(list(parts)) if parts[0].ndim == 0 else torch.cat(list(parts))


def _known(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the same loss, whose gradient is computed already and reaches parameters alone."""
    if not parameters or not loss.requires_grad:
        return loss
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    parts = [
        (parameter * gradient).sum()
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    ]
    if not parts:
        return loss
    carrier = torch.stack(parts).sum()
    return loss.detach() + (carrier - carrier.detach())
