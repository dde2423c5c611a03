"""How long training is, how CHGNet's learning rate falls, and how it would have to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from kd_plugins.chgnet.weights import plain
from kd_plugins.numbers import check_number, check_seed, check_whole

Schedule = Literal["finishing", "chgnet"]
"""``chgnet``: CHGNet 0.4.2's cosine over 10 steps an epoch, which stays near its start where an
epoch has fewer than 10 batches. ``finishing``: the same cosine over the steps that are taken."""

PARTS = 10
FINAL = 1e-2
"""What the cosine ends at, as a share of the learning rate; CHGNet's default."""


def cosine_length(schedule: Schedule, epochs: int, n_batches: int) -> int:
    """Return the number of steps until the cosine has reached its end.

    >>> cosine_length("finishing", epochs=100, n_batches=2)
    200
    >>> cosine_length("chgnet", epochs=100, n_batches=2)
    1000
    """
    if schedule not in ("finishing", "chgnet"):
        raise ValueError(f"schedule: expected 'finishing' or 'chgnet', got {schedule!r}")
    return epochs * (min(PARTS, n_batches) if schedule == "finishing" else PARTS)


def make_cosine(
    optimizer: Optimizer, schedule: Schedule, epochs: int, n_batches: int
) -> CosineAnnealingLR:
    """Return the scheduler that CHGNet's Trainer makes, of the length above."""
    rate = optimizer.param_groups[0]["lr"]
    length = cosine_length(schedule, epochs, n_batches)
    return CosineAnnealingLR(optimizer, T_max=length, eta_min=FINAL * rate)


def is_step(batch: int, n_batches: int) -> bool:
    """Return whether the scheduler steps after a batch: at each tenth of an epoch, as CHGNet's."""
    return batch + 1 in np.arange(1, PARTS + 1) * n_batches // PARTS


def epochs_for(steps: int, n_structures: int, batch_size: int) -> int:
    """Return the whole epochs that take at least so many optimizer steps.

    Raises:
        ValueError: for a number that is not above 0.

    >>> epochs_for(2400, n_structures=250, batch_size=32)
    300
    """
    for name, count in (
        ("steps", steps),
        ("n_structures", n_structures),
        ("batch_size", batch_size),
    ):
        check_whole(name, count, least=1)
    return -(-steps // -(-n_structures // batch_size))


@dataclass(frozen=True)
class FitSettings:
    """How a student's readout MLP is trained; what paper 004 says is the default.

    Args:
        epochs: passes over the structures (paper: 100).
        batch_size: structures a step (paper: 32).
        learning_rate: of Adam, at the start (paper: 0.01).
        schedule: of the learning rate.
        seed: of the order of structures.
    """

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 0.01
    schedule: Schedule = "finishing"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))
        for name in ("epochs", "batch_size"):
            check_whole(name, getattr(self, name), least=1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_seed("seed", self.seed)
        cosine_length(self.schedule, self.epochs, 1)

    @classmethod
    def for_steps(cls, steps: int, n_structures: int, **others: Any) -> FitSettings:
        """Return settings for a budget of optimizer steps, in whole epochs.

        >>> FitSettings.for_steps(2400, n_structures=250, batch_size=32).epochs
        300
        """
        epochs = epochs_for(steps, n_structures, others.get("batch_size", cls.batch_size))
        return cls(epochs=epochs, **others)
