"""How torch_scatter lays an index over a tensor; fairchem-core's GemNet-GP imports `broadcast`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def broadcast(src: Tensor, other: Tensor, dim: int) -> Tensor:
    """Expand ``src`` to ``other``'s shape; see `expand`."""
    return expand(src, other.shape, dim)


def expand(src: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Expand ``src`` to ``shape``.

    A one-dimensional ``src`` lies along ``dim``; any other lies along the first dimensions.
    """
    n_dims = len(shape)
    if src.dim() == 1:
        src = src.view([-1 if axis == dim % n_dims else 1 for axis in range(n_dims)])
    return src.view(*src.shape, *[1] * (n_dims - src.dim())).expand(*shape)
