"""InfoNCE between relations without the E x E matrix: exact, a block of anchors at a time.

The logits are L = A X Bᵀ / temperature with similarities X of atoms; the rows of A and B are scaled
differences of two atoms. Sums over atoms run in the precision of the tables (float64 for relations:
between near neighbours they cancel), sums over relations in that of the scales. The backward pass
makes each block anew from the saved partition sums, so the memory is that of one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_plugins.core.logits import Gradients, Logits
from kd_plugins.core.partition import answers, is_cold, pull, totals

NAME = "kd_plugins::contrast"
ARGUMENTS = (
    "Tensor? keys, Tensor anchors, Tensor? pairs, Tensor key_scale, Tensor anchor_scale, "
    "float temperature, bool mirrored, int first, int? block"
)


def contrast(
    keys: Tensor | None,
    anchors: Tensor,
    pairs: Tensor | None,
    key_scale: Tensor,
    anchor_scale: Tensor,
    temperature: float,
    mirrored: bool,
    first: int = 0,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return -log softmax of each anchor's similarity to its own key, and where that is the best.

    Differentiable once with respect to all four floating-point tensors.

    Args:
        keys: (N, W) atoms of the side that the softmax runs over; None if ``anchors`` already
            holds the similarities of its atoms with the keys', (N, N).
        anchors: (N, W) atoms of the side that asks.
        pairs: (2, E) atoms that make a relation; None if every atom is one, of which only those
            that ask stand among the anchors.
        key_scale: (E,) factors of the keys' differences, so that none is longer than one.
        anchor_scale: (A,) those of the anchors'; its dtype is that of the result.
        temperature: divides the similarities.
        mirrored: whether the opposite of each key is a key, too.
        first: of the relations that ask, which are A in a row; all of them if A is E.
        block: anchors at a time; chosen by size and device if left out.
    """
    losses, hits, _ = _forward(
        keys, anchors, pairs, key_scale, anchor_scale, temperature, mirrored, first, block
    )
    return losses, hits


def _contrast(
    keys: Tensor | None,
    anchors: Tensor,
    pairs: Tensor | None,
    key_scale: Tensor,
    anchor_scale: Tensor,
    temperature: float,
    mirrored: bool,
    first: int,
    block: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, hits and, in float64, logarithms of the partition sums, (A,) each."""
    losses, hits, log_partition = _like(anchor_scale)
    cold = is_cold(temperature, key_scale.dtype)
    logits = Logits(keys, anchors, pairs, key_scale, anchor_scale, temperature, first, block)
    with torch.autocast(anchors.device.type, enabled=False):
        for part in logits.parts():
            _, values = logits.of(part)
            found = answers(values, logits.own(values, part), mirrored, cold)
            losses[part], hits[part], log_partition[part] = found
    return losses, hits, log_partition


def _contrast_backward(
    gradient: Tensor,
    log_partition: Tensor,
    keys: Tensor | None,
    anchors: Tensor,
    pairs: Tensor | None,
    key_scale: Tensor,
    anchor_scale: Tensor,
    temperature: float,
    mirrored: bool,
    first: int,
    block: int | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of keys, anchors and the two scales; empty where not needed."""
    cold, dtype = is_cold(temperature, key_scale.dtype), key_scale.dtype
    sums_of_terms, shifts = totals(log_partition, dtype, cold)
    factors = gradient / sums_of_terms
    logits = Logits(keys, anchors, pairs, key_scale, anchor_scale, temperature, first, block)
    gradients = Gradients(logits, needed)
    with torch.autocast(anchors.device.type, enabled=False):
        for part in logits.parts():
            relations, values = logits.of(part)
            slope = pull(values, mirrored, None if shifts is None else shifts[part])
            logits.own(slope, part).sub_(sums_of_terms[part])
            gradients.add(part, relations, values, slope, factors[part])
    of_keys, of_anchors, of_key_scale, of_anchor_scale = gradients.sums
    return of_keys, of_anchors, of_key_scale.to(dtype), of_anchor_scale.to(dtype)


def _like(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty losses, hits and partition sums."""
    hits = torch.empty_like(scale, dtype=torch.bool)
    return torch.empty_like(scale), hits, torch.empty_like(scale, dtype=torch.float64)


_forward = torch.library.custom_op(
    NAME,
    _contrast,
    mutates_args=(),
    schema=f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
_backward = torch.library.custom_op(
    f"{NAME}_backward",
    _contrast_backward,
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor log_partition, {ARGUMENTS}, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


def _shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_contrast` would, without numbers."""
    return _like(arguments[4])


def _shapes_of_gradients(
    gradient: Any,
    log_partition: Any,
    keys: Any,
    anchors: Any,
    pairs: Any,
    key_scale: Any,
    anchor_scale: Any,
    temperature: float,
    mirrored: bool,
    first: int,
    block: int | None,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    """Return what `_contrast_backward` would, without numbers."""
    inputs = (anchors if keys is None else keys, anchors, key_scale, anchor_scale)
    return tuple(
        torch.empty_like(x if need else x[:0]) for x, need in zip(inputs, needed, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the backward pass starts from."""
    *tensors, ctx.temperature, ctx.mirrored, ctx.first, ctx.block = inputs
    _, hits, log_partition = output
    ctx.save_for_backward(log_partition, *tensors)
    ctx.mark_non_differentiable(hits, log_partition)


def _differentiate(ctx: Any, of_losses: Tensor, *_: Any) -> tuple[Any, ...]:
    """Return one gradient an argument."""
    log_partition, *tensors = ctx.saved_tensors
    needed = [bool(ctx.needs_input_grad[place]) for place in (0, 1, 3, 4)]
    settings = (ctx.temperature, ctx.mirrored, ctx.first, ctx.block)
    gradients = _backward(of_losses, log_partition, *tensors, *settings, needed)
    keys, anchors, key_scale, anchor_scale = (
        gradient if need else None for gradient, need in zip(gradients, needed, strict=True)
    )
    return keys, anchors, None, key_scale, anchor_scale, None, None, None, None


def _refuse(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "the contrast of relations (CRACK, instance) can be differentiated once; a second "
        "derivative was asked for, as by create_graph=True and another backward"
    )


torch.library.register_fake(NAME, _shapes)
torch.library.register_fake(f"{NAME}_backward", _shapes_of_gradients)
torch.library.register_autograd(NAME, _differentiate, setup_context=_save)
torch.library.register_autograd(f"{NAME}_backward", _refuse)
