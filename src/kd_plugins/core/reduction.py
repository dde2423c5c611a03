"""Means over the items that count, and the items of all ranks of a distributed training."""

from __future__ import annotations

from typing import Any

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

    Nothing else in this package divides by a number of items.

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

    # torch.where and not a product: NaN times zero is NaN.
    total = torch.where(mask, items, torch.zeros_like(items)).sum()
    count, n_ranks = _count_on_all_ranks(mask)
    return total * n_ranks / count.clamp(min=1)


def _count_on_all_ranks(mask: Bool[Tensor, " I"]) -> tuple[Tensor, int]:
    """Return how many items count on all ranks together, and the number of ranks."""
    count = mask.sum()
    if not _is_distributed():
        return count, 1
    dist.all_reduce(count)
    return count, dist.get_world_size()


def counts_of_ranks(n_rows: int, device: torch.device) -> tuple[int, ...]:
    """Return how many rows each rank has; this process alone where there are no others.

    >>> counts_of_ranks(3, torch.device("cpu"))
    (3,)
    """
    if not _is_distributed():
        return (n_rows,)
    counts = [
        torch.zeros((), dtype=torch.long, device=device) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(counts, torch.tensor(n_rows, device=device))
    return tuple(torch.stack(counts).tolist())


def gather_from_ranks(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return the rows of all ranks in the order of ranks, differentiably.

    The gradient is the sum over all ranks of what each has of this rank's rows. A loss that is
    averaged by `masked_mean` and whose gradients DistributedDataParallel averages is then that of
    one process on the union of the batches.

    Args:
        rows: of this rank.
        counts: how many each rank has, see `counts_of_ranks`.
    """
    apply: Any = _Gather.apply
    return apply(rows, counts) if len(counts) > 1 else rows


def rows_of_this_rank(counts: tuple[int, ...]) -> slice:
    """Return where this rank's rows stand among those of all.

    >>> rows_of_this_rank((3,))
    slice(0, 3, None)
    """
    rank = dist.get_rank() if len(counts) > 1 else 0
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


class _Gather(torch.autograd.Function):
    """Rows of all ranks one after another; the gradients of all ranks come back added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts

        # all_gather takes tensors of one shape only, so all are padded to the longest.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        return torch.cat([part[:n] for part, n in zip(received, counts, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.counts)[dist.get_rank()], None


def _is_distributed() -> bool:
    """Return whether there are other ranks; a group of one, as fairchem has, has none.

    Besides being of no use there, a collective of Gloo would leave its tensor to a thread of the
    group, which needs the interpreter to free it. Where the group is then taken down at once, the
    destructor of torch 2.4 holds the interpreter and waits for that thread, forever.
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
