"""Random tensors in float64, each from its own seed."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_plugins.core import Quantity

SIZES = {"D": 5, "M": 4, "K": 2}
"""What the letters of `Quantity.shape` stand for in these tests."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normally distributed numbers; the global random state is left alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    """Return a random orthogonal matrix."""
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def permutation(size: int, seed: int = 0) -> Tensor:
    """Return the numbers below ``size`` in random order."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def shape_of(quantity: Quantity, n_structures: int, n_atoms: int) -> tuple[int, ...]:
    """Return the shape that a tensor of the quantity has."""
    trailing = (SIZES[size] if isinstance(size, str) else size for size in quantity.shape)
    return (quantity.n_items(n_structures, n_atoms), *trailing)
