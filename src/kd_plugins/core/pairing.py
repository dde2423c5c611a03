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
from kd_plugins.core.dense import contrast_dense, unit_relations

Anchor = Literal["teacher", "student"]
Form = Literal["dense", "direct", "gram"]
Unit = Float[Tensor, "N D"]
PerRelation = Float[Tensor, " E"]

SHORTEST_EMBEDDING = 1e-3
"""An embedding shorter than this is not blown up to unit length, so gradients stay finite."""

WIDEST_DIRECT = 128
"""Up to this width D, relations are made of embeddings; above it, of similarities of atoms.

Measured on a CPU: at D = 128 a block's similarities cost as much either way.
"""

MOST_DENSE = 400
"""Up to this many relations (one of two opposite ones) all logits are made at once.

Measured on a CPU: from there on blocks are as fast, and their memory grows more slowly.
"""

WIDEST_DENSE = 2**16
"""Numbers of a side's relations, E x D, up to which they are written out for that."""


def unit(embeddings: Unit) -> Unit:
    """Return the embeddings at unit length."""
    return F.normalize(embeddings, dim=1, eps=SHORTEST_EMBEDDING)


def choose_form(n_atoms: int, n_relations: int, width: int) -> Form:
    """Return how relations are contrasted: always exactly, as fast as their number allows.

    ``dense`` writes out few and narrow relations and all their logits. Else logits are made in
    blocks: ``gram`` from similarities of all atoms, (N, N), where embeddings are wide, unless that
    matrix would be larger than the relations (E, D), and ``direct`` from embeddings, (N, D).
    """
    if n_relations <= MOST_DENSE and n_relations * width <= WIDEST_DENSE:
        return "dense"
    wide = width > WIDEST_DIRECT and n_atoms**2 <= n_relations * width
    return "gram" if wide else "direct"


@dataclass(frozen=True)
class Side:
    """One model's relations.

    Args:
        vectors: unit embeddings of the atoms, (N, D), or unit relations, (E, D), in the dense form.
        lengths: of the differences between two atoms, however short.
        scale: one over these lengths, less so for the shortest; None in the dense form.
    """

    vectors: Float[Tensor, "I D"]
    lengths: PerRelation
    scale: PerRelation | None = None

    def some(self, chosen: Bool[Tensor, " E"]) -> Side:
        """Return some of its relations."""
        if self.scale is None:
            return Side(self.vectors[chosen], self.lengths[chosen])
        return Side(self.vectors, self.lengths[chosen], self.scale[chosen])


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
        form: in which they are contrasted, see `choose_form`.
        asking: which relations are anchors, where the others are those of other ranks; all if None.
    """

    pairs: Int[Tensor, "2 E"] | None = None
    mirrored: bool = False
    form: Form = "direct"
    asking: slice | None = None

    def side(self, embeddings: Unit, shortest: float) -> Side:
        """Return one model's relations; those below the shortest length are not blown up to one."""
        if self.pairs is None:
            units = unit(embeddings)
            lengths = units.new_ones(len(units))
            return Side(units, lengths, None if self.form == "dense" else lengths)
        if self.form == "dense":
            return Side(*unit_relations(embeddings, self.pairs, SHORTEST_EMBEDDING, shortest))
        units = unit(embeddings.double())
        lengths = _lengths(units, self.pairs, self.form)
        return Side(units, lengths, lengths.clamp(min=shortest).reciprocal().to(embeddings.dtype))

    def contrast(
        self, student: Side, teacher: Side, temperature: float, anchor: Anchor
    ) -> tuple[PerRelation, Bool[Tensor, " A"]]:
        """Return each asking relation's loss and hit; see `kd_plugins.core.contrast`."""
        keys, anchors = (student, teacher) if anchor == "teacher" else (teacher, student)
        asking = self.asking or slice(0, None)
        if keys.scale is None or anchors.scale is None:
            vectors, asked = keys.vectors, anchors.vectors[asking]
            losses, hits = contrast_dense(vectors, asked, temperature, self.mirrored, asking.start)
            return self.listed(losses), self.listed(hits)
        atoms_of_keys, atoms = keys.vectors, anchors.vectors
        if self.pairs is None:
            atoms = atoms[asking]
        if self.form == "gram":
            atoms_of_keys, atoms = None, atoms @ atoms_of_keys.T
        scales = keys.scale, anchors.scale[asking]
        losses, hits = contrast(
            atoms_of_keys, atoms, self.pairs, *scales, temperature, self.mirrored, asking.start
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


def _lengths(units: Unit, pairs: Int[Tensor, "2 E"], form: Form) -> PerRelation:
    """Return the lengths of the differences between two atoms.

    The Gram matrix spares the (E, D) differences, at the price of digits: 1e-16/length².
    """
    first, second = pairs
    if form != "gram":
        differences = units.index_select(0, first) - units.index_select(0, second)
        return torch.linalg.vector_norm(differences, dim=1)
    products = units @ units.T
    squares = products.diagonal()
    squared = squares[first] + squares[second] - 2 * products[first, second]
    return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
