"""InfoNCE between many relations without the E x E matrix of logits: exact, a block at a time.

A relation is the scaled difference of two atoms' unit embeddings, so all E relations of a model
are R = A X: X holds the embeddings of its N atoms, (N, D), and A is a sparse matrix, (E, N), with
two entries in each row. The logits of equation 3.2.2 of CRACK are then

    anchors Rᵀ keys = A_keys (X_keys X_anchorsᵀ) A_anchorsᵀ / temperature,

which is made for a block of B anchors at a time, as (E, B): first the similarities of the anchors
with all *atoms* of the other model, (N, B), then two of these for each key. A batch has some 25
times as many relations as atoms, so this takes far less time than (E, D) times (D, B).

The backward pass makes each block anew from the saved logarithms of the sums of exponentials, so
the memory is that of one block. Sums over atoms run in the dtype of X (float64 for relations:
between near neighbours differences cancel), sums over relations in that of the scales.

The plain form is `kd_plugins.core.contrastive.info_nce`, against which this one is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Block = Float[Tensor, "E B"]
PerAnchor = Float[Tensor, " B"]

BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Logits in a block, by device; on a CPU for each thread, a few of whose blocks fit its cache."""
LANES = 64
"""Anchors in a block are a multiple of this, where there are as many.

torch takes the largest of each column for 64 columns at a time, and for those that are left one by
one: 74 columns take six times as long as 64.
"""
LARGEST_BLOCK = 4096
"""The most anchors in a block."""


