"""How CHGNet's learning rate falls, and how it would have to."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

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

    >>> epochs_for(2400, n_structures=250, batch_size=32)
    300
    """
    return -(-steps // -(-n_structures // batch_size))
