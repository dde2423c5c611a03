"""CRACK and instance-level InfoNCE: contrastive losses between the relations or atoms of a batch.

Source: CRACK (Lim, Choung, Han 2025), "Contrastive Relational-Aware Compression of Knowledge for
Machine Learning Force Fields": section 3.2.1 (`relation_vectors`), section 3.2.2 (`info_nce`),
Algorithm 1; the instance-level loss is that of its Table 3.

The two equations stand here in plain torch and are used as they stand for few relations. For many,
the matrix of logits would not fit into memory, and the same numbers are made block by block, see
`kd_plugins.core._infonce`; `choose_form` is the rule. A loss gives one number an item and never
averages; `kd_plugins.core.reduction.masked_mean` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kd_plugins.core._infonce import info_nce_in_blocks
from kd_plugins.core._relations import (
    EdgeIndex,
    Edges,
    NodeEmbeddings,
    Relations,
    candidates,
    check_edge_index,
    check_numbers,
    check_shapes,
    similarities,
    to_common_dtype,
)
from kd_plugins.core.negatives import BLOCK_NUMBERS, SampledNegatives, sampled_info_nce
from kd_plugins.core.reduction import (
    counts_of_ranks,
    gather_from_ranks,
    masked_mean,
    rows_of_this_rank,
)
from kd_plugins.names import suggestion
from kd_plugins.numbers import is_number, shown

Anchor = Literal["teacher", "student"]
Negatives = Literal["local", "global"] | SampledNegatives
Form = Literal["auto", "plain", "blocked"]

Losses = Float[Tensor, " A"]
IsCorrect = Bool[Tensor, " A"]

SMALLEST_SETTING = 1e-12
"""Of a temperature or a tolerance; what is divided by a smaller one overflows."""

MOST_PLAIN = {"cpu": 512, "cuda": 4096}
"""Relations (one of two opposite ones) up to which the plain form is used, by device.

Measured on one core of a CPU and on an H200: there, blocks become as fast. On a GPU they spend
their time on launches; its matrix of 4,096 x 4,096 logits takes some 0.3 GiB with its gradient.
"""
MOST_PLAIN_NUMBERS = {"cpu": 2**16, "cuda": 2**22}
"""Numbers of a model's relations, E x D, up to which the plain form writes them out."""


# ----------------------------------------------------------------------------------------------
# The equations


def relation_vectors(
    units: Float[Tensor, "N D"], pairs: Int[Tensor, "2 E"], shortest: float
) -> Float[Tensor, "E D"]:
    """Return the unit differences of atoms' unit embeddings (CRACK, section 3.2.1).

        r_k = (ẑ_i - ẑ_j) / ‖ẑ_i - ẑ_j‖

    Args:
        units: (N, D) unit embeddings ẑ; in float64, because the difference of two atoms that are
            nearly alike cancels digits.
        pairs: (2, E) atoms i and j of each relation.
        shortest: a difference shorter than this is not blown up to unit length.

    >>> relation_vectors(torch.eye(2), torch.tensor([[0], [1]]), shortest=1e-3)
    tensor([[ 0.7071, -0.7071]])
    """
    first, second = pairs
    differences = units.index_select(0, first) - units.index_select(0, second)
    return F.normalize(differences, dim=1, eps=shortest)


def info_nce(
    anchors: Float[Tensor, "A D"],
    keys: Float[Tensor, "E D"],
    temperature: float,
    both_directions: bool = False,
    offset: int = 0,
) -> tuple[Losses, IsCorrect]:
    """Return each anchor's InfoNCE loss (CRACK, section 3.2.2), before its mean over relations.

        L_k = - log [ exp(r_T,k · r_S,k / τ) / Σ_m exp(r_T,k · r_S,m / τ) ]

    Args:
        anchors: unit vectors of the model whose relations are to find their counterpart; the
            teacher's r_T in the paper.
        keys: unit vectors to pick from; the student's r_S.
        temperature: τ.
        both_directions: whether the opposite of each key is a key, too. An undirected graph has
            every relation in both directions; their losses are equal, so the anchors are given
            in one direction.
        offset: the positive of anchor 0 is this key, and so on; A may be less than E.

    Returns:
        The losses, and whether the positive is the most similar key (their mean is the top-1
        accuracy).

    >>> losses, is_correct = info_nce(torch.eye(2), torch.eye(2), temperature=1.0)
    >>> [round(loss, 4) for loss in losses.tolist()], is_correct.tolist()
    ([0.3133, 0.3133], [True, True])
    """
    logits = similarities(anchors, keys, temperature)

    positives = logits.diagonal(offset=offset)
    if logits.shape[1] == 0:  # no keys have no largest
        return positives, positives.bool()

    log_sums, compared = logits.logsumexp(dim=1), logits.detach()
    if both_directions:
        log_sums = torch.logaddexp(log_sums, (-logits).logsumexp(dim=1))
        compared = compared.abs()
    return log_sums - positives, positives >= compared.amax(dim=1)


