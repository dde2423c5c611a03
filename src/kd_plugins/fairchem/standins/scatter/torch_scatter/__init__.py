"""What fairchem-core and PyTorch Geometric use of torch_scatter, in torch alone.

It stands in where the compiled package is missing, at some cost in speed:
`kd_plugins.fairchem.compat` puts it on the path there. Everything is differentiable.

An empty group is 0, or 1 for ``mul``. Equal extremes of one group give their gradient to the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_scatter.utils import broadcast, expand


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """Reduce the entries of ``src`` along ``dim`` that share an ``index``.

    Args:
        src: any shape.
        index: int64; of ``src``'s shape, or a prefix of it, or one-dimensional along ``dim``.
        dim: the dimension to reduce.
        out: written to and returned where given; its entries take part, as in torch_scatter.
        dim_size: number of groups, by default the largest index plus one.
        reduce: ``sum`` (or ``add``), ``mean``, ``mul``, ``min`` or ``max``.

    Raises:
        ValueError: for an unknown ``reduce``.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(f"unknown reduce {reduce!r}; choose from {', '.join(_REDUCTIONS)}")
    result = _REDUCTIONS[reduce](src, index, dim, out, dim_size)
    return result[0] if isinstance(result, tuple) else result


def scatter_sum(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Sum over groups; see `scatter`."""
    index = broadcast(index, src, dim)
    if out is None:
        out = src.new_zeros(_grouped_shape(src, index, dim, dim_size))
    return out.scatter_add_(dim, index, src)


def scatter_mul(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Multiply over groups; see `scatter`."""
    index = broadcast(index, src, dim)
    if out is None:
        out = src.new_ones(_grouped_shape(src, index, dim, dim_size))
    return out.scatter_reduce_(dim, index, src, "prod")


def scatter_mean(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Mean over groups, rounded down for integers; see `scatter`."""
    total = scatter_sum(src, index, dim, out, dim_size)
    ones = torch.ones_like(src, dtype=torch.long)
    counts = scatter_sum(ones, index, dim, dim_size=total.size(dim)).clamp(min=1)
    return total.div_(counts, rounding_mode=None if total.is_floating_point() else "floor")


def scatter_min(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimum over groups and where it stands in ``src``; see `scatter`.

    An empty group stands at ``src.size(dim)``.
    """
    return _extreme(src, index, dim, out, dim_size, "amin")


def scatter_max(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Maximum over groups and where it stands in ``src``; see `scatter`.

    An empty group stands at ``src.size(dim)``.
    """
    return _extreme(src, index, dim, out, dim_size, "amax")


scatter_add = scatter_sum

_REDUCTIONS = {
    "sum": scatter_sum,
    "add": scatter_sum,
    "mul": scatter_mul,
    "mean": scatter_mean,
    "min": scatter_min,
    "max": scatter_max,
}


def segment_coo(
    src: Tensor,
    index: Tensor,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """Reduce runs of equal ``index``, which is sorted, along the last dimension of ``index``."""
    return scatter(src, index, index.dim() - 1, out, dim_size, reduce)


def segment_csr(
    src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum"
) -> Tensor:
    """Reduce ``src[indptr[i]:indptr[i + 1]]`` for every i along the last dimension of ``indptr``.

    Entries outside of ``indptr``'s range are left out.
    """
    dim, n_groups = indptr.dim() - 1, indptr.size(-1) - 1
    group = _group_of_position(src.shape[: dim + 1], indptr)
    padded = scatter(src, group, dim, dim_size=n_groups + 2, reduce=reduce)
    result = padded.narrow(dim, 1, n_groups)
    return result if out is None else out.copy_(result)


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Take ``src[index]`` along the last dimension of ``index``: what undoes `segment_coo`."""
    dim = index.dim() - 1
    shape = (*src.shape[:dim], index.size(dim), *src.shape[dim + 1 :])
    result = src.gather(dim, expand(index, shape, dim))
    return result if out is None else out.copy_(result)


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Repeat ``src[i]`` from ``indptr[i]`` to ``indptr[i + 1]``: what undoes `segment_csr`."""
    n_positions = int(indptr.max()) if indptr.numel() else 0
    group = _group_of_position((*src.shape[: indptr.dim() - 1], n_positions), indptr)
    return gather_coo(src, group - 1, out)


def _extreme(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, reduce: str
) -> tuple[Tensor, Tensor]:
    """Return the extremes and where the first of each group stands; a NaN is an extreme."""
    index = broadcast(index, src, dim)
    shape = _grouped_shape(src, index, dim, dim_size)
    start = src.new_zeros(shape) if out is None else out
    extreme = start.detach().scatter_reduce(
        dim, index, src.detach(), reduce, include_self=out is not None
    )
    found = (src == extreme.gather(dim, index)) | src.isnan()
    position = broadcast(torch.arange(src.size(dim), device=src.device), src, dim)
    nowhere = src.size(dim)
    where = torch.full_like(extreme, nowhere, dtype=torch.long)
    where = where.scatter_reduce(dim, index, position.masked_fill(~found, nowhere), "amin")
    padded = torch.cat([src, src.new_zeros(_resized(src, dim, 1))], dim)
    values = torch.where(where == nowhere, start, padded.gather(dim, where))
    return values if out is None else out.copy_(values), where


def _grouped_shape(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> list[int]:
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() else 0
    return _resized(src, dim, dim_size)


def _resized(src: Tensor, dim: int, size: int) -> list[int]:
    shape = list(src.shape)
    shape[dim] = size
    return shape


def _group_of_position(shape: tuple[int, ...], indptr: Tensor) -> Tensor:
    """Return each position's group, from 1; one beside all groups gets 0 or the last + 1."""
    position = torch.arange(shape[-1], device=indptr.device).expand(shape).contiguous()
    starts = indptr.expand(*shape[:-1], indptr.size(-1)).contiguous()
    return torch.searchsorted(starts, position, right=True)
