"""What training costs with the whole model, and with cached features of its trunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet

from kd_plugins.chgnet.data import DistillData, GraphSample
from kd_plugins.chgnet.trunk import FrozenTrunk
from kd_plugins.chgnet.trunk_cache import is_cached, n_coordinates

PROBED = 2
"""Atoms along whose coordinates a trial's Jacobian is computed."""


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes, from trials on one structure of middle size.

    Args:
        plain: seconds of the training with the whole model.
        build: seconds until all features are there; 0 if they are.
        cached: seconds of the training on features.
        size: bytes of the features on disk.

    >>> print(Estimate(plain=7200.0, build=300.0, cached=60.0, size=2 * 10**9))
    with cached features about 6.0 min (5.0 min for 2.0 GB of features), with the whole model 2.0 h
    """

    plain: float
    build: float
    cached: float
    size: int

    @property
    def prefers_cache(self) -> bool:
        """Whether features pay off."""
        return self.build + self.cached < self.plain

    def __str__(self) -> str:
        build = f" ({_spoken(self.build)} for {self.size / 1e9:.1f} GB of features)"
        return (
            f"with cached features about {_spoken(self.build + self.cached)}"
            f"{build if self.build else ''}, with the whole model {_spoken(self.plain)}"
        )


def estimate(
    trunk: FrozenTrunk,
    train: DistillData,
    validation: DistillData,
    epochs: int,
    folder: str | Path,
    force_share: float,
) -> Estimate:
    """Return what both ways of training would cost on this machine.

    Args:
        trunk: of the student.
        train: its structures.
        validation: those seen once an epoch, without learning.
        epochs: of the training.
        folder: of the cache, see `CachedData`.
        force_share: of the force components, see `CachedData`.
    """
    rows = sorted([*train.rows, *validation.rows], key=lambda row: row.case.n_atoms)
    middle = rows[len(rows) // 2]
    n_seen = epochs * len(rows)
    step = _seconds(lambda: _step(trunk.model, middle))
    features = trunk.features(middle.graph, range(3 * PROBED))
    a_row = _seconds(lambda: trunk.features(middle.graph, range(3 * PROBED))) / (3 * PROBED + 6)
    head = [parameter for parameter in trunk.model.parameters() if parameter.requires_grad]
    quick = _seconds(
        lambda: torch.autograd.grad(
            trunk.predict([features])["f"][0].sum(), head, allow_unused=True
        )
    )
    per_atom = a_row / middle.case.n_atoms
    missing = [row for row in rows if not is_cached(trunk, folder, row, force_share)]
    return Estimate(
        plain=n_seen * step,
        build=sum(_n_rows(row, force_share) * per_atom * row.case.n_atoms for row in missing),
        cached=2 * n_seen * quick,
        size=sum(4 * 64 * row.case.n_atoms * _n_rows(row, force_share) for row in missing),
    )


def _n_rows(row: GraphSample, force_share: float) -> int:
    return n_coordinates(row, force_share) + 6


def _step(model: CHGNet, row: GraphSample) -> None:
    graphs, targets = collate_graphs([(row.graph, dict(row.targets))])
    prediction = model(graphs, task="efs")
    found = torch.nn.functional.l1_loss(prediction["e"], torch.zeros_like(prediction["e"]))
    total = found + sum(force.abs().mean() for force in prediction["f"])
    torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])


def _spoken(seconds: float) -> str:
    """Return a time with its unit.

    >>> _spoken(90.0)
    '1.5 min'
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _seconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