def choose_form(
    n_relations: int, width: int, device_type: str = "cpu"
) -> Literal["plain", "blocked"]:
    """Return how relations are contrasted if ``form`` is ``"auto"``; both forms are exact.

    Args:
        n_relations: E, counting one of two opposite relations.
        width: D of the embeddings.
        device_type: ``cpu``, or any other, which counts as ``cuda``.

    >>> choose_form(128, width=128), choose_form(3750, width=128)
    ('plain', 'blocked')
    """
    device_type = "cpu" if device_type == "cpu" else "cuda"
    is_small = (
        n_relations <= MOST_PLAIN[device_type]
        and n_relations * width <= MOST_PLAIN_NUMBERS[device_type]
    )
    return "plain" if is_small else "blocked"


# ----------------------------------------------------------------------------------------------
# The losses


@dataclass(frozen=True)
class ContrastiveResult:
    """The losses of a batch, and how good they are.

    The loss of a perfect student is not zero and depends on the batch; ``losses`` less
    ``perfect_losses`` and the top-1 accuracy can be compared between batches.

    Args:
        losses: (I,) one number an item that is kept.
        is_correct: (I,) whether no other key is more similar to the anchor than its positive;
            the mean is the top-1 accuracy. Without a graph.
        kept: (I_all,) which of the items are kept.
        perfect_losses: (I,) the losses of a student that equals its teacher, where asked for;
            without a graph.
    """

    losses: Float[Tensor, " I"]
    is_correct: Bool[Tensor, " I"]
    kept: Bool[Tensor, " I_all"]
    perfect_losses: Float[Tensor, " I"] | None = None


