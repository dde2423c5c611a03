"""Which edges of a batch have a relation."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Edges = Literal["undirected", "directed"]
EdgeIndex = Int[Tensor, "2 E"]


def choose_edges(edge_index: EdgeIndex, n_atoms: int, edges: Edges) -> Int[Tensor, "2 E_chosen"]:
    """Return the edges along which relations are formed, as `kd_plugins.core.Crack.edges` says.

    Raises:
        ValueError: if an index is negative or not below ``n_atoms``.

    >>> images = torch.tensor([[0, 0, 1, 2], [1, 1, 1, 0]])
    >>> choose_edges(images, 3, "undirected")
    tensor([[0, 0, 1, 2],
            [1, 2, 0, 0]])
    """
    check_edge_index(edge_index, n_atoms)
    edge_index = edge_index.long()
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    if edges == "directed":
        return edge_index
    low, high = edge_index.min(dim=0).values, edge_index.max(dim=0).values
    keys = torch.unique(low * n_atoms + high)
    pairs = torch.stack([keys // n_atoms, keys % n_atoms]) if n_atoms else edge_index
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def check_edge_index(edge_index: Tensor, n_atoms: int) -> None:
    """Raise a ValueError if an index of (2, E) does not point at one of ``n_atoms`` atoms."""
    if not isinstance(edge_index, Tensor):
        raise ValueError(f"edge_index: expected a tensor, got {type(edge_index).__name__}")
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.is_floating_point():
        raise ValueError(
            f"edge_index: expected whole numbers (2, E), got {edge_index.dtype} "
            f"{tuple(edge_index.shape)}"
        )
    if edge_index.numel() == 0:
        return
    lowest, highest = torch.stack(edge_index.aminmax()).tolist()
    if lowest < 0 or highest >= n_atoms:
        raise ValueError(
            f"edge_index: expected indices from 0 to {n_atoms - 1} (N={n_atoms} atoms), "
            f"got {lowest} to {highest}"
        )
