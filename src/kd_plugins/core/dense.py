"""InfoNCE between few relations: all logits at once, made of the relations' own vectors.

Where the matrix is small it costs less than the blocks of `kd_plugins.core.contrast`, whose many
small steps and whose operator take longer than their numbers; and the relations, subtracted in
float64 before they are rounded, keep all digits of a relation between atoms that are nearly alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd_plugins.core.partition import is_cold, largest


def contrast_dense(
    keys: Float[Tensor, "E W"],
    anchors: Float[Tensor, "A W"],
    temperature: float,
    mirrored: bool,
    first: int = 0,
) -> tuple[Float[Tensor, " A"], Bool[Tensor, " A"]]:
    """Return -log softmax of each anchor's similarity to its own key, and where that is the best.

    Can be differentiated as often as one likes.

    Args:
        keys: relations of the side that the softmax runs over, none longer than one.
        anchors: relations of the side that asks; their dtype is that of the result.
        temperature: divides the similarities.
        mirrored: whether the opposite of each key is a key, too.
        first: of the keys that the anchors belong to, which are A in a row.

    >>> losses, hits = contrast_dense(torch.eye(2), torch.eye(2), 1.0, False)
    >>> [round(loss, 4) for loss in losses.tolist()], hits.tolist()
    ([0.3133, 0.3133], [True, True])
    """
    apply: Any = _Contrast.apply
    return apply(keys, anchors, temperature, mirrored, first)


def unit_relations(
    embeddings: Float[Tensor, "N W"],
    pairs: Int[Tensor, "2 E"],
    shortest_embedding: float,
    shortest: float,
) -> tuple[Float[Tensor, "E W"], Float[Tensor, " E"]]:
    """Return the unit differences of pairs of unit embeddings, and how long they were.

    Made in float64; the first are then rounded. What is shorter than the two limits is not blown up
    to unit length. The first can be differentiated once, the lengths cannot; in one step, since the
    many small ones that it is made of would take longer than their numbers.
    """
    apply: Any = _UnitRelations.apply
    return apply(embeddings, pairs, shortest_embedding, shortest)


class _UnitRelations(torch.autograd.Function):
    """Normalise, subtract, normalise."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, pairs: Tensor, shortest_embedding: float, shortest: float
    ) -> tuple[Tensor, Tensor]:
        units, sizes = _normalised(embeddings.double(), shortest_embedding)
        first, second = pairs
        differences = units.index_select(0, first).sub_(units.index_select(0, second))
        relations, lengths = _normalised(differences, shortest)
        ctx.save_for_backward(units, sizes, relations, lengths, pairs)
        ctx.limits = shortest_embedding, shortest
        ctx.dtype = embeddings.dtype
        given = lengths.flatten()
        ctx.mark_non_differentiable(given)
        return relations.to(embeddings.dtype), given

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        gradient, _ = grad_outputs
        units, sizes, relations, lengths, (first, second) = ctx.saved_tensors
        shortest_embedding, shortest = ctx.limits
        pull = _across(gradient.double(), relations, lengths, shortest)
        moved = torch.zeros_like(units).index_add_(0, first, pull)
        moved.index_add_(0, second, pull, alpha=-1)
        found = _across(moved, units, sizes, shortest_embedding)
        return found.to(ctx.dtype), None, None, None


def _normalised(vectors: Tensor, shortest: float) -> tuple[Tensor, Tensor]:
    """Return vectors over their lengths, of the short ones over the shortest; and the lengths."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.clamp(min=shortest), lengths


def _across(gradient: Tensor, units: Tensor, lengths: Tensor, shortest: float) -> Tensor:
    """Return the gradient of what was normalised: its part across, of the short ones all of it."""
    along = (gradient * units).sum(dim=1, keepdim=True).mul_(lengths > shortest)
    return gradient.addcmul(units, along, value=-1).div_(lengths.clamp(min=shortest))


class _Contrast(torch.autograd.Function):
    """The contrast and its gradient, in the precision of its arguments under autocast, too."""

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, anchors: Tensor, temperature: float, mirrored: bool, first: int
    ) -> tuple[Tensor, Tensor]:
        logits = _logits(keys, anchors, temperature)
        totals = None if is_cold(temperature, keys.dtype) else _totals(logits, mirrored)
        own = logits[first : first + len(anchors)].diagonal()
        losses = _log_sum(logits, totals, mirrored) - own
        hits = own >= largest(logits, mirrored) if len(keys) else own.bool()
        ctx.save_for_backward(keys, anchors, logits, totals)
        ctx.settings = temperature, mirrored, first
        ctx.mark_non_differentiable(hits)
        return losses.to(keys.dtype), hits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        gradient, _ = grad_outputs
        keys, anchors, logits, totals = ctx.saved_tensors
        temperature, mirrored, first = ctx.settings
        if torch.is_grad_enabled():  # a second derivative is asked for, which needs their graph
            logits = _logits(keys, anchors, temperature)
            totals = None if totals is None else _totals(logits, mirrored)
        slope = _slope(logits, totals, mirrored)
        slope[first : first + len(anchors)].diagonal().sub_(1)
        slope = slope * (gradient / temperature)
        with torch.autocast(keys.device.type, enabled=False):
            of_keys = slope @ anchors if ctx.needs_input_grad[0] else None
            of_anchors = slope.T @ keys if ctx.needs_input_grad[1] else None
        return of_keys, of_anchors, None, None, None


def _logits(keys: Tensor, anchors: Tensor, temperature: float) -> Float[Tensor, "E A"]:
    with torch.autocast(keys.device.type, enabled=False):
        return keys @ anchors.T / temperature


def _totals(logits: Tensor, mirrored: bool) -> Float[Tensor, " A"]:
    """Return each anchor's sum of exponentials, half of it where keys have opposites."""
    return (logits.cosh() if mirrored else logits.exp()).sum(dim=0)


def _log_sum(logits: Tensor, totals: Tensor | None, mirrored: bool) -> Float[Tensor, " A"]:
    """Return the logarithm of each anchor's sum of exponentials, in float64.

    Without totals, which overflow at low temperatures, logits are taken relative to the largest.
    """
    if totals is not None:
        return totals.double().log() + (math.log(2) if mirrored else 0.0)
    both = torch.cat([logits, -logits]) if mirrored else logits
    return both.double().logsumexp(dim=0)


def _slope(logits: Tensor, totals: Tensor | None, mirrored: bool) -> Float[Tensor, "E A"]:
    """Return the derivative of `_log_sum`."""
    if totals is not None:
        return (logits.sinh() if mirrored else logits.exp()) / totals
    if not mirrored:
        return logits.softmax(dim=0).clone()
    here, opposite = torch.cat([logits, -logits]).softmax(dim=0).chunk(2)
    return here - opposite
