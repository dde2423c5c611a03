"""Sums of exponentials over the keys of a block of logits (E, B), anchors along the second axis.

Relations of undirected edges come in pairs r and -r, whose logits are opposite. A mirrored block
holds one of each two keys, and both count in every sum, so that one exponential serves two.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
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