@dataclass(frozen=True)
class Crack:
    """CRACK's relational-contrastive loss, one number a relation (equation of section 3.2.2).

    A relation is the unit vector along the difference of two bonded atoms' unit embeddings. Each
    anchor relation has to pick its counterpart out of all relations of the batch.

    Args:
        temperature: divides the cosines; the paper found 0.15 (Table 4).
        anchor: whose relations are the anchors. ``"teacher"`` is the paper's equation;
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
            `SampledNegatives` draws some of this process's batch, for very many relations.
        form: ``"plain"`` makes all logits at once, ``"blocked"`` a block at a time, with memory
            that grows linearly; the numbers are the same. ``"auto"`` follows `choose_form`.

    Raises:
        ValueError: for a temperature or tolerance that is not positive, or an unknown choice.
    """

    temperature: float = 0.15
    anchor: Anchor = "teacher"
    edges: Edges = "undirected"
    tolerance: float = 1e-3
    negatives: Negatives = "local"
    form: Form = "auto"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_positive("temperature", self.temperature)
        _check_positive("tolerance", self.tolerance)
        _check_choice("anchor", self.anchor, ("teacher", "student"))
        _check_choice("edges", self.edges, ("undirected", "directed"))
        _check_negatives(self.negatives)
        _check_choice("form", self.form, ("auto", "plain", "blocked"))

    def __call__(
        self,
        student: NodeEmbeddings,
        teacher: NodeEmbeddings,
        edge_index: EdgeIndex,
        *,
        step: int = 0,
    ) -> tuple[Float[Tensor, " E_kept"], Bool[Tensor, " E_chosen"]]:
        """Return the losses of the relations kept, and which of the chosen edges were kept."""
        comparison = self.compare(student, teacher, edge_index, step=step)
        return comparison.losses, comparison.kept

    def compare(
        self,
        student: NodeEmbeddings,
        teacher: NodeEmbeddings,
        edge_index: EdgeIndex,
        *,
        atoms: Bool[Tensor, " N"] | None = None,
        perfect: bool = False,
        step: int = 0,
    ) -> ContrastiveResult:
        """Return the losses with how good they are.

        Args:
            student: (N, D) embeddings.
            teacher: (N, D).
            edge_index: (2, E) indices into the N atoms.
            atoms: (N,) which atoms count; edges of others do not. All if left out.
            perfect: also contrast the teacher with itself, which takes a third of the time of
                this loss and its gradient on top. The top-1 accuracy costs nothing.
            step: of the training, by which negatives are drawn if they are.
        """
        sides = [(student, teacher)]
        return self.compare_each(sides, edge_index, atoms=atoms, perfect=perfect, step=step)[0]

    def compare_each(
        self,
        sides: Sequence[tuple[Tensor, Tensor]],
        edge_index: EdgeIndex,
        *,
        atoms: Bool[Tensor, " N"] | None = None,
        perfect: bool = False,
        step: int = 0,
    ) -> list[ContrastiveResult]:
        """Return the losses of several embeddings of the same atoms, such as one a degree l.

        Each has relations of its own, and the edges are chosen once.

        Args:
            sides: student and teacher, (N, D) each, of each kind of embeddings; at least one kind,
                and the width D may differ between kinds.
            edge_index: see `compare`.
            atoms: see `compare`.
            perfect: see `compare`.
            step: see `compare`.
        """
        for student, teacher in sides:
            check_shapes(student, teacher)
        check_edge_index(edge_index)
        edges, is_chosen = candidates(edge_index, len(sides[0][1]), self.edges, atoms)
        n_chosen = check_numbers(sides, edge_index, is_chosen)
        sides = [to_common_dtype(*both) for both in sides]

        # As edges[:, is_chosen], without another wait for the device.
        pairs = edges[:, torch.argsort(~is_chosen, stable=True)[:n_chosen]]
        relations = [Relations(teacher, pairs, self.tolerance) for _, teacher in sides]
        kept = torch.stack([each.lengths >= self.tolerance for each in relations])

        # One wait for the numbers of relations of all embeddings.
        counts: list[int] = kept.sum(dim=1).tolist()
        first = torch.argsort(~kept, dim=1, stable=True)
        results = []
        for place, (student, _) in enumerate(sides):
            of_kept = first[place, : counts[place]]
            chosen = relations[place].select(of_kept), pairs.index_select(1, of_kept)
            result = self._contrast(student, *chosen, perfect, step)
            both = self.edges == "undirected"
            results.append(replace(result, kept=_both(kept[place]) if both else kept[place]))
        return results

    def _contrast(
        self,
        student: NodeEmbeddings,
        relations: Relations,
        pairs: Int[Tensor, "2 E"],
        perfect: bool,
        step: int,
    ) -> ContrastiveResult:
        """Return the losses of the teacher's relations that are kept, along these pairs."""
        teacher, own = relations.embeddings, slice(0, None)
        if self.negatives == "global":
            student, teacher, pairs, own = _relations_of_ranks(student, teacher, pairs)
            relations = Relations(teacher, pairs, self.tolerance)

        return _compare(
            Relations(student, pairs, self.tolerance),
            relations,
            self,
            both_directions=self.edges == "undirected",
            own=own,
            perfect=perfect,
            step=step,
        )


@dataclass(frozen=True)
class Instance:
    """InfoNCE between the atoms' own embeddings, one number an atom (CRACK, Table 3).

    Args:
        temperature: divides the cosines.
        anchor, negatives, form: as in `Crack`.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown choice.
    """

    temperature: float = 0.15
    anchor: Anchor = "teacher"
    negatives: Negatives = "local"
    form: Form = "auto"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_positive("temperature", self.temperature)
        _check_choice("anchor", self.anchor, ("teacher", "student"))
        _check_negatives(self.negatives)
        _check_choice("form", self.form, ("auto", "plain", "blocked"))

    def __call__(
        self, student: NodeEmbeddings, teacher: NodeEmbeddings, *, step: int = 0
    ) -> Float[Tensor, " N"]:
        """Return one loss an atom."""
        return self.compare(student, teacher, step=step).losses

    def compare(
        self,
        student: NodeEmbeddings,
        teacher: NodeEmbeddings,
        *,
        perfect: bool = False,
        step: int = 0,
    ) -> ContrastiveResult:
        """Return the losses with how good they are; see `Crack.compare`."""
        check_shapes(student, teacher)
        check_numbers([(student, teacher)])
        student, teacher = to_common_dtype(student, teacher)

        own = slice(0, None)
        if self.negatives == "global":
            counts = counts_of_ranks(len(student), student.device)
            student, teacher = (gather_from_ranks(side, counts) for side in (student, teacher))
            own = rows_of_this_rank(counts)

        return _compare(
            Relations(student, None, 1.0),
            Relations(teacher, None, 1.0),
            self,
            both_directions=False,
            own=own,
            perfect=perfect,
            step=step,
        )


