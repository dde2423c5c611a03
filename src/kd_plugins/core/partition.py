"""Sums of exponentials over the keys of a block of logits (E, B), anchors along the second axis.

Relations of undirected edges come in pairs r and -r, whose logits are opposite. A mirrored block
holds one of each two keys, and both count in every sum, so that one exponential serves two.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Block = Float[Tensor, "E B"]
PerAnchor = Float[Tensor, " B"]


def is_cold(temperature: float, dtype: torch.dtype) -> bool:
    """Return whether exponentials of logits up to 1/temperature need a shift not to overflow."""
    return 1 / temperature > 0.4 * math.log(torch.finfo(dtype).max)


def largest(logits: Block, mirrored: bool) -> PerAnchor:
    """Return each anchor's largest logit."""
    best = logits.amax(dim=0)
    return torch.maximum(best, -logits.amin(dim=0)) if mirrored else best


def answers(
    logits: Block, own: PerAnchor, mirrored: bool, cold: bool
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"], Float[Tensor, " B"]]:
    """Return each anchor's loss, whether its own key is the best, and its log_sum, in float64.

    Args:
        logits: with all keys.
        own: those with the anchors' own keys.
        mirrored: whether the opposite of each key is a key, too.
        cold: as `is_cold` says.
    """
    best = largest(logits, mirrored)
    log_partition = log_sum(logits, mirrored, best if cold else None)
    return log_partition - own, own >= best, log_partition


def totals(
    log_partition: Float[Tensor, " B"], dtype: torch.dtype, cold: bool
) -> tuple[PerAnchor, PerAnchor | None]:
    """Return what `pull` is to be divided by, and its shift: the logarithm where it is cold."""
    if not cold:
        return log_partition.exp().to(dtype), None
    return torch.ones_like(log_partition, dtype=dtype), log_partition.to(dtype)


def log_sum(logits: Block, mirrored: bool, shift: PerAnchor | None) -> Float[Tensor, " B"]:
    """Return the logarithm of each anchor's sum of exponentials in float64.

    The shift, each anchor's largest logit, is left out where nothing overflows.
    """
    terms = logits.exp() if shift is None else (logits - shift).exp_()
    total = terms.sum(dim=0)
    if mirrored:
        total += _mirror(terms, logits, shift).sum(dim=0)
    log = total.double().log()
    return log if shift is None else log + shift


def pull(logits: Block, mirrored: bool, shift: PerAnchor | None) -> Block:
    """Return the derivative of the sum of exponentials with respect to the logits."""
    terms = logits.exp() if shift is None else (logits - shift).exp_()
    return terms.sub_(_mirror(terms.clone(), logits, shift)) if mirrored else terms


def _mirror(terms: Block, logits: Block, shift: PerAnchor | None) -> Block:
    """Return the exponentials of the opposite logits, in the memory of ``terms``."""
    if shift is None:
        return terms.reciprocal_()
    return torch.add(logits, shift, out=terms).neg_().exp_()
