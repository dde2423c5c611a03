"""The matrix of logits between relations, made and differentiated a block of anchors at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kd_plugins.core.incidence import Incidence

BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Logits in a block; on a CPU a few blocks fit into its cache."""
SMALLEST_BLOCK, LARGEST_BLOCK = 32, 4096


class Logits:
    """The logits, keys x anchors; arguments as of `contrast`."""

    def __init__(
        self,
        keys: Tensor | None,
        anchors: Tensor,
        pairs: Tensor | None,
        key_scale: Tensor,
        anchor_scale: Tensor,
        temperature: float,
        first: int,
        block: int | None,
    ) -> None:
        self.keys, self.anchors, self.scale = keys, anchors, anchor_scale
        self.first, self.block = first, block
        n_keys = anchors.shape[1] if keys is None else len(keys)
        self.key_side = Incidence(pairs, key_scale, n_keys)
        if pairs is not None:
            pairs = pairs[:, first : first + len(anchor_scale)]
        self.anchor_side = Incidence(pairs, anchor_scale / temperature, len(anchors))

    def parts(self) -> Iterator[slice]:
        """Yield the anchors block by block."""
        n_keys, device = len(self.key_side.scale), self.anchors.device.type
        budget = BLOCK_ELEMENTS.get(device, BLOCK_ELEMENTS["cuda"])
        step = self.block or min(max(budget // max(n_keys, 1), SMALLEST_BLOCK), LARGEST_BLOCK)
        for start in range(0, len(self.scale), step):
            yield slice(start, min(start + step, len(self.scale)))

    def own(self, values: Tensor, part: slice) -> Tensor:
        """Return a view of a block's logits with the anchors' own keys, (B,)."""
        return values[self.first + part.start : self.first + part.stop].diagonal()

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return the anchors' relations (B, W) and their logits with every key (E, B)."""
        relations = self.anchor_side.rows(self.anchors, part)
        atoms = relations.T if self.keys is None else self.keys @ relations.T
        return relations, self.key_side.product(atoms.to(self.key_side.scale.dtype).contiguous())


class Gradients:
    """Sums over blocks of the gradients of keys, anchors and the two scales."""

    def __init__(self, logits: Logits, needed: list[bool]) -> None:
        self.logits, self.needed = logits, needed
        keys = logits.anchors if logits.keys is None else logits.keys
        scales = (logits.key_side.scale.double(), logits.scale.double())
        inputs = (keys, logits.anchors, *scales)
        self.sums = [
            torch.zeros_like(x if need else x[:0]) for x, need in zip(inputs, needed, strict=True)
        ]

    def add(
        self, part: slice, relations: Tensor, values: Tensor, slope: Tensor, factor: Tensor
    ) -> None:
        """Take up a block of logits, whose gradient is ``slope * factor``; changes the slope."""
        logits, (keys, anchors, key_scale, anchor_scale) = self.logits, self.sums
        to_atoms = logits.key_side.transposed_product(slope).mul_(factor).to(anchors.dtype)
        if self.needed[0]:
            keys.addmm_(to_atoms, relations)
        if self.needed[1]:
            back = to_atoms.T if logits.keys is None else to_atoms.T @ logits.keys
            logits.anchor_side.add_rows(anchors, part, back)
        # Logits are proportional to their scales.
        if self.needed[2] or self.needed[3]:
            slope *= values
        if self.needed[2]:
            key_scale += (slope @ factor) / logits.key_side.scale
        if self.needed[3]:
            anchor_scale[part] = slope.sum(dim=0) * factor / logits.scale[part]
