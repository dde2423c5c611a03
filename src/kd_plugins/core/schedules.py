"""Weights as functions of the step or epoch.

A schedule has no state: the same step gives the same weight, in whatever order steps are evaluated,
so that a resumed training needs nothing from before.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kd_plugins.numbers import is_number, shown

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same weight always.

    >>> Constant(2.0)(10)
    2.0
    """

    value: float

    def __post_init__(self) -> None:
        """Refuse a weight that is negative or not finite."""
        _check_weights(self.value)

    def __call__(self, step: int) -> float:
        """Return the weight at a step."""
        return self.value


@dataclass(frozen=True)
class _Ramp:
    start: float
    end: float
    first_step: int
    last_step: int

    def __post_init__(self) -> None:
        _check_weights(self.start, self.end)
        _check_interval(self.first_step, self.last_step)

    def _fraction(self, step: int) -> float:
        # Constant outside of the ramp.
        fraction = (step - self.first_step) / (self.last_step - self.first_step)
        return min(max(fraction, 0.0), 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """From ``start`` at ``first_step`` straight to ``end`` at ``last_step``; constant outside.

    >>> Linear(start=0.0, end=10.0, first_step=0, last_step=4)(1)
    2.5
    """

    def __call__(self, step: int) -> float:
        """Return the weight at a step."""
        return self.start + (self.end - self.start) * self._fraction(step)


@dataclass(frozen=True)
class Cosine(_Ramp):
    """As `Linear`, along half a cosine.

    >>> Cosine(start=10.0, end=0.0, first_step=0, last_step=4)(2)
    5.0
    """

    def __call__(self, step: int) -> float:
        """Return the weight at a step."""
        remaining = 0.5 * (1.0 + math.cos(math.pi * self._fraction(step)))
        return self.end + (self.start - self.end) * remaining


@dataclass(frozen=True)
class Piecewise:
    """``weights[k]`` from ``steps[k]`` on; 0 before ``steps[0]``.

    >>> table = Piecewise(steps=(0, 100), weights=(200.0, 160.0))
    >>> table(99), table(100)
    (200.0, 160.0)
    """

    steps: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse rows that do not match or are not in order."""
        _check_weights(*self.weights)
        _check_steps(*self.steps)

        if not self.steps or len(self.steps) != len(self.weights):
            raise ValueError(
                f"expected as many steps as weights, at least one; "
                f"got {len(self.steps)} and {len(self.weights)}"
            )

        if any(later <= sooner for sooner, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps must increase, got {list(self.steps)}")

    def __call__(self, step: int) -> float:
        """Return the weight at a step."""
        row = bisect_right(self.steps, step)
        return self.weights[row - 1] if row else 0.0


SCHEDULES: Mapping[str, type] = MappingProxyType(
    {"constant": Constant, "linear": Linear, "cosine": Cosine, "piecewise": Piecewise}
)
"""The schedules by name, as a YAML's ``schedule:`` key gives it."""


def _check_weights(*weights: float) -> None:
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"a weight must be a number, got {shown(weight)}")
        if not is_number(weight) or not weight >= 0:
            raise ValueError(f"a weight must be finite and >= 0, got {shown(weight)}")


def _check_steps(*steps: int) -> None:
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int):
            raise ValueError(f"a step must be a whole number, got {shown(step)}")


def _check_interval(first_step: int, last_step: int) -> None:
    _check_steps(first_step, last_step)
    if not 0 <= first_step < last_step:
        raise ValueError(
            f"a schedule needs 0 <= first_step < last_step, got {shown(first_step)} and "
            f"{shown(last_step)}"
        )
