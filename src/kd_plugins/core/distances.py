"""Distances between a student and its teacher, item by item.

Every distance takes two tensors of the same shape (I, ...) and returns one number an item, (I,).
None averages over items: `kd_plugins.core.reduction.masked_mean` does. The name of a distance ends
in ``sum`` or ``mean``, for its sum or average over the features of an item, because papers and
codes differ in that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from kd_plugins.numbers import is_number, shown

Distance = Callable[[Tensor, Tensor], Tensor]
Items = Float[Tensor, "I ..."]
PerItem = Float[Tensor, " I"]


def squared_sum(student: Items, teacher: Items) -> PerItem:
    """Return the squared difference, summed over features: ‖s - t‖².

    This is the node-to-node loss of CRACK (Algorithm 1, line 16) before its mean over atoms.

    >>> squared_sum(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
    tensor([5.])
    """
    return _features(student, teacher).square().sum(dim=1)


def squared_mean(student: Items, teacher: Items) -> PerItem:
    """Return the squared difference, averaged over features, as ``torch.nn.MSELoss`` does.

    >>> squared_mean(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
    tensor([2.5000])
    """
    return _features(student, teacher).square().mean(dim=1)


def absolute_sum(student: Items, teacher: Items) -> PerItem:
    """Return the absolute difference, summed over features.

    >>> absolute_sum(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2))
    tensor([3.])
    """
    return _features(student, teacher).abs().sum(dim=1)


def absolute_mean(student: Items, teacher: Items) -> PerItem:
    """Return the absolute difference, averaged over features, as ``torch.nn.L1Loss`` does.

    >>> absolute_mean(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2))
    tensor([1.5000])
    """
    return _features(student, teacher).abs().mean(dim=1)


def norm(student: Items, teacher: Items) -> PerItem:
    """Return the Euclidean length of the difference; its gradient at zero is zero.

    Over forces this is what fairchem calls ``l2mae``.

    >>> norm(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor([5.])
    """
    return torch.linalg.vector_norm(_features(student, teacher), dim=1)


@dataclass(frozen=True)
class Huber:
    """Huber's distance, averaged over features: squared near zero, linear beyond ``delta``.

    Args:
        delta: where it turns linear, in the unit of the quantity; > 0.

    Raises:
        ValueError: if ``delta`` is not positive.

    >>> Huber(delta=1.0)(torch.tensor([[3.0]]), torch.zeros(1, 1))
    tensor([2.5000])
    """

    delta: float

    def __post_init__(self) -> None:
        """Refuse a delta that would make the distance zero or negative."""
        if not is_number(self.delta) or not self.delta > 0:
            raise ValueError(f"huber: delta must be > 0 and finite, got {shown(self.delta)}")

    def __call__(self, student: Items, teacher: Items) -> PerItem:
        """Return one number an item."""
        difference = _features(student, teacher).abs()

        # Value and slope of both parts are equal where they meet.
        squared = 0.5 * difference.square()
        linear = self.delta * (difference - 0.5 * self.delta)

        return torch.where(difference <= self.delta, squared, linear).mean(dim=1)


DISTANCES: Mapping[str, Distance] = MappingProxyType(
    {
        "squared_sum": squared_sum,
        "squared_mean": squared_mean,
        "absolute_sum": absolute_sum,
        "absolute_mean": absolute_mean,
        "norm": norm,
    }
)
"""The distances that need no argument, by name; `Huber` needs its delta."""


def cosine_similarity(student: Items, teacher: Items) -> PerItem:
    """Return the cosine of the angle between two items' features; a measure, not a distance.

    >>> cosine_similarity(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([1.])
    """
    _check_shapes(student, teacher)
    return torch.cosine_similarity(_rows(student), _rows(teacher), dim=1)


def _features(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the difference with all features on one axis, (I, F)."""
    _check_shapes(student, teacher)
    return _rows(student - teacher)


def _rows(items: Tensor) -> Tensor:
    """Return (I, ...) as (I, F); items without features get an axis of length one."""
    return items.unsqueeze(1).flatten(1)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    for name, items in (("student", student), ("teacher", teacher)):
        if not isinstance(items, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(items).__name__}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