def crack_loss(
    student_embeddings: NodeEmbeddings,
    teacher_embeddings: NodeEmbeddings,
    edge_index: EdgeIndex,
    *,
    temperature: float = 0.15,
    anchor: Anchor = "teacher",
    edges: Edges = "undirected",
    tolerance: float = 1e-3,
    form: Form = "auto",
) -> Float[Tensor, ""]:
    """Return CRACK's loss, the mean of the equation of section 3.2.2 over E relations.

    Args:
        student_embeddings: (N, D) l = 0 node embeddings, already projected to the teacher's width.
        teacher_embeddings: (N, D).
        edge_index: (2, E) indices into the N atoms; which row is the source does not matter.
        temperature: see `Crack`.
        anchor: see `Crack`.
        edges: see `Crack`.
        tolerance: see `Crack`.
        form: see `Crack`.

    Raises:
        ValueError: for shapes that do not match, embeddings that are not finite, an edge index out
            of range or a setting out of its range.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> edge_index = torch.tensor([[0, 1], [1, 2]])
    >>> round(crack_loss(embeddings, embeddings, edge_index).item(), 4)
    0.0025
    """
    crack = Crack(temperature, anchor, edges, tolerance, form=form)
    losses, _ = crack(student_embeddings, teacher_embeddings, edge_index)
    return masked_mean(losses)


def instance_loss(
    student_embeddings: NodeEmbeddings,
    teacher_embeddings: NodeEmbeddings,
    *,
    temperature: float = 0.15,
    anchor: Anchor = "teacher",
    form: Form = "auto",
) -> Float[Tensor, ""]:
    """Return the mean over atoms of the instance-level contrastive loss (CRACK, Table 3).

    Raises:
        ValueError: for shapes that do not match, embeddings that are not finite or a setting out
            of its range.

    >>> embeddings = torch.eye(2)
    >>> round(instance_loss(embeddings, embeddings).item(), 4)
    0.0013
    """
    instance = Instance(temperature, anchor, form=form)
    return masked_mean(instance(student_embeddings, teacher_embeddings))


# ----------------------------------------------------------------------------------------------
# Contrasting two models' relations


def _compare(
    student: Relations,
    teacher: Relations,
    settings: Crack | Instance,
    *,
    both_directions: bool,
    own: slice,
    perfect: bool,
    step: int,
) -> ContrastiveResult:
    """Return the losses of this rank's relations, and those of a perfect student if asked for."""
    keys, anchors = (student, teacher) if settings.anchor == "teacher" else (teacher, student)
    losses, is_correct = _contrast(keys, anchors, settings, both_directions, own, step)

    perfect_losses = None
    if perfect:
        with torch.no_grad():
            perfect_losses, _ = _contrast(teacher, teacher, settings, both_directions, own, step)

    return ContrastiveResult(losses, is_correct, torch.ones_like(is_correct), perfect_losses)


def _contrast(
    keys: Relations,
    anchors: Relations,
    settings: Crack | Instance,
    both_directions: bool,
    own: slice,
    step: int,
) -> tuple[Losses, IsCorrect]:
    """Return losses and top-1 correctness of the anchors of this rank, in both directions."""
    form = settings.form
    if form == "auto":
        embeddings = keys.embeddings
        form = choose_form(keys.count, embeddings.shape[1], embeddings.device.type)

    drawn, device = None, keys.embeddings.device
    if isinstance(settings.negatives, SampledNegatives):
        drawn = settings.negatives.draw(keys.count, both_directions, step, device)

    if drawn is None:
        contrast = _all_at_once if form == "plain" else _in_blocks
        losses, is_correct = contrast(keys, anchors, settings.temperature, both_directions, own)
    else:
        losses, is_correct = _with_drawn(
            keys, anchors, drawn, settings.temperature, both_directions, form == "blocked"
        )

    # Opposite relations have equal losses: (-r)·(-s) = r·s, and the set of keys is the same.
    return (_both(losses), _both(is_correct)) if both_directions else (losses, is_correct)


