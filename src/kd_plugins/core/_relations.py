"""Relations between the atoms of a batch: which edges have one, and how long they are.

Source: CRACK (Lim, Choung, Han 2025), section 3.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kd_plugins.numbers import shown

Edges = Literal["undirected", "directed"]
EdgeIndex = Int[Tensor, "2 E"]
NodeEmbeddings = Float[Tensor, "N D"]

SHORTEST_EMBEDDING = 1e-3
"""An embedding shorter than this is not blown up to unit length, so gradients stay finite."""
WIDEST_DIRECT = 128
"""Embeddings wider than this are contrasted through similarities of atoms, (N, N), in blocks.

Measured on one core of a CPU: at D = 128 a block's similarities cost as much either way.
"""


def unit_embeddings(embeddings: NodeEmbeddings) -> NodeEmbeddings:
    """Return the embeddings at unit length; very short ones stay shorter, see above."""
    return F.normalize(embeddings, dim=1, eps=SHORTEST_EMBEDDING)


def similarities(
    anchors: Float[Tensor, "A D"], keys: Float[Tensor, "E D"], temperature: float
) -> Float[Tensor, "A E"]:
    """Return all cosines of unit vectors, divided by the temperature."""
    # Logits of bfloat16 would be off by a tenth. float64 on a GPU, because the host may have
    # allowed TF32 there, which has the digits of float16, in the backward pass, too.
    dtype = anchors.dtype
    exact = dtype if anchors.device.type == "cpu" else torch.float64
    with torch.autocast(anchors.device.type, enabled=False):
        return ((anchors.to(exact) / temperature) @ keys.to(exact).T).to(dtype)


# ----------------------------------------------------------------------------------------------
# Which edges of a batch have a relation


def choose_edges(edge_index: EdgeIndex, n_atoms: int, edges: Edges) -> Int[Tensor, "2 E_chosen"]:
    """Return the edges along which relations are formed, see `Crack`.

    Raises:
        ValueError: if an index is negative or not below ``n_atoms``.

    >>> images = torch.tensor([[0, 0, 1, 2], [1, 1, 1, 0]])
    >>> choose_edges(images, 3, "undirected")
    tensor([[0, 0, 1, 2],
            [1, 2, 0, 0]])
    """
    check_edge_index(edge_index)
    if edge_index.numel():
        lowest, highest = torch.stack(edge_index.aminmax()).tolist()
        _check_range(lowest, highest, n_atoms)

    pairs, is_chosen = candidates(edge_index, n_atoms, edges, None)
    pairs = pairs[:, is_chosen]
    return torch.cat([pairs, pairs.flip(0)], dim=1) if edges == "undirected" else pairs


def candidates(
    edge_index: Tensor, n_atoms: int, edges: Edges, atoms: Tensor | None
) -> tuple[Int[Tensor, "2 E"], Bool[Tensor, " E"]]:
    """Return edges, and which of them are chosen; of undirected ones, one direction.

    Indices may be out of range, for `check_numbers` to find.
    """
    pairs = edge_index.long()
    is_chosen = pairs[0] != pairs[1]

    if edges == "undirected":
        # Sorting brings equal pairs together, and the first of each run is chosen. torch.unique
        # would make the host wait for the number of pairs.
        low, high = pairs.min(dim=0).values, pairs.max(dim=0).values
        order = (low * n_atoms + high).argsort(stable=True)
        pairs = torch.stack([low, high])[:, order]
        is_first = torch.ones_like(is_chosen)
        is_first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(dim=0)
        is_chosen = is_first & (pairs[0] != pairs[1])

    if atoms is not None and n_atoms:
        is_chosen = is_chosen & atoms[pairs.clamp(0, n_atoms - 1)].all(dim=0)
    return pairs, is_chosen


# ----------------------------------------------------------------------------------------------
# The relations of one model


@dataclass(frozen=True)
class Relations:
    """The relations of one model: which atoms, and how long their differences are.

    Args:
        embeddings: (N, D) of the atoms; their dtype is that of the losses.
        pairs: (2, E) atoms of each relation; None if every atom stands for itself.
        shortest: a difference shorter than this is not blown up to unit length.
    """

    embeddings: Float[Tensor, "N D"]
    pairs: Int[Tensor, "2 E"] | None
    shortest: float

    @property
    def count(self) -> int:
        """E, the number of relations."""
        return len(self.embeddings) if self.pairs is None else self.pairs.shape[1]

    @cached_property
    def units(self) -> Float[Tensor, "N D"]:
        """The unit embeddings, in float64.

        Where no differences are taken, float32 is as good, and on a CPU twice as fast; on a GPU it
        might mean TF32, which the host decides.
        """
        is_exact_anyway = self.pairs is None and self.embeddings.device.type == "cpu"
        return unit_embeddings(self.embeddings if is_exact_anyway else self.embeddings.double())

    @cached_property
    def lengths(self) -> Float[Tensor, " E"]:
        """Lengths of the differences between unit embeddings."""
        if self.pairs is None:
            return self.units.new_ones(len(self.units))

        first, second = self.pairs
        if not self.is_wide:
            differences = self.units.index_select(0, first) - self.units.index_select(0, second)
            return torch.linalg.vector_norm(differences, dim=1)

        # |a - b|² = a·a + b·b - 2 a·b spares the (E, D) differences, at the price of digits:
        # an error of 1e-16/length², which float64 can spare.
        products = self.units @ self.units.T
        squares = products.diagonal()
        squared = squares[first] + squares[second] - 2 * products[first, second]
        return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()

    @property
    def is_wide(self) -> bool:
        """Whether similarities of atoms, (N, N), are cheaper than embeddings, (N, D).

        Never where that matrix would be larger than the relations written out, (E, D).
        """
        n_atoms, width = self.embeddings.shape
        return width > WIDEST_DIRECT and n_atoms**2 <= self.count * width

    def scale(self) -> Float[Tensor, " E"]:
        """Return the factors by which differences of unit embeddings become relations."""
        return self.lengths.clamp(min=self.shortest).reciprocal().to(self.embeddings.dtype)

    def select(self, places: Int[Tensor, " E_kept"]) -> Relations:
        """Return some of the relations, without computing their lengths again."""
        pairs = None if self.pairs is None else self.pairs.index_select(1, places)
        selected = Relations(self.embeddings, pairs, self.shortest)
        # Where cached_property keeps its values, also of a frozen class.
        selected.__dict__.update(units=self.units, lengths=self.lengths.index_select(0, places))
        return selected


# ----------------------------------------------------------------------------------------------
# Checks


def check_shapes(student: Tensor, teacher: Tensor) -> None:
    """Refuse embeddings that are not two tensors of real numbers of one shape (N, D)."""
    for source, embeddings in (("student", student), ("teacher", teacher)):
        name = f"{source}_embeddings"
        if not isinstance(embeddings, Tensor):
            kind = type(embeddings).__name__
            raise ValueError(f"{name}: expected a tensor, got {kind} {shown(embeddings)}")
        if not embeddings.is_floating_point():
            raise ValueError(
                f"{name}: expected a tensor of real numbers, got one of {embeddings.dtype}"
            )
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"student_embeddings {tuple(student.shape)} and teacher_embeddings "
            f"{tuple(teacher.shape)} must have one shape (N, D); widths that differ need a "
            "projection"
        )


def check_edge_index(edge_index: Tensor) -> None:
    """Refuse edges that are not whole numbers (2, E)."""
    if not isinstance(edge_index, Tensor):
        raise ValueError(f"edge_index: expected a tensor, got {type(edge_index).__name__}")
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.is_floating_point():
        raise ValueError(
            f"edge_index: expected whole numbers (2, E), got {edge_index.dtype} "
            f"{tuple(edge_index.shape)}"
        )


def check_numbers(
    sides: Sequence[tuple[Tensor, Tensor]],
    edge_index: Tensor | None = None,
    is_chosen: Tensor | None = None,
) -> int:
    """Check the numbers of students and teachers and indices; return how many edges are chosen.

    All of it is one transfer: on a GPU, each would make the host wait for it.
    """
    first, teacher = sides[0]
    answers = [
        torch.stack([torch.isfinite(each).all() for each in embeddings]).all()
        for embeddings in zip(*sides, strict=True)
    ]
    if edge_index is not None and is_chosen is not None and edge_index.numel():
        answers += [*edge_index.aminmax(), is_chosen.sum()]

    is_student_finite, is_teacher_finite, *of_edges = torch.stack(
        [answer.to(first.device, torch.long) for answer in answers]
    ).tolist()

    if not is_student_finite:
        raise ValueError("student_embeddings hold NaN or inf")
    if not is_teacher_finite:
        raise ValueError("teacher_embeddings hold NaN or inf")
    if not of_edges:
        return 0
    lowest, highest, n_chosen = of_edges
    _check_range(lowest, highest, len(teacher))
    return n_chosen


def _check_range(lowest: int, highest: int, n_atoms: int) -> None:
    if lowest < 0 or highest >= n_atoms:
        raise ValueError(
            f"edge_index: expected indices from 0 to {n_atoms - 1} (N={n_atoms} atoms), "
            f"got {lowest} to {highest}"
        )


def to_common_dtype(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the student's dtype, which is at least float32."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.to(dtype)
