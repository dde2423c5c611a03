"""Directional force derivatives of student and teacher, on one graph and one random state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch_geometric.data import Batch

from kd_plugins.core.curvature import force_derivative, random_directions
from kd_plugins.fairchem.convert import at_least_float32
from kd_plugins.fairchem.random_state import drawing_from


def draw_directions(batch: Batch, probes: int, seed: int, step: int) -> Tensor:
    """Return (K, N, 3) directions, a pure function of seed, training step and rank."""
    generator = torch.Generator().manual_seed(hash((seed, step, distutils.get_rank())) % 2**63)
    return torch.stack([random_directions(batch.natoms, generator) for _ in range(probes)])


def force_derivatives(
    forces: Callable[[Batch], Tensor],
    batch: Batch,
    directions: Tensor,
    step: float,
    drawing: Tensor | None,
) -> Tensor:
    """Return (N, K, 3) derivatives of a model's force output along K directions.

    EquiformerV2 draws a random roll for every edge, and a student in training drops attention at
    random: all evaluations start from one random state, and the state outside is left alone.

    Args:
        forces: a batch that carries its graph to the model's forces.
        batch: with the neighbour graph, which is kept for displaced atoms too.
        directions: (K, N, 3).
        step: displacement in Å.
        drawing: the random state; seed 0 if left out.
    """

    def displaced_forces(positions: Tensor) -> Tensor:
        moved = copy.copy(batch)
        moved.pos = positions
        with drawing_from(drawing, batch.pos.device):
            return at_least_float32(forces(moved).reshape(-1, 3))

    return torch.stack(
        [force_derivative(displaced_forces, batch.pos, along, step) for along in directions], dim=1
    )
