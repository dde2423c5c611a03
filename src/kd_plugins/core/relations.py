"""Losses whose items see each other: CRACK over edges and instance-level InfoNCE over atoms.

Source: "CRACK: Contrastive Relational-Aware Compression of Knowledge for Machine Learning Force
Fields", section 3.2 and Algorithm 1 (the relational loss), Table 3 (the instance-level loss).
Each relation returns one number an item and never averages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kd_plugins.core.edges import EdgeIndex, Edges
from kd_plugins.core.edges import choose_edges as choose_edges
from kd_plugins.core.pairing import Anchor, Comparison, Pairing, choose_form
from kd_plugins.core.reduction import masked_mean
from kd_plugins.core.union import counts_of_ranks, gather, place
from kd_plugins.names import suggestion
from kd_plugins.numbers import is_number, shown

NodeEmbeddings = Float[Tensor, "N D"]
Negatives = Literal["local", "global"]
SMALLEST = 1e-12
"""Of a temperature or a tolerance; what is divided by a smaller one overflows."""


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
        negatives: ``"local"`` takes those of this process's batch; ``"global"`` those of all ranks
            of torch.distributed, so that n ranks have the loss and, under
            DistributedDataParallel, the gradient of one process on the union of their batches.
            Each rank then sends and holds the embeddings of all atoms of all ranks, both models',
            sends their gradients back, and takes n times as long for its own relations.

    Raises:
        ValueError: for a temperature or tolerance that is not positive, or an unknown choice.
    """

    temperature: float = 0.15
    anchor: Anchor = "teacher"
    edges: Edges = "undirected"
    tolerance: float = 1e-3
    negatives: Negatives = "local"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_positive("temperature", self.temperature)
        _check_positive("tolerance", self.tolerance)
        _check_choice("anchor", self.anchor, ("teacher", "student"))
        _check_choice("edges", self.edges, ("undirected", "directed"))
        _check_choice("negatives", self.negatives, ("local", "global"))

    def __call__(
        self, student: NodeEmbeddings, teacher: NodeEmbeddings, edge_index: EdgeIndex
    ) -> tuple[Float[Tensor, " E_kept"], Bool[Tensor, " E_chosen"]]:
        """Return the losses of the relations kept, and which of the chosen edges were kept."""
        comparison = self.compare(student, teacher, edge_index)
        return comparison.losses, comparison.kept

    def compare(
        self,
        student: NodeEmbeddings,
        teacher: NodeEmbeddings,
        edge_index: EdgeIndex,
        *,
        atoms: Bool[Tensor, " N"] | None = None,
        floor: bool = False,
    ) -> Comparison:
        """Return the losses with how good they are.

        Args:
            student: (N, D) embeddings.
            teacher: (N, D).
            edge_index: (2, E) indices into the N atoms.
            atoms: (N,) which atoms count; edges of others do not. All if left out.
            floor: also contrast the teacher with itself, which takes a third of the time of this
                loss and its gradient on top. The hits need no pass of their own.
        """
        student, teacher = _check_embeddings(student, teacher)
        pairs, mirrored = self._pairs(edge_index, len(teacher), atoms)
        form = choose_form(len(teacher), pairs.shape[1], teacher.shape[1])
        pairing = Pairing(pairs, mirrored, form)
        taught = pairing.side(teacher, self.tolerance)
        resolved = taught.lengths >= self.tolerance
        kept, taught = replace(pairing, pairs=pairs[:, resolved]), taught.some(resolved)
        if self.negatives == "global":
            student, teacher, kept = _of_all_ranks(student, teacher, kept)
            taught = kept.side(teacher, self.tolerance)
        learned = kept.side(student, self.tolerance)
        comparison = kept.compare(learned, taught, self.temperature, self.anchor, floor)
        return replace(comparison, kept=pairing.listed(resolved))

    def _pairs(self, edge_index: Tensor, n_atoms: int, atoms: Tensor | None) -> tuple[Tensor, bool]:
        """Return the atoms of each relation, one of two opposite ones, and whether it has one."""
        pairs = choose_edges(edge_index, n_atoms, self.edges)
        mirrored = self.edges == "undirected"
        if mirrored:
            pairs = pairs[:, : pairs.shape[1] // 2]
        return pairs if atoms is None else pairs[:, atoms[pairs].all(dim=0)], mirrored


@dataclass(frozen=True)
class Instance:
    """InfoNCE between the atoms' own embeddings, one number an atom (Table 3).

    Args:
        temperature: divides the cosines.
        anchor, negatives: as in `Crack`.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown choice.
    """

    temperature: float = 0.15
    anchor: Anchor = "teacher"
    negatives: Negatives = "local"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_positive("temperature", self.temperature)
        _check_choice("anchor", self.anchor, ("teacher", "student"))
        _check_choice("negatives", self.negatives, ("local", "global"))

    def __call__(self, student: NodeEmbeddings, teacher: NodeEmbeddings) -> Float[Tensor, " N"]:
        """Return one loss an atom."""
        return self.compare(student, teacher).losses

    def compare(
        self, student: NodeEmbeddings, teacher: NodeEmbeddings, *, floor: bool = False
    ) -> Comparison:
        """Return the losses with how good they are; see `Crack.compare`."""
        student, teacher = _check_embeddings(student, teacher)
        pairing = Pairing()
        if self.negatives == "global":
            student, teacher, pairing = _of_all_ranks(student, teacher, pairing)
        form = choose_form(len(student), len(student), student.shape[1])
        pairing = replace(pairing, form="dense" if form == "dense" else "direct")
        sides = pairing.side(student, 1.0), pairing.side(teacher, 1.0)
        return pairing.compare(*sides, self.temperature, self.anchor, floor)


def _of_all_ranks(
    student: Tensor, teacher: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor, Pairing]:
    """Return the embeddings and relations of all ranks; this one's relations ask."""
    n_atoms = counts_of_ranks(len(student), student.device)
    student, teacher = (gather(side, n_atoms) for side in (student, teacher))
    if pairing.pairs is None:
        return student, teacher, replace(pairing, asking=place(n_atoms))
    n_pairs = counts_of_ranks(pairing.pairs.shape[1], student.device)
    shifted = pairing.pairs.T + place(n_atoms).start
    pairs = gather(shifted.contiguous(), n_pairs).T.contiguous()
    form = choose_form(len(student), pairs.shape[1], student.shape[1])
    return student, teacher, replace(pairing, pairs=pairs, form=form, asking=place(n_pairs))


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
    """Return CRACK's loss, the mean of equation 3.2.2 over E relations.

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


def _check_embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the student's precision, which is at least float32."""
    for source, embeddings in (("student", student), ("teacher", teacher)):
        _check_tensor(f"{source}_embeddings", embeddings, floating=True)
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


def _check_positive(name: str, value: float) -> None:
    if not is_number(value) or not value >= SMALLEST:
        raise ValueError(f"{name} must be a finite number > 0, got {shown(value)}")


def _check_tensor(name: str, value: object, *, floating: bool) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {type(value).__name__} {shown(value)}")
    if floating and not value.is_floating_point():
        raise ValueError(f"{name}: expected a tensor of real numbers, got one of {value.dtype}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {shown(value)}{suggestion(str(value), choices)}")
