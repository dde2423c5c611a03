"""Negatives drawn at random: unbiased sums, one draw a step and seed, and all where K is enough."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_plugins.core import (
    Constant,
    Crack,
    CrackTerm,
    DistillationLoss,
    Instance,
    InstanceTerm,
    LossInputs,
    SampledNegatives,
    TeacherTargets,
)
from tests.core.draws import normal

# torch 2.4's own checkpoint, which makes blocks again, uses a name that torch 2.4 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")

N_ATOMS, WIDTH = 12, 5
EDGES = torch.combinations(torch.arange(N_ATOMS)).T[:, ::4]

every_edge = pytest.mark.parametrize("edges", ["undirected", "directed"])
every_anchor = pytest.mark.parametrize("anchor", ["teacher", "student"])
every_form = pytest.mark.parametrize("form", ["plain", "blocked"])


def sides() -> tuple[Tensor, Tensor]:
    """Return embeddings of a student and its teacher."""
    teacher = normal(N_ATOMS, WIDTH, seed=1)
    return (teacher + 0.5 * normal(N_ATOMS, WIDTH, seed=2)).requires_grad_(), teacher


def blocks_of(numbers: int) -> dict[str, int]:
    """Return a size of blocks on every device."""
    return dict.fromkeys(("cpu", "cuda"), numbers)


def losses_of(relation: Crack | Instance, step: int, student: Tensor, teacher: Tensor) -> Tensor:
    """Return one loss an item."""
    if isinstance(relation, Instance):
        return relation(student, teacher, step=step)
    return relation(student, teacher, EDGES, step=step)[0]


def relations(form: str, anchor: str = "teacher") -> list[Crack | Instance]:
    """Return CRACK over both kinds of edges, and the instance loss."""
    cracks = [Crack(0.3, anchor, edges, form=form) for edges in ("undirected", "directed")]
    return [*cracks, Instance(0.3, anchor, form=form)]


@every_anchor
def test_the_expected_sum_of_exponentials_is_that_of_all_keys(
    anchor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all possible draws, whether an anchor's positive is drawn or not."""
    student, teacher = (side[:6].detach() for side in sides())
    edge_index = torch.combinations(torch.arange(6)).T[:, ::3]
    crack = Crack(0.3, anchor, negatives=SampledNegatives(4))
    for relation, count in (
        (crack, 2),
        (replace(crack, edges="directed"), 3),
        (Instance(0.3, anchor, crack.negatives), 3),
    ):
        graph = () if isinstance(relation, Instance) else (edge_index,)
        n_keys = edge_index.shape[1] if graph else len(teacher)

        # e_kk / exp(-loss) is the sum; e_kk is the same in all draws.
        whole = replace(relation, negatives="local").compare(student, teacher, *graph).losses.exp()
        draws = []
        for places in itertools.combinations(range(n_keys), count):
            drawn = torch.tensor(places)
            monkeypatch.setattr(SampledNegatives, "draw", lambda *_, drawn=drawn: drawn)
            draws.append(relation.compare(student, teacher, *graph).losses.exp())
        every = torch.stack(draws)

        torch.testing.assert_close(every.mean(dim=0), whole, rtol=1e-12, atol=0)
        assert bool((every.log().mean(dim=0) < whole.log() - 1e-4).all())  # Jensen


def test_every_key_is_drawn_as_often_and_none_twice() -> None:
    """Over the steps of a training."""
    counts = torch.zeros(20)
    for step in range(1000):
        drawn = SampledNegatives(5, seed=3).draw(20, False, step, counts.device)
        assert drawn is not None
        assert len(drawn.unique()) == 5
        counts[drawn] += 1
    assert counts.sub(250).abs().max() < 5 * (1000 * 0.25 * 0.75) ** 0.5


