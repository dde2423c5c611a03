"""Losses whose items see each other: CRACK over edges and instance-level InfoNCE over atoms.

Source: "CRACK: Contrastive Relational-Aware Compression of Knowledge for Machine Learning Force
Fields", section 3.2 and Algorithm 1 (the relational loss), Table 3 (the instance-level loss).
Each relation returns one number an item and never averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kd_plugins.core.names import suggestion
from kd_plugins.core.reduction import masked_mean

Anchor = Literal["teacher", "student"]
Edges = Literal["undirected", "directed"]
NodeEmbeddings = Float[Tensor, "N D"]
EdgeIndex = Int[Tensor, "2 E"]

SHORTEST_EMBEDDING = 1e-3
"""An embedding shorter than this is not blown up to unit length, so gradients stay finite."""


@dataclass(frozen=True)
class Crack:
    """CRACK's relational-contrastive loss, one number a relation (equation 3.2.2).

    A relation is the unit vector along the difference of two bonded atoms' unit embeddings. Each
    anchor relation has to pick its counterpart out of all relations of the batch.

    Args:
        temperature: divides the cosines; the paper found 0.15 (Table 4).
        anchor: whose relation asks the question. ``"teacher"`` is the paper's equation;
            ``"student"`` is what the authors' code computes.
        edges: ``"undirected"`` drops self-image edges, counts several periodic images of a pair
            once and has both directions; ``"directed"`` takes the edges as given without
            self-image edges.
        tolerance: relations whose teacher difference is shorter are masked: between
            symmetry-equivalent neighbours its direction is noise.

    Raises:
        ValueError: for a temperature or tolerance that is not positive, or an unknown choice.
    """

    temperature: float = 0.15
    anchor: Anchor = "teacher"
    edges: Edges = "undirected"
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_positive("temperature", self.temperature)
        _check_positive("tolerance", self.tolerance)
        _check_choice("anchor", self.anchor, ("teacher", "student"))
        _check_choice("edges", self.edges, ("undirected", "directed"))

    def __call__(
        self, student: NodeEmbeddings, teacher: NodeEmbeddings, edge_index: EdgeIndex
    ) -> tuple[Float[Tensor, " E_kept"], Bool[Tensor, " E_chosen"]]:
        """Return the losses of the relations kept, and which of the chosen edges were kept."""
        student, teacher = _check_embeddings(student, teacher)
        pairs = choose_edges(edge_index, len(teacher), self.edges)
        teacher_relations, lengths = relations(teacher, pairs, self.tolerance)
        kept = lengths >= self.tolerance
        student_relations, _ = relations(student, pairs[:, kept], self.tolerance)
        losses = info_nce(student_relations, teacher_relations[kept], self.temperature, self.anchor)
        return losses, kept


@dataclass(frozen=True)
class Instance:
    """InfoNCE between the atoms' own embeddings, one number an atom (Table 3).

    Args:
        temperature: divides the cosines.
        anchor: as in `Crack`.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown anchor.
    """

    temperature: float = 0.15
    anchor: Anchor = "teacher"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_positive("temperature", self.temperature)
        _check_choice("anchor", self.anchor, ("teacher", "student"))

    def __call__(self, student: NodeEmbeddings, teacher: NodeEmbeddings) -> Float[Tensor, " N"]:
        """Return one loss an atom."""
        student, teacher = _check_embeddings(student, teacher)
        return info_nce(_unit(student), _unit(teacher), self.temperature, self.anchor)


def crack_loss(
    student_embeddings: NodeEmbeddings,
    teacher_embeddings: NodeEmbeddings,
    edge_index: EdgeIndex,
    *,
    temperature: float = 0.15,
    anchor: Anchor = "teacher",
    edges: Edges = "undirected",
    tolerance: float = 1e-3,
) -> Float[Tensor, ""]:
    """Return CRACK's loss, the mean of equation 3.2.2 over E relations, in memory of order E².

    Args:
        student_embeddings: (N, D) l = 0 node embeddings, already projected to the teacher's width.
        teacher_embeddings: (N, D).
        edge_index: (2, E) indices into the N atoms; which row is the source does not matter.
        temperature: see `Crack`.
        anchor: see `Crack`.
        edges: see `Crack`.
        tolerance: see `Crack`.

    Raises:
        ValueError: for shapes that do not match, embeddings that are not finite, an edge index out
            of range or a setting out of its range.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> edge_index = torch.tensor([[0, 1], [1, 2]])
    >>> round(crack_loss(embeddings, embeddings, edge_index).item(), 4)
    0.0025
    """
    crack = Crack(temperature, anchor, edges, tolerance)
    losses, _ = crack(student_embeddings, teacher_embeddings, edge_index)
    return masked_mean(losses)


def instance_loss(
    student_embeddings: NodeEmbeddings,
    teacher_embeddings: NodeEmbeddings,
    *,
    temperature: float = 0.15,
    anchor: Anchor = "teacher",
) -> Float[Tensor, ""]:
    """Return the mean over atoms of the instance-level contrastive loss (Table 3).

    Raises:
        ValueError: for shapes that do not match, embeddings that are not finite or a setting out
            of its range.

    >>> embeddings = torch.eye(2)
    >>> round(instance_loss(embeddings, embeddings).item(), 4)
    0.0013
    """
    return masked_mean(Instance(temperature, anchor)(student_embeddings, teacher_embeddings))


def choose_edges(edge_index: EdgeIndex, n_atoms: int, edges: Edges) -> Int[Tensor, "2 E_chosen"]:
    """Return the edges along which relations are formed, as `Crack.edges` says.

    Raises:
        ValueError: if an index is negative or not below ``n_atoms``.

    >>> images = torch.tensor([[0, 0, 1, 2], [1, 1, 1, 0]])
    >>> choose_edges(images, 3, "undirected")
    tensor([[0, 0, 1, 2],
            [1, 2, 0, 0]])
    """
    check_edge_index(edge_index, n_atoms)
    edge_index = edge_index.long()
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    if edges == "directed":
        return edge_index
    low, high = edge_index.min(dim=0).values, edge_index.max(dim=0).values
    keys = torch.unique(low * n_atoms + high)
    pairs = torch.stack([keys // n_atoms, keys % n_atoms]) if n_atoms else edge_index
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def relations(
    embeddings: NodeEmbeddings, edge_index: EdgeIndex, tolerance: float
) -> tuple[Float[Tensor, "E D"], Float[Tensor, " E"]]:
    """Return the unit relational vectors of section 3.2.1 and the lengths they had before.

    A difference shorter than ``tolerance`` is divided by ``tolerance`` instead of its length.
    """
    unit = _unit(embeddings)
    differences = unit[edge_index[0]] - unit[edge_index[1]]
    lengths = torch.linalg.vector_norm(differences.detach(), dim=1)
    return F.normalize(differences, dim=1, eps=tolerance), lengths


def info_nce(
    student: Float[Tensor, "I D"],
    teacher: Float[Tensor, "I D"],
    temperature: float,
    anchor: Anchor,
) -> Float[Tensor, " I"]:
    """Return -log softmax of each anchor's similarity to its own counterpart, (I,).

    The softmax runs over the other side's items: the students' if the teacher is the anchor.
    """
    rows, columns = (teacher, student) if anchor == "teacher" else (student, teacher)
    logits = rows @ columns.T / temperature
    return torch.logsumexp(logits, dim=1) - logits.diagonal()


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings, dim=1, eps=SHORTEST_EMBEDDING)


def _check_embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the student's precision, which is at least float32."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_embeddings {tuple(student.shape)} and teacher_embeddings "
            f"{tuple(teacher.shape)} must have one shape (N, D); widths that differ need a "
            "projection"
        )
    for source, embeddings in (("student", student), ("teacher", teacher)):
        if not bool(torch.isfinite(embeddings).all()):
            raise ValueError(f"{source}_embeddings hold NaN or inf")
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.to(dtype)


def check_edge_index(edge_index: Tensor, n_atoms: int) -> None:
    """Raise a ValueError if an index of (2, E) does not point at one of ``n_atoms`` atoms."""
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.is_floating_point():
        raise ValueError(
            f"edge_index: expected whole numbers (2, E), got {edge_index.dtype} "
            f"{tuple(edge_index.shape)}"
        )
    if edge_index.numel() == 0:
        return
    lowest, highest = int(edge_index.min()), int(edge_index.max())
    if lowest < 0 or highest >= n_atoms:
        raise ValueError(
            f"edge_index: expected indices from 0 to {n_atoms - 1} (N={n_atoms} atoms), "
            f"got {lowest} to {highest}"
        )


def _check_positive(name: str, value: float) -> None:
    if not value > 0 or value == float("inf"):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}{suggestion(str(value), choices)}")
