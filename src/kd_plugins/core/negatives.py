"""InfoNCE with some keys drawn at random as negatives, for more relations than one can contrast.

CRACK (Lim, Choung, Han 2025), section 5.3, leaves fewer negatives to future work. Here the same
few keys are the negatives of all anchors of a batch, and each stands for all that were not drawn,
so that the expected sum of exponentials is that over all keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd_plugins.core._relations import similarities
from kd_plugins.numbers import check_seed, check_whole

FEWEST = 4
"""Two pairs of opposite relations, so that each anchor has a negative beside its own pair."""
BLOCK_NUMBERS = {"cpu": 2**19, "cuda": 2**25}
"""Logits and features of the anchors of a block, by device; measured on one core of a CPU."""


@dataclass(frozen=True)
class SampledNegatives:
    """Contrast each anchor with its positive and with keys drawn at random from the batch.

    The keys follow from ``seed`` and the training step, so that a resumed training draws them
    again and no other generator is touched. Of undirected edges a relation is drawn with its
    opposite. Each rank draws from its own batch. A GPU draws other keys than a CPU.

    The logarithm of an estimated sum is too low on average (Jensen's inequality), and so is the
    loss; the fewer keys, the more.

    Args:
        sample: K, how many keys are drawn, at least 4; where a batch has no more, all are taken
            and the loss is exact.
        seed: of the draws.

    Raises:
        ValueError: for numbers that are not whole, or too small.
    """

    sample: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_whole("negatives.sample", self.sample, least=FEWEST)
        check_seed("negatives.seed", self.seed)

    def draw(
        self, n_keys: int, both_directions: bool, step: int, device: torch.device
    ) -> Int[Tensor, " K"] | None:
        """Return the places of different keys, each as likely as any other; None to take all.

        Args:
            n_keys: how many there are, of two opposite ones one.
            both_directions: whether the opposite of each is a key, too.
            step: of the training.
            device: of the keys.
        """
        count = (self.sample + 1) // 2 if both_directions else self.sample
        if count >= n_keys - 1:
            return None

        # Hashed, because neighbouring seeds of a generator may give similar numbers.
        digest = hashlib.blake2b(f"{self.seed} {step}".encode(), digest_size=4).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))
        return torch.randperm(n_keys, generator=generator, device=device)[:count]


def sampled_info_nce(
    anchors: Float[Tensor, "B D"],
    positives: Float[Tensor, "B D"],
    negatives: Float[Tensor, "K D"],
    own_places: Int[Tensor, " B"],
    n_keys: int,
    temperature: float,
    both_directions: bool,
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """Return each anchor's InfoNCE loss by an unbiased estimate of its sum of exponentials.

        L_k = - log [ e_kk / (e_kk + (n - 1) / K_k Σ_{m drawn, m ≠ k} e_km) ]

    with e_km = exp(r_T,k · r_S,m / τ) and K_k the number of keys drawn that are not the positive:
    these are K_k of the other n - 1, each as likely as any other. Where keys come in both
    directions, e_km counts both, and the opposite of the positive is always a negative.

    Args:
        anchors: unit vectors.
        positives: the key of each anchor.
        negatives: the keys that were drawn.
        own_places: which of these is the anchor's positive; -1 if none.
        n_keys: n, how many there are to draw from.
        temperature: τ.
        both_directions: whether the opposite of each key is a key, too.

    Returns:
        The losses, and whether the positive is more similar than all keys that were drawn.
    """
    logits = similarities(anchors, negatives, temperature)
    positive = (anchors * positives).sum(dim=1) / temperature

    places = torch.arange(len(negatives), device=logits.device)
    is_own = own_places[:, None] == places
    n_drawn = (len(negatives) - is_own.sum(dim=1)).to(logits.dtype)
    log_weights = ((n_keys - 1) / n_drawn).log()

    nothing = float("-inf")
    of_positives, is_correct = positive, positive >= positive
    log_sums = logits.masked_fill(is_own, nothing).logsumexp(dim=1)
    compared = logits.detach()
    if both_directions:
        of_positives, is_correct = torch.logaddexp(positive, -positive), positive >= 0
        opposite = (-logits).masked_fill(is_own, nothing).logsumexp(dim=1)
        log_sums, compared = torch.logaddexp(log_sums, opposite), compared.abs()

    losses = torch.logaddexp(of_positives, log_sums + log_weights) - positive
    largest = compared.masked_fill(is_own, nothing).amax(dim=1)
    return losses, is_correct & (positive >= largest)