def info_nce_in_blocks(
    keys: Tensor | None,
    anchors: Tensor,
    pairs: Tensor | None,
    key_scale: Tensor,
    anchor_scale: Tensor,
    temperature: float,
    both_directions: bool,
    offset: int = 0,
    block_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each anchor's InfoNCE loss, and whether its positive is its most similar key.

    Differentiable once with respect to all four floating-point tensors.

    Args:
        keys: (N, D) unit embeddings of the model that the softmax runs over; None if ``anchors``
            already holds the similarities of its atoms with the keys', (N, N).
        anchors: (N, D) unit embeddings of the other model.
        pairs: (2, E) atoms of each relation; None if every atom stands for itself, and then
            ``anchors`` has the rows of the A anchors only.
        key_scale: (E,) factors of the keys' differences, so that none is longer than one.
        anchor_scale: (A,) those of the anchors'; its dtype is that of the result.
        temperature: divides the similarities.
        both_directions: whether the opposite of each key is a key, too.
        offset: the positive of anchor 0 is this key, and so on; A may be less than E.
        block_size: anchors in a block; chosen by size and device if left out.
    """
    losses, is_correct, _ = _forward(
        keys,
        anchors,
        pairs,
        key_scale,
        anchor_scale,
        temperature,
        both_directions,
        offset,
        block_size,
    )
    return losses, is_correct


# ----------------------------------------------------------------------------------------------
# Relations as a sparse matrix, and the logits between them


class _Differences:
    """The sparse matrix A, (E, N): row m is ``scale[m]`` times atom ``pairs[0, m] - pairs[1, m]``.

    Both products are sums over the few entries of a row or a column, which `F.embedding_bag` does
    in one pass over its output, without atomic additions.

    Args:
        pairs: (2, E) atoms; without it A is diagonal, one row an atom.
        scale: (E,) factor of a row.
        n_atoms: N.
    """

    def __init__(
        self, pairs: Int[Tensor, "2 E"] | None, scale: Float[Tensor, " E"], n_atoms: int
    ) -> None:
        self.pairs, self.scale, self.n_atoms = pairs, scale, n_atoms
        if pairs is not None:
            self._atoms_of_rows = pairs.T.contiguous()

    def rows(self, table: Float[Tensor, "N W"], block: slice) -> Float[Tensor, "B W"]:
        """Return some rows of A @ table in the table's dtype, by subtraction."""
        if self.pairs is None:
            return table[block] * self.scale[block, None].to(table.dtype)

        first, second = self.pairs[0, block], self.pairs[1, block]
        differences = table.index_select(0, first).sub_(table.index_select(0, second))
        return differences.mul_(self.scale[block, None])

    def product(self, table: Float[Tensor, "N B"]) -> Float[Tensor, "E B"]:
        """Return A @ table."""
        if self.pairs is None:
            return table * self.scale[:, None]

        # Scaled last, so that differences of equal numbers are exactly zero.
        differences = F.embedding_bag(
            self._atoms_of_rows, table, per_sample_weights=self._signs, mode="sum"
        )
        return differences.mul_(self.scale[:, None])

    def transposed_product(self, values: Float[Tensor, "E B"]) -> Float[Tensor, "N B"]:
        """Return Aᵀ @ values."""
        if self.pairs is None:
            return values * self.scale[:, None]

        rows, weights, starts = self._entries_by_column
        return F.embedding_bag(rows, values, starts, per_sample_weights=weights, mode="sum")

    def add_transposed_rows(
        self, table: Float[Tensor, "N W"], block: slice, values: Float[Tensor, "B W"]
    ) -> None:
        """Add Aᵀ @ values to the table, where ``values`` are the rows of a block only."""
        values = values * self.scale[block, None].to(table.dtype)
        if self.pairs is None:
            table[block] += values
        else:
            table.index_add_(0, self.pairs[0, block], values)
            table.index_add_(0, self.pairs[1, block], values, alpha=-1)

    @cached_property
    def _signs(self) -> Float[Tensor, "E 2"]:
        """Return the entries of the rows without their scale."""
        # Not new_tensor([1.0, -1.0]): on a GPU that is a copy from the host, which waits.
        signs = self.scale.new_ones(len(self.scale), 2)
        signs[:, 1] = -1.0
        return signs

    @cached_property
    def _entries_by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows and values of all entries, column by column, and where columns start."""
        atoms, order = self._atoms_of_rows.flatten().sort()
        starts = torch.searchsorted(atoms, torch.arange(self.n_atoms, device=atoms.device))
        values = torch.stack([self.scale, -self.scale], dim=1)
        return order // 2, values.flatten()[order], starts


def fitting_block(n_keys: int, device_type: str) -> int:
    """Return how many anchors a block has, by the number of keys and, on a CPU, of threads."""
    elements = BLOCK_ELEMENTS.get(device_type, BLOCK_ELEMENTS["cuda"])
    if device_type == "cpu":
        elements *= torch.get_num_threads()

    fitting = elements // max(n_keys, 1) // LANES * LANES
    return min(max(fitting, LANES), LARGEST_BLOCK)


class _Logits:
    """The logits, keys x anchors, block by block; arguments as of `info_nce_in_blocks`."""

    def __init__(
        self,
        keys: Tensor | None,
        anchors: Tensor,
        pairs: Tensor | None,
        key_scale: Tensor,
        anchor_scale: Tensor,
        temperature: float,
        offset: int,
        block_size: int | None,
    ) -> None:
        self.keys, self.anchors = keys, anchors
        self.key_scale, self.anchor_scale = key_scale, anchor_scale
        self.offset, self.block_size = offset, block_size

        n_key_atoms = anchors.shape[1] if keys is None else len(keys)
        self.key_matrix = _Differences(pairs, key_scale, n_key_atoms)

        anchor_pairs = None if pairs is None else pairs[:, offset : offset + len(anchor_scale)]
        self.anchor_matrix = _Differences(anchor_pairs, anchor_scale / temperature, len(anchors))

    def blocks(self) -> Iterator[slice]:
        """Yield the anchors block by block."""
        n_keys, n_anchors = len(self.key_scale), len(self.anchor_scale)
        step = self.block_size or fitting_block(n_keys, self.anchors.device.type)

        for start in range(0, n_anchors, step):
            yield slice(start, min(start + step, n_anchors))

    def of_block(self, block: slice) -> tuple[Float[Tensor, "B W"], Block]:
        """Return the relations of a block's anchors, and their logits with every key."""
        relations = self.anchor_matrix.rows(self.anchors, block)
        with_atoms = relations.T if self.keys is None else self.keys @ relations.T
        return relations, self.key_matrix.product(with_atoms.to(self.key_scale.dtype).contiguous())

    def positives(self, values: Block, block: slice) -> PerAnchor:
        """Return a view of a block's entries that belong to the anchors' positives."""
        return values[self.offset + block.start : self.offset + block.stop].diagonal()


# ----------------------------------------------------------------------------------------------
# Sums of exponentials
#
# Relations of undirected edges come in pairs r and -r, whose logits are opposite. A block holds one
# key of each pair, and both count in every sum, so that one exponential serves two:
# exp(-x) = 1 / exp(x).


def _overflows(temperature: float, dtype: torch.dtype) -> bool:
    """Return whether exponentials of logits up to 1/temperature overflow without a shift."""
    return 1 / temperature > 0.4 * math.log(torch.finfo(dtype).max)


def _largest(logits: Block, both_directions: bool) -> PerAnchor:
    """Return each anchor's largest logit."""
    largest = _over_keys(torch.amax, logits)
    if not both_directions:
        return largest
    return torch.maximum(largest, -_over_keys(torch.amin, logits))


def _over_keys(reduction: Callable[..., Tensor], values: Block) -> PerAnchor:
    """Return a reduction over the keys, ``torch.sum``, ``amax`` or ``amin``.

    On a CPU each thread has just written a stretch of the keys, so it reduces that stretch first.
    torch itself would divide the anchors between threads, and each would read half of its numbers
    from the other's cache: three times as slow with two threads.
    """
    n_keys, n_anchors = values.shape
    parts = torch.get_num_threads() if values.device.type == "cpu" else 1
    if parts == 1 or n_keys < parts:
        return reduction(values, dim=0)

    end = n_keys // parts * parts
    of_parts = reduction(values[:end].view(parts, -1, n_anchors), dim=1)
    return reduction(torch.cat([of_parts, values[end:]]), dim=0)


def _log_sum_exp(logits: Block, both_directions: bool, shift: PerAnchor | None) -> PerAnchor:
    """Return each anchor's log-sum-exp in float64.

    The shift, each anchor's largest logit, is left out where nothing overflows.
    """
    terms = logits.exp() if shift is None else (logits - shift).exp_()
    total = _over_keys(torch.sum, terms)
    if both_directions:
        total += _over_keys(torch.sum, _opposite_terms(terms, logits, shift, out=terms))

    log_sum = total.double().log()
    return log_sum if shift is None else log_sum + shift


def _gradient_of_sum(logits: Block, both_directions: bool, shift: PerAnchor | None) -> Block:
    """Return the derivative of each anchor's sum of exponentials with respect to its logits."""
    terms = logits.exp() if shift is None else (logits - shift).exp_()
    return terms.sub_(_opposite_terms(terms, logits, shift)) if both_directions else terms


def _opposite_terms(
    terms: Block, logits: Block, shift: PerAnchor | None, out: Block | None = None
) -> Block:
    """Return the exponentials of the opposite logits, in the memory of ``out`` if given."""
    if shift is None:
        return torch.reciprocal(terms, out=out)
    return torch.add(logits, shift, out=out).neg_().exp_()


# ----------------------------------------------------------------------------------------------
# Forward and backward


def _compute_losses(
    keys: Tensor | None,
    anchors: Tensor,
    pairs: Tensor | None,
    key_scale: Tensor,
    anchor_scale: Tensor,
    temperature: float,
    both_directions: bool,
    offset: int,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, top-1 correctness and, in float64, the log-sum-exp, (A,) each."""
    losses, is_correct, log_sums = _empty_like(anchor_scale)
    needs_shift = _overflows(temperature, key_scale.dtype)
    logits = _Logits(keys, anchors, pairs, key_scale, anchor_scale, temperature, offset, block_size)

    # Logits of bfloat16 would be off by a tenth.
    with torch.autocast(anchors.device.type, enabled=False):
        for block in logits.blocks():
            _, values = logits.of_block(block)
            positives = logits.positives(values, block)
            largest = _largest(values, both_directions)

            log_sum = _log_sum_exp(values, both_directions, largest if needs_shift else None)
            losses[block] = log_sum - positives
            is_correct[block] = positives >= largest
            log_sums[block] = log_sum
    return losses, is_correct, log_sums


def _compute_gradients(
    gradient: Tensor,
    log_sums: Tensor,
    keys: Tensor | None,
    anchors: Tensor,
    pairs: Tensor | None,
    key_scale: Tensor,
    anchor_scale: Tensor,
    temperature: float,
    both_directions: bool,
    offset: int,
    block_size: int | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of keys, anchors and the two scales; empty where not needed.

    With p the softmax over the keys, the gradient of an anchor's loss with respect to its logits
    is p - 1 at its positive and p elsewhere (p(r) - p(-r) where keys come in both directions).
    """
    dtype = key_scale.dtype
    logits = _Logits(keys, anchors, pairs, key_scale, anchor_scale, temperature, offset, block_size)
    gradients = _Gradients(logits, needed)

    # p = terms / sum. Where nothing overflows the division is left to the small factors of the
    # anchors; else exponentials are shifted by the log-sum-exp, so that the sum is one.
    if _overflows(temperature, dtype):
        sums, shifts = torch.ones_like(log_sums, dtype=dtype), log_sums.to(dtype)
    else:
        sums, shifts = log_sums.exp().to(dtype), None
    factors = gradient / sums

    with torch.autocast(anchors.device.type, enabled=False):
        for block in logits.blocks():
            relations, values = logits.of_block(block)
            shift = None if shifts is None else shifts[block]
            slope = _gradient_of_sum(values, both_directions, shift)
            logits.positives(slope, block).sub_(sums[block])
            gradients.add(block, relations, values, slope, factors[block])

    of_keys, of_anchors, of_key_scale, of_anchor_scale = gradients.sums
    return of_keys, of_anchors, of_key_scale.to(dtype), of_anchor_scale.to(dtype)


class _Gradients:
    """Sums over blocks of the gradients of keys, anchors and the two scales."""

    def __init__(self, logits: _Logits, needed: list[bool]) -> None:
        self.logits, self.needed = logits, needed
        keys = logits.anchors if logits.keys is None else logits.keys
        # Sums over all blocks, so in float64.
        scales = (logits.key_scale.double(), logits.anchor_scale.double())
        inputs = (keys, logits.anchors, *scales)
        self.sums = [
            torch.zeros_like(x if need else x[:0]) for x, need in zip(inputs, needed, strict=True)
        ]

    def add(
        self, block: slice, relations: Tensor, values: Block, slope: Block, factor: PerAnchor
    ) -> None:
        """Add a block of logits, whose gradient is ``slope * factor``; overwrites the slope."""
        logits, (keys, anchors, key_scale, anchor_scale) = self.logits, self.sums

        to_atoms = logits.key_matrix.transposed_product(slope).mul_(factor).to(anchors.dtype)
        if self.needed[0]:
            keys.addmm_(to_atoms, relations)
        if self.needed[1]:
            to_anchors = to_atoms.T if logits.keys is None else to_atoms.T @ logits.keys
            logits.anchor_matrix.add_transposed_rows(anchors, block, to_anchors)

        # Logits are proportional to their scales: d/d scale = (d/d logit) * logit / scale.
        if self.needed[2] or self.needed[3]:
            slope *= values
        if self.needed[2]:
            key_scale += (slope @ factor) / logits.key_scale
        if self.needed[3]:
            of_sums = _over_keys(torch.sum, slope)
            anchor_scale[block] = of_sums * factor / logits.anchor_scale[block]


# ----------------------------------------------------------------------------------------------
# The operator, as torch.compile and autograd see it
#
# Declared by `torch.library.define` and not by `torch.library.custom_op`: the first call of the
# latter imports torch._dynamo and sympy, 70 MiB that have nothing to do with a loss.

NAME = "kd_plugins::info_nce"
_INPUTS = (
    "Tensor? keys, Tensor anchors, Tensor? pairs, Tensor key_scale, Tensor anchor_scale, "
    "float temperature, bool both_directions, int offset, int? block_size"
)


def _empty_like(anchor_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty losses, correctness and log-sum-exp."""
    return (
        torch.empty_like(anchor_scale),
        torch.empty_like(anchor_scale, dtype=torch.bool),
        torch.empty_like(anchor_scale, dtype=torch.float64),
    )


def _shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_compute_losses` would, without numbers."""
    return _empty_like(inputs[4])


def _shapes_of_gradients(
    gradient: Tensor, log_sums: Tensor, keys: Tensor | None, anchors: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    """Return what `_compute_gradients` would, without numbers."""
    _, key_scale, anchor_scale, *_, needed = others
    inputs = (anchors if keys is None else keys, anchors, key_scale, anchor_scale)
    return tuple(
        torch.empty_like(x if need else x[:0]) for x, need in zip(inputs, needed, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the backward pass starts from."""
    *tensors, ctx.temperature, ctx.both_directions, ctx.offset, ctx.block_size = inputs
    _, is_correct, log_sums = output
    ctx.save_for_backward(log_sums, *tensors)
    ctx.mark_non_differentiable(is_correct, log_sums)


def _differentiate(ctx: Any, of_losses: Tensor, *_: Any) -> tuple[Any, ...]:
    """Return one gradient an argument."""
    log_sums, *tensors = ctx.saved_tensors
    needed = [bool(ctx.needs_input_grad[place]) for place in (0, 1, 3, 4)]
    settings = (ctx.temperature, ctx.both_directions, ctx.offset, ctx.block_size)

    gradients = _backward(of_losses, log_sums, *tensors, *settings, needed)
    keys, anchors, key_scale, anchor_scale = (
        gradient if need else None for gradient, need in zip(gradients, needed, strict=True)
    )
    return keys, anchors, None, key_scale, anchor_scale, None, None, None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "the contrast of relations (CRACK, instance) in blocks can be differentiated once; a "
        "second derivative was asked for, as by create_graph=True and another backward; give "
        "form='plain' for it"
    )


torch.library.define(NAME, f"({_INPUTS}) -> (Tensor, Tensor, Tensor)")
torch.library.define(
    f"{NAME}_backward",
    f"(Tensor gradient, Tensor log_sums, {_INPUTS}, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl(NAME, "CompositeExplicitAutograd", _compute_losses)
torch.library.impl(f"{NAME}_backward", "CompositeExplicitAutograd", _compute_gradients)
torch.library.register_fake(NAME, _shapes)
torch.library.register_fake(f"{NAME}_backward", _shapes_of_gradients)
torch.library.register_autograd(NAME, _differentiate, setup_context=_save)
torch.library.register_autograd(f"{NAME}_backward", _refuse_second_derivative)

_forward: Any = torch.ops.kd_plugins.info_nce
_backward: Any = torch.ops.kd_plugins.info_nce_backward
