"""The items of all ranks on each of them, as if one process had the union of their batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Rows of all ranks one after another; the gradients of all ranks come back added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
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


def counts_of_ranks(n_rows: int, device: torch.device) -> tuple[int, ...]:
    """Return how many rows each rank has; this process alone where there are no others.

    >>> counts_of_ranks(3, torch.device("cpu"))
    (3,)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return (n_rows,)
    counts = [
        torch.zeros((), dtype=torch.long, device=device) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(counts, torch.tensor(n_rows, device=device))
    return tuple(torch.stack(counts).tolist())


def gather(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return the rows of all ranks in the order of ranks, differentiably.

    The gradient is the sum over all ranks of what each has of this rank's rows. A loss that is
    averaged by `kd_plugins.core.reduction.masked_mean` and whose gradients
    DistributedDataParallel averages is then that of one process.

    Args:
        rows: of this rank.
        counts: how many each rank has, see `counts_of_ranks`.
    """
    apply: Any = _Gather.apply
    return apply(rows, counts) if len(counts) > 1 else rows


def place(counts: tuple[int, ...]) -> slice:
    """Return where this rank's rows stand among those of all.

    >>> place((3,))
    slice(0, 3, None)
    """
    rank = dist.get_rank() if len(counts) > 1 else 0
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])