def _all_at_once(
    keys: Relations, anchors: Relations, temperature: float, both_directions: bool, own: slice
) -> tuple[Losses, IsCorrect]:
    """Contrast with all keys, by all logits."""
    rows = _vectors(anchors, own)
    return info_nce(rows, _vectors(keys), temperature, both_directions, own.start)


def _in_blocks(
    keys: Relations, anchors: Relations, temperature: float, both_directions: bool, own: slice
) -> tuple[Losses, IsCorrect]:
    """Contrast with all keys, a block of anchors at a time."""
    of_keys, of_anchors = keys.units, anchors.units
    if keys.pairs is None:
        of_anchors = of_anchors[own]
    elif keys.is_wide:
        of_keys, of_anchors = None, of_anchors @ of_keys.T

    return info_nce_in_blocks(
        of_keys,
        of_anchors,
        keys.pairs,
        keys.scale(),
        anchors.scale()[own],
        temperature,
        both_directions,
        own.start,
    )


def _with_drawn(
    keys: Relations,
    anchors: Relations,
    drawn: Int[Tensor, " K"],
    temperature: float,
    both_directions: bool,
    in_blocks: bool,
) -> tuple[Losses, IsCorrect]:
    """Contrast with some keys only; blocks of anchors are made again in the backward pass."""
    negatives = _vectors(keys, drawn)
    places = torch.full((keys.count,), -1, device=drawn.device)
    places[drawn] = torch.arange(len(drawn), device=drawn.device)
    _ = anchors.units  # computed once and kept, so not within a block

    def losses_of(block: slice) -> tuple[Losses, IsCorrect]:
        rows = _vectors(anchors, block), _vectors(keys, block), negatives, places[block]
        return sampled_info_nce(*rows, keys.count, temperature, both_directions)

    if not in_blocks:
        return losses_of(slice(0, keys.count))

    numbers = BLOCK_NUMBERS.get(drawn.device.type, BLOCK_NUMBERS["cuda"])
    step = max(numbers // sum(negatives.shape), 1)
    blocks = [slice(start, start + step) for start in range(0, keys.count, step)]
    parts = [
        checkpoint(losses_of, block, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    losses, is_correct = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(is_correct)


def _vectors(
    relations: Relations, places: slice | Int[Tensor, " E"] = slice(None)
) -> Float[Tensor, "E D"]:
    """Return relations of a model written out, all or some."""
    units = relations.units
    if relations.pairs is None:
        vectors = units[places]
    else:
        vectors = relation_vectors(units, relations.pairs[:, places], relations.shortest)
    return vectors.to(relations.embeddings.dtype)


def _both(items: Tensor) -> Tensor:
    """Return one item a relation in both directions; opposite ones come after all others."""
    return torch.cat([items, items])


def _relations_of_ranks(
    student: Tensor, teacher: Tensor, pairs: Tensor
) -> tuple[Tensor, Tensor, Tensor, slice]:
    """Return the embeddings and pairs of all ranks, and where this rank's relations are."""
    n_atoms = counts_of_ranks(len(student), student.device)
    n_pairs = counts_of_ranks(pairs.shape[1], student.device)
    student, teacher = (gather_from_ranks(side, n_atoms) for side in (student, teacher))

    among_all_atoms = (pairs.T + rows_of_this_rank(n_atoms).start).contiguous()
    pairs = gather_from_ranks(among_all_atoms, n_pairs).T.contiguous()
    return student, teacher, pairs, rows_of_this_rank(n_pairs)


# ----------------------------------------------------------------------------------------------
# Checks of settings


def _check_positive(name: str, value: float) -> None:
    if not is_number(value) or not value >= SMALLEST_SETTING:
        raise ValueError(f"{name} must be a finite number > 0, got {shown(value)}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {shown(value)}{suggestion(str(value), choices)}")


def _check_negatives(value: Negatives) -> None:
    if not isinstance(value, SampledNegatives):
        _check_choice("negatives", value, ("local", "global"))
