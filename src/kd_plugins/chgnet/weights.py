"""The loss ratios of hard and soft targets, as numbers or schedules over steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kd_plugins.chgnet.convert import LETTERS
from kd_plugins.config import weight
from kd_plugins.core.schedules import Constant, Schedule
from kd_plugins.names import suggestion

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
