"""Unit embeddings, the lengths of their differences and the form in which they are contrasted.

Everything that belongs to atoms is float64 for relations: between near neighbours differences
cancel, and in float32 a Gram matrix would lose all digits of a relation between two like atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kd_plugins.core.contrast import contrast

Anchor = Literal["teacher", "student"]
Unit = Float[Tensor, "N D"]
PerRelation = Float[Tensor, " E"]

SHORTEST_EMBEDDING = 1e-3
"""An embedding shorter than this is not blown up to unit length, so gradients stay finite."""

WIDEST_DIRECT = 128
"""Up to this width D, relations are made of embeddings; above it, of similarities of atoms.

Measured on a CPU: at D = 128 a block's similarities cost as much either way.
"""


def unit(embeddings: Unit) -> Unit:
    """Return the embeddings at unit length."""
    return F.normalize(embeddings, dim=1, eps=SHORTEST_EMBEDDING)


def prefers_gram(n_atoms: int, n_relations: int, width: int) -> bool:
    """Return whether similarities of all atoms, (N, N), replace the embeddings, (N, D).

    They do where embeddings are wide, unless the matrix would be larger than the relations (E, D).
    """
    return width > WIDEST_DIRECT and n_atoms**2 <= n_relations * width


@dataclass(frozen=True)
class Side:
    """One model's relations: its unit embeddings and one over the lengths of their differences."""

    units: Unit
    scale: PerRelation


@dataclass(frozen=True)
class Comparison:
    """How well each item is told from all others.

    The loss of a perfect student is not zero and depends on the batch; ``losses - floor`` and the
    hits can be compared between batches. Neither hits nor floor have a graph.

    Args:
        losses: (I,) one number an item that is kept.
        hits: (I,) whether no other item is more like the anchor than its own counterpart.
        kept: (I_all,) which of the items are kept.
        floor: (I,) the losses of a student that is its teacher, where asked for.
    """

    losses: Float[Tensor, " I"]
    hits: Bool[Tensor, " I"]
    kept: Bool[Tensor, " I_all"]
    floor: Float[Tensor, " I"] | None = None


@dataclass(frozen=True)
class Pairing:
    """Which two atoms make a relation.

    Args:
        pairs: (2, E) atoms; None if every atom stands for itself.
        mirrored: whether each relation also comes the other way round.
        gram: whether relations are made of similarities of atoms instead of embeddings.
    """

    pairs: Int[Tensor, "2 E"] | None = None
    mirrored: bool = False
    gram: bool = False

    def lengths(self, units: Unit) -> PerRelation:
        """Return the lengths of the differences between two atoms.

        The Gram matrix spares the (E, D) differences, at the price of digits: 1e-16/length².
        """
        if self.pairs is None:
            return units.new_ones(len(units))
        first, second = self.pairs
        if not self.gram:
            return torch.linalg.vector_norm(units[first] - units[second], dim=1)
        products = units @ units.T
        squares = products.diagonal()
        squared = squares[first] + squares[second] - 2 * products[first, second]
        return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()

    def contrast(
        self, student: Side, teacher: Side, temperature: float, anchor: Anchor
    ) -> tuple[PerRelation, Bool[Tensor, " E"]]:
        """Return each relation's loss and hit; see `kd_plugins.core.contrast`."""
        keys, anchors = (student, teacher) if anchor == "teacher" else (teacher, student)
        atoms_of_keys, atoms = keys.units, anchors.units
        if self.gram:
            atoms_of_keys, atoms = None, atoms @ atoms_of_keys.T
        losses, hits = contrast(
            atoms_of_keys, atoms, self.pairs, keys.scale, anchors.scale, temperature, self.mirrored
        )
        return self.listed(losses), self.listed(hits)

    def compare(
        self, student: Side, teacher: Side, temperature: float, anchor: Anchor, floor: bool
    ) -> Comparison:
        """Return losses and hits, and the floor where asked for."""
        losses, hits = self.contrast(student, teacher, temperature, anchor)
        lowest = None
        if floor:
            with torch.no_grad():
                lowest, _ = self.contrast(teacher, teacher, temperature, anchor)
        return Comparison(losses, hits, torch.ones_like(hits), lowest)

    def listed(self, items: Tensor) -> Tensor:
        """Return one item a relation: opposite ones are alike, and come after all others."""
        return torch.cat([items, items]) if self.mirrored else items
