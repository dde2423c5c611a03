"""The only place where items are averaged."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    items: Float[Tensor, " I"], mask: Bool[Tensor, " I"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean over the items that count, over all ranks.

    Under ``torch.distributed`` the local sum is divided by the *global* count and multiplied by
    the number of ranks, because DistributedDataParallel averages gradients: n ranks then give the
    gradient of one process on the union batch, however unevenly the items fall (the rule that
    fairchem's ``DDPLoss`` follows). With nothing to average the result is a zero that has a graph.

    Args:
        items: one number an item, (I,).
        mask: which of them count, (I,); all if left out.

    Raises:
        ValueError: for a mask of another shape, or of numbers.

    >>> masked_mean(torch.tensor([1.0, 5.0]), torch.tensor([True, False]))
    tensor(1.)
    """
    if mask is None:
        mask = torch.ones_like(items, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != items.shape:
        raise ValueError(
            f"mask: expected booleans {tuple(items.shape)}, one an item, got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    total = torch.where(mask, items, torch.zeros_like(items)).sum()
    count, ranks = global_count(mask)
    return total * ranks / count.clamp(min=1)


def global_count(mask: Bool[Tensor, " I"]) -> tuple[Tensor, int]:
    """Return how many items count on all ranks together, and the number of ranks.

    >>> global_count(torch.tensor([True, False, True]))
    (tensor(2), 1)
    """
    count = mask.sum()
    if not (dist.is_available() and dist.is_initialized()):
        return count, 1
    dist.all_reduce(count)
    return count, dist.get_world_size()