@every_form
def test_as_many_negatives_as_there_are_keys_are_all_of_them(form: str) -> None:
    for relation in relations(form):
        n_keys = len(losses_of(relation, 0, *sides()))
        results = []
        for negatives in ("local", SampledNegatives(n_keys - 1), SampledNegatives(n_keys // 2)):
            student, teacher = sides()
            losses = losses_of(replace(relation, negatives=negatives), 0, student, teacher)
            results.append((losses, *torch.autograd.grad(losses.mean(), student)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)
        assert not torch.equal(results[0][0], results[2][0])


@every_anchor
def test_all_but_some_keys_are_as_their_equation_says(anchor: str) -> None:
    """Written out for one draw of directed edges, with its top-1 correctness."""
    student, teacher = (side.detach() for side in sides())
    negatives = SampledNegatives(5, seed=1)
    found = Crack(0.3, anchor, "directed", negatives=negatives).compare(
        student, teacher, EDGES, step=4
    )
    n_keys = EDGES.shape[1]
    drawn = negatives.draw(n_keys, False, 4, student.device)
    assert drawn is not None

    units = [torch.nn.functional.normalize(side, dim=1) for side in (teacher, student)]
    rows, columns = (
        torch.nn.functional.normalize(side[EDGES[0]] - side[EDGES[1]], dim=1) for side in units
    )
    logits = (rows @ columns.T if anchor == "teacher" else columns @ rows.T) / 0.3
    for place in range(n_keys):
        others = [key for key in drawn.tolist() if key != place]
        positive, negative = logits[place, place], logits[place, others]
        total = positive.exp() + (n_keys - 1) / len(others) * negative.exp().sum()
        torch.testing.assert_close(found.losses[place], total.log() - positive)
        assert found.is_correct[place] == (positive >= negative.max())


@every_edge
@every_form
def test_the_gradient_is_that_of_the_value(
    edges: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several blocks, and with respect to both models."""
    monkeypatch.setattr("kd_plugins.core.contrastive.BLOCK_NUMBERS", blocks_of(100))
    crack = Crack(0.3, edges=edges, negatives=SampledNegatives(6), form=form)
    student, teacher = sides()

    def losses(student: Tensor, teacher: Tensor) -> Tensor:
        return losses_of(crack, 2, student, teacher)

    assert torch.autograd.gradcheck(losses, (student, teacher.requires_grad_()), fast_mode=True)


def test_both_forms_and_any_size_of_blocks_are_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    for plain, blocked in zip(relations("plain"), relations("blocked"), strict=True):
        results = []
        for relation, numbers in ((plain, 1), (blocked, 1), (blocked, 100), (blocked, 10**6)):
            monkeypatch.setattr("kd_plugins.core.contrastive.BLOCK_NUMBERS", blocks_of(numbers))
            student, teacher = sides()
            relation = replace(relation, negatives=SampledNegatives(6))
            losses = losses_of(relation, 2, student, teacher)
            results.append((losses, *torch.autograd.grad(losses.mean(), student)))
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-14)


@every_form
def test_a_temperature_near_zero_overflows_nowhere(form: str) -> None:
    """Every gradient is finite, also of anchors whose positive is drawn."""
    for relation in relations(form):
        student, teacher = sides()
        cold = replace(relation, temperature=1e-3, negatives=SampledNegatives(6))
        losses = losses_of(cold, 0, student, teacher)
        (gradient,) = torch.autograd.grad(losses.sum(), student)
        assert bool(losses.isfinite().all())
        assert bool(gradient.isfinite().all())


def report_of(step: int, seed: int = 0) -> list[Tensor]:
    """Return the totals of CRACK and the instance loss at a step, and their excess."""
    student, teacher = sides()
    negatives = SampledNegatives(6, seed)
    terms = (
        CrackTerm("crack", Crack(negatives=negatives), Constant(1.0), excess=True),
        InstanceTerm("instance", Instance(negatives=negatives), Constant(1.0), excess=True),
    )
    targets = TeacherTargets(("a",), torch.tensor([N_ATOMS]), {"node_embeddings": teacher})
    inputs = LossInputs({"node_embeddings": student}, targets, EDGES)
    reports = DistillationLoss(terms)(inputs, step=step).terms
    return [number for one in reports for number in (one.total, one.measures["excess"])]


def test_a_step_and_a_seed_have_one_draw_whatever_was_drawn_before() -> None:
    """So that a resumed training draws what the uninterrupted one did; nothing else is drawn."""
    state = torch.get_rng_state()
    before = [report_of(step) for step in range(3)]
    torch.testing.assert_close(report_of(2), before[2], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)

    for other in (before[1], report_of(2, seed=1)):
        assert all(a != b for a, b in zip(other, before[2], strict=True))


def test_a_perfect_student_has_no_excess_over_the_same_draw() -> None:
    teacher = sides()[1]
    crack = Crack(negatives=SampledNegatives(6))
    found = crack.compare(teacher, teacher, EDGES, perfect=True, step=5)
    assert torch.equal(found.losses, found.perfect_losses)
    assert bool(found.is_correct.all())
