"""Laws of the weighted sum of terms, over every quantity and both relations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kd_plugins.core import (
    DISTANCES,
    QUANTITIES,
    Constant,
    Crack,
    CrackTerm,
    Degrees,
    DistanceTerm,
    DistillationLoss,
    Huber,
    Instance,
    InstanceTerm,
    Linear,
    LossInputs,
    LossReport,
    Piecewise,
    TeacherTargets,
    crack_loss,
    instance_loss,
    norm,
    squared_mean,
    squared_sum,
)
from kd_plugins.core.schedules import Schedule
from kd_plugins.core.terms import Term
from tests.core.draws import normal, orthogonal, shape_of
from tests.tolerances import REORDERED

N_ATOMS = (3, 1, 0, 4)
"""A molecule, a lone atom, a structure without atoms and another molecule."""
STRUCTURES = range(len(N_ATOMS))


def distance_term(name: str, weight: Schedule) -> Term:
    """Compare one quantity."""
    return DistanceTerm(name, name, norm, weight)


TERMS = {
    **{name: distance_term(name, Constant(2.0)) for name in QUANTITIES},
    "crack": CrackTerm("crack", Crack(), Constant(3.0)),
    "directed": CrackTerm("directed", Crack(edges="directed", anchor="student"), Constant(3.0)),
    "instance": InstanceTerm("instance", Instance(), Constant(0.5)),
}
EMBEDDINGS = "equivariant_embeddings"
PER_DEGREE = {
    "n2n_each": DistanceTerm("n2n_each", EMBEDDINGS, norm, Constant(2.0), Degrees()),
    "crack_each": CrackTerm(
        "crack_each", Crack(), Constant(3.0), EMBEDDINGS, degrees=Degrees(lmax=1)
    ),
    "instance_each": InstanceTerm(
        "instance_each", Instance(), Constant(0.5), EMBEDDINGS, degrees=Degrees()
    ),
}
TERMS |= PER_DEGREE
ROWS = (slice(0, 1), slice(1, 4))
"""Of l = 0 and of l = 1, which the embeddings of these tests have."""
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def atoms_of(structure: int) -> list[int]:
    """Return the rows of a structure's atoms in the whole batch."""
    first = sum(N_ATOMS[:structure])
    return list(range(first, first + N_ATOMS[structure]))


def sample(structures: list[int] | range = STRUCTURES) -> LossInputs:
    """Return these structures, in this order, with every quantity and all bonds of each.

    Tensors are drawn for the whole batch, so that a structure is itself in whatever company.
    """
    atoms = [atom for structure in structures for atom in atoms_of(structure)]
    rows = {"atom": atoms, "structure": list(structures)}
    bonds = [
        (atoms.index(i), atoms.index(j))
        for structure in structures
        for i, j in itertools.permutations(atoms_of(structure), 2)
    ]
    sides = []
    for seed in (1, 2):
        whole = {
            name: normal(*shape_of(row, len(N_ATOMS), sum(N_ATOMS)), seed=seed)
            for name, row in QUANTITIES.items()
        }
        sides.append({name: whole[name][rows[QUANTITIES[name].scope]] for name in whole})
    student, teacher = sides
    ids = tuple(f"structure {structure}" for structure in structures)
    n_atoms = torch.tensor([N_ATOMS[structure] for structure in structures], dtype=torch.long)
    return LossInputs(
        {name: value.requires_grad_() for name, value in student.items()},
        TeacherTargets(ids, n_atoms, teacher),
        torch.tensor(bonds, dtype=torch.long).reshape(-1, 2).T,
    )


def without(whole: LossInputs, absent: list[int]) -> LossInputs:
    """Mark structures as absent in every quantity; their rows hold other finite numbers."""
    present = torch.tensor([structure not in absent for structure in STRUCTURES])
    masks = {
        name: TeacherTargets(
            whole.teacher.structure_ids,
            whole.teacher.n_atoms,
            {name: value},
            {name: present},
        ).mask(name)
        for name, value in whole.teacher.values.items()
    }
    values = {name: value.clone() for name, value in whole.teacher.values.items()}
    for name, mask in masks.items():
        values[name][~mask] = -1e3
    return replace(
        whole, teacher=replace(whole.teacher, values=values, present=dict.fromkeys(values, present))
    )


def evaluate(terms: list[Term], what: LossInputs, step: int = 0) -> LossReport:
    """Return the report of a loss of these terms."""
    return DistillationLoss(tuple(terms))(what, step=step)


def gradient(report: LossReport, what: LossInputs, name: str) -> Tensor:
    """Return the gradient of the total with respect to one of the student's tensors."""
    student = what.student[name]
    return torch.autograd.grad(report.total, student, materialize_grads=True, allow_unused=True)[0]


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare sums of the same numbers in another order."""
    torch.testing.assert_close(actual.double(), expected.double(), **REORDERED[torch.float64])


def by_hand(term: Term, what: LossInputs) -> Tensor:
    """Return the mean of a term without the machinery of terms, unweighted."""
    student, teacher = what.student[term.quantity], what.teacher.values[term.quantity]
    if term.degrees is not None:
        return sum(by_hand(replace(term, degrees=None), rows_of(what, rows)) for rows in ROWS)
    if term.quantity == EMBEDDINGS:
        student, teacher = student.flatten(1), teacher.flatten(1)
    if isinstance(term, DistanceTerm):
        return (student - teacher).reshape(len(teacher), -1).square().sum(dim=1).sqrt().mean()
    settings = {"anchor": term.relation.anchor}
    if isinstance(term, InstanceTerm):
        return instance_loss(student, teacher, **settings)
    return crack_loss(student, teacher, what.edge_index, edges=term.relation.edges, **settings)


def rows_of(what: LossInputs, rows: slice) -> LossInputs:
    """Return a batch whose equivariant embeddings are some of their rows."""
    teacher = {**what.teacher.values, EMBEDDINGS: what.teacher.values[EMBEDDINGS][:, rows]}
    student = {**what.student, EMBEDDINGS: what.student[EMBEDDINGS][:, rows]}
    return replace(what, student=student, teacher=what.teacher.with_values(teacher))


def test_the_total_is_the_weighted_sum() -> None:
    """As written: nothing is renormalised."""
    what = sample()
    expected = sum(term.weight(0) * by_hand(term, what) for term in TERMS.values())
    close(evaluate(list(TERMS.values()), what).total, expected)


@every_term
def test_a_term_alone_is_its_weight_times_its_mean(term: Term) -> None:
    """In value and in gradient."""
    what = sample()
    report, expected = evaluate([term], what), term.weight(0) * by_hand(term, what)
    close(report.total, expected)
    (by_autograd,) = torch.autograd.grad(expected, what.student[term.quantity])
    close(gradient(report, what, term.quantity), by_autograd)


@every_term
def test_twice_the_weight_is_twice_the_loss(term: Term) -> None:
    """Whatever stands beside it."""
    what, other = sample(), distance_term("magmoms", Constant(7.0))
    other, term = replace(other, name="other"), replace(term, weight=Constant(1.5))
    alone = evaluate([other], what).total
    once = evaluate([other, term], what).total - alone
    twice = evaluate([other, replace(term, weight=Constant(3.0))], what).total - alone
    torch.testing.assert_close(twice, 2 * once, rtol=1e-9, atol=0.0)


def test_weights_follow_their_schedules() -> None:
    """Each term its own, by the step that is asked for."""
    ramp, rows = Linear(0.0, 4.0, 0, 4), Piecewise((0, 2), (10.0, 20.0))
    terms = [distance_term("energy", ramp), distance_term("forces", rows)]
    what = sample()
    for step in range(6):
        expected = sum(term.weight(step) * by_hand(term, what) for term in terms)
        close(evaluate(terms, what, step).total, expected)


class Evaluated(Exception):
    """A term was evaluated that should not have been."""


def trap(student: Tensor, teacher: Tensor) -> Tensor:
    """A distance that must not be asked for."""
    raise Evaluated


def test_a_term_of_weight_zero_is_not_evaluated() -> None:
    """Nor reported, until its weight grows."""
    off = DistanceTerm("late", "forces", trap, Piecewise((5,), (1.0,)))
    loss = DistillationLoss((off, distance_term("energy", Constant(1.0))))
    assert [report.name for report in loss(sample(), step=4).terms] == ["energy"]
    assert [term.name for term in loss.active(4)] == ["energy"]
    assert [term.name for term in loss.active(5)] == ["late", "energy"]
    with pytest.raises(Evaluated, match="^$"):
        loss(sample(), step=5)


@every_term
def test_a_term_of_weight_zero_is_reported_if_given(term: Term) -> None:
    """It adds exactly nothing."""
    what = sample()
    shown, silent = replace(term, name="shown"), replace(term, weight=Constant(0.0))
    loss = DistillationLoss((shown, silent))
    report = loss(what, step=0, terms=loss.terms)
    assert torch.equal(report.total, loss(what, step=0).total)
    of_shown, of_silent = (report.terms[places] for places in halves(report))
    for one, other in zip(of_shown, of_silent, strict=True):
        assert other == replace(one, name=one.name.replace("shown", silent.name), weight=0.0)


def halves(report: LossReport) -> tuple[slice, slice]:
    """Return the places of two terms' reports, of which each has one or one a degree."""
    half = len(report.terms) // 2
    return slice(half), slice(half, None)


def test_a_term_of_weight_zero_adds_nothing_even_if_it_is_not_finite() -> None:
    """Zero times infinity would not be nothing."""
    what, term = sample(), distance_term("energy", Constant(0.0))
    what = replace(what, student={"energy": what.student["energy"] * float("inf")})
    assert DistillationLoss((term,))(what, step=0, terms=(term,)).total.item() == 0


def test_no_terms_are_zero() -> None:
    """An empty sum."""
    report = evaluate([], sample())
    assert (report.total.item(), report.terms) == (0.0, ())


@every_term
def test_a_report_holds_name_weight_sum_and_counts(term: Term) -> None:
    """The sum over the items that count, unweighted and without a graph."""
    what = without(sample(), [1])
    results, reports = term.evaluate(what), evaluate([term], what).terms
    names = [term.name] if term.degrees is None else [f"{term.name}_l0", f"{term.name}_l1"]
    assert [report.name for report in reports] == names
    for result, report in zip(results, reports, strict=True):
        items = result.items
        mask = torch.ones(len(items), dtype=torch.bool) if result.mask is None else result.mask
        assert report.weight == term.weight(0)
        assert report.count == int(mask.sum())
        assert report.masked == int((~mask).sum()) + result.left_out
        assert not report.total.requires_grad
        close(report.total, items[mask].sum())


@pytest.mark.parametrize(
    ("name", "count", "masked"),
    [("energy", 3, 1), ("forces", 5, 3), ("instance", 5, 3), ("crack", 12, 0)],
)
def test_counts_are_those_of_the_batch(name: str, count: int, masked: int) -> None:
    """Structures, atoms or relations; without the first molecule."""
    (report,) = evaluate([TERMS[name]], without(sample(), [0])).terms
    assert (report.count, report.masked) == (count, masked)


def test_relations_that_the_teacher_does_not_resolve_are_masked() -> None:
    """Two directions of one bond between equal embeddings."""
    what = sample()
    values = {name: value.clone() for name, value in what.teacher.values.items()}
    values["node_embeddings"][1] = values["node_embeddings"][0]
    what = replace(what, teacher=replace(what.teacher, values=values))
    (report,) = evaluate([TERMS["crack"]], what).terms
    assert (report.count, report.masked) == (16, 2)


@every_term
@pytest.mark.parametrize("absent", [[], [0], [1, 3], [0, 2], [0, 1, 3]], ids=str)
def test_a_missing_target_equals_a_batch_without_the_structure(
    term: Term, absent: list[int]
) -> None:
    """The same loss, and the same gradient for those that have a target."""
    whole = without(sample(), absent)
    rest = sample([structure for structure in STRUCTURES if structure not in absent])
    with_absent, without_absent = evaluate([term], whole), evaluate([term], rest)
    close(with_absent.total, without_absent.total)
    mask = whole.mask(term.quantity)
    moved = gradient(with_absent, whole, term.quantity)
    close(moved[mask], gradient(without_absent, rest, term.quantity))
    assert not moved[~mask].any()
    totals = [report.terms[0].total for report in (with_absent, without_absent)]
    close(*totals)


@every_term
def test_without_any_target_there_is_a_zero_with_a_graph(term: Term) -> None:
    """The student can be differentiated all the same; the gradient is zero."""
    whole = without(sample(), list(STRUCTURES))
    report = evaluate([term], whole)
    assert report.total.item() == 0
    (moved,) = torch.autograd.grad(report.total, whole.student[term.quantity])
    assert not moved.any()
    assert report.terms[0].count == 0


@every_term
def test_no_structures_give_a_zero_with_a_graph(term: Term) -> None:
    """An empty batch is a batch."""
    what = sample([])
    report = evaluate([term], what)
    assert report.total.item() == 0
    assert torch.autograd.grad(report.total, what.student[term.quantity])[0].numel() == 0


@pytest.mark.parametrize("name", ["forces", "instance", "crack", "directed"])
def test_items_masked_by_the_host_do_not_count(name: str) -> None:
    """One atom of the first molecule, and with it its relations, besides a missing target."""
    term = TERMS[name]
    whole = without(sample(), [3])
    masked = replace(whole, masks={term.quantity: torch.arange(8) != 0})
    kept, bond = [1, 2, 3], torch.tensor([[0, 1], [1, 0]])
    teacher = {term.quantity: whole.teacher.values[term.quantity][kept]}
    rest = LossInputs(
        {term.quantity: whole.student[term.quantity][kept]},
        TeacherTargets(("rest",), torch.tensor([3]), teacher),
        bond,
    )
    close(evaluate([term], masked).total, evaluate([term], rest).total)
    assert evaluate([term], masked).total != evaluate([term], whole).total


@every_term
@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]], ids=str)
def test_the_order_of_structures_does_not_matter(term: Term, order: list[int]) -> None:
    """Neither to the loss nor to its report."""
    reports = evaluate([term], sample()), evaluate([term], sample(order))
    close(reports[0].total, reports[1].total)
    close(reports[0].terms[0].total, reports[1].terms[0].total)
    assert reports[0].terms[0].count == reports[1].terms[0].count


@pytest.mark.parametrize("distance", [*DISTANCES.values(), Huber(0.1)])
@pytest.mark.parametrize("name", QUANTITIES)
def test_a_student_equal_to_its_teacher_has_no_loss(distance, name: str) -> None:
    """Every distance, every quantity."""
    what = sample()
    perfect = replace(what, student=what.teacher.values)
    term = DistanceTerm("soft", name, distance, Constant(1.0))
    assert evaluate([term], perfect).total.item() == 0


@every_term
def test_the_gradient_flows_to_what_the_term_compares(term: Term) -> None:
    """And to nothing else: not to the student's other outputs, never to the teacher."""
    what = sample()
    evaluate([term], what).total.backward()
    moved = {name for name, value in what.student.items() if value.grad is not None}
    assert moved == {term.quantity}
    assert bool(what.student[term.quantity].grad.any())
    assert not any(value.requires_grad for value in what.teacher.values.values())


def test_two_terms_of_one_name_are_refused() -> None:
    """A log could not distinguish them."""
    energy = distance_term("energy", Constant(1.0))
    twin = DistanceTerm("energy", "forces", squared_sum, Constant(2.0))
    with pytest.raises(ValueError, match="two terms are called 'energy'; .* must be unique"):
        DistillationLoss((energy, TERMS["crack"], twin))


def test_two_terms_of_one_quantity_are_allowed() -> None:
    """If their names differ."""
    terms = [
        DistanceTerm("far", "energy", squared_mean, Constant(1.0)),
        DistanceTerm("near", "energy", norm, Constant(1.0)),
    ]
    assert [report.name for report in evaluate(terms, sample()).terms] == ["far", "near"]


def test_an_unknown_quantity_is_refused() -> None:
    """When the term is made, with the nearest name."""
    with pytest.raises(KeyError, match="unknown quantity 'force'; did you mean 'forces'"):
        DistanceTerm("soft", "force", norm, Constant(1.0))


@every_term
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_absent_quantity_is_never_skipped(term: Term, side: str) -> None:
    """The message names the side that lacks it, and what it gives instead."""
    what = sample()
    held = what.student if side == "student" else what.teacher.values
    rest = {name: value for name, value in held.items() if name != term.quantity}
    if side == "student":
        what = replace(what, student=rest)
    else:
        what = replace(what, teacher=replace(what.teacher, values=rest))
    gives = ", ".join(rest)
    with pytest.raises(KeyError, match=f"the {side} gives no '{term.quantity}'; it gives {gives}"):
        evaluate([term], what)


@pytest.mark.parametrize("name", ["crack", "directed"])
def test_crack_needs_the_edges(name: str) -> None:
    """The message names the term."""
    with pytest.raises(ValueError, match=f"term '{name}' needs the edge_index of the batch"):
        evaluate([TERMS[name]], replace(sample(), edge_index=None))


@pytest.mark.parametrize("edge", [(0, 8), (-1, 0)])
def test_an_edge_out_of_the_batch_is_refused(edge: tuple[int, int]) -> None:
    """Before it is looked up in a mask, where -1 would be the last atom."""
    what = replace(sample(), edge_index=torch.tensor(edge)[:, None])
    with pytest.raises(ValueError, match=r"expected indices from 0 to 7 \(N=8 atoms\)"):
        evaluate([TERMS["crack"]], what)


@every_term
@pytest.mark.usefixtures("unchecked")
def test_a_student_of_another_shape_is_refused(term: Term) -> None:
    """Nothing is broadcast to the teacher's shape."""
    what = sample()
    wrong = {**what.student, term.quantity: what.student[term.quantity].unsqueeze(-1)}
    with pytest.raises(ValueError, match="must have one shape"):
        evaluate([term], replace(what, student=wrong))


@pytest.mark.usefixtures("unchecked")
def test_the_message_about_another_shape_names_the_quantity() -> None:
    """There may be nine of them."""
    what = sample()
    wrong = {**what.student, "forces": what.student["forces"][:, :2]}
    with pytest.raises(ValueError, match="forces"):
        evaluate([TERMS["forces"]], replace(what, student=wrong))


@pytest.mark.parametrize(
    "masks",
    [
        {"force": torch.ones(8, dtype=torch.bool)},
        {"forces": torch.ones(1, dtype=torch.bool)},
        {"forces": torch.ones(8)},
        {"forces": torch.ones(8, 3, dtype=torch.bool)},
    ],
    ids=["misspelt", "broadcast", "float", "two axes"],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_mask_is_refused(masks: dict[str, Tensor]) -> None:
    """Neither ignored nor broadcast."""
    with pytest.raises((ValueError, KeyError), match="masks.*force"):
        evaluate([TERMS["forces"]], replace(sample(), masks=masks))


@pytest.mark.parametrize("kind", ["crack", "instance"])
def test_an_unknown_quantity_of_a_relation_is_refused(kind: str) -> None:
    """As for a distance."""
    with pytest.raises(KeyError, match="unknown quantity 'node_embedding'; did you mean"):
        replace(TERMS[kind], quantity="node_embedding")


@pytest.mark.parametrize("name", ["crack", "directed", "instance"])
def test_a_relation_measures_top1_accuracy_and_excess(name: str) -> None:
    """Over the items that count; the excess where asked for, without a graph."""
    what = without(sample(), [0])
    (report,) = evaluate([TERMS[name]], what).terms
    assert set(report.measures) == {"top1_accuracy"}
    (report,) = evaluate([replace(TERMS[name], excess=True)], what).terms
    perfect = replace(what, student=what.teacher.values)
    (best,) = evaluate([replace(TERMS[name], excess=True)], perfect).terms
    close(report.measures["excess"], report.total - best.total)
    assert abs(best.measures["excess"].item()) < 1e-12
    assert int(best.measures["top1_accuracy"]) == best.count == report.count
    assert 0 <= int(report.measures["top1_accuracy"]) <= report.count
    assert not any(measure.requires_grad for measure in report.measures.values())


def test_crack_over_all_degrees_is_crack_of_wide_embeddings() -> None:
    """Its relations run over all (l, m); its gradient reaches every row."""
    what, name = sample(), "equivariant_embeddings"
    report = evaluate([replace(TERMS["crack"], quantity=name)], what)
    student, teacher = what.student[name].flatten(1), what.teacher.values[name].flatten(1)
    close(report.total, 3.0 * crack_loss(student, teacher, what.edge_index))
    moved = gradient(report, what, name)
    assert bool(moved[atoms_of(0)].abs().amax(dim=2).gt(0).all())


@pytest.mark.parametrize("name", PER_DEGREE)
def test_the_first_degree_alone_is_the_term_on_invariant_embeddings(name: str) -> None:
    """Bit for bit, gradient included."""
    what, alone = sample(), replace(PER_DEGREE[name], degrees=Degrees(lmax=0))
    rows = what.student[EMBEDDINGS]
    teacher = {"node_embeddings": what.teacher.values[EMBEDDINGS][:, 0]}
    scalars = replace(
        what,
        student={"node_embeddings": rows[:, 0]},
        teacher=what.teacher.with_values(teacher),
    )
    invariant = replace(alone, quantity="node_embeddings", degrees=None)
    found, expected = evaluate([alone], what).total, evaluate([invariant], scalars).total
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(each, rows)[0] for each in (found, expected)))


@pytest.mark.parametrize("name", PER_DEGREE)
def test_a_rotation_changes_no_degree(name: str) -> None:
    """Any orthogonal matrix within a degree; one that mixes degrees does change them."""
    what, term = sample(), PER_DEGREE[name]
    turn = torch.block_diag(torch.eye(1), orthogonal(3)).double()
    before, after = (evaluate([term], each).terms for each in (what, turned(what, turn)))
    for one, other in zip(before, after, strict=True):
        close(one.total, other.total)
    mixed = evaluate([term], turned(what, orthogonal(4))).terms
    assert not torch.isclose(mixed[1].total, before[1].total)


def turned(what: LossInputs, turn: Tensor) -> LossInputs:
    """Return a batch with the rows of the embeddings of all its atoms mixed alike."""
    values = {EMBEDDINGS: turn @ what.teacher.values[EMBEDDINGS]}
    student = {EMBEDDINGS: turn @ what.student[EMBEDDINGS]}
    return replace(what, student=student, teacher=what.teacher.with_values(values))


def test_each_degree_is_averaged_over_its_own_relations() -> None:
    """Two atoms that l = 0 does not tell apart still have a relation of l = 1."""
    what = sample()
    values = {name: value.clone() for name, value in what.teacher.values.items()}
    values[EMBEDDINGS][1, 0] = values[EMBEDDINGS][0, 0]
    what = replace(what, teacher=replace(what.teacher, values=values))
    scalar, vector = evaluate([PER_DEGREE["crack_each"]], what).terms
    assert (scalar.count, scalar.masked) == (16, 2)
    assert (vector.count, vector.masked) == (18, 0)
    total = evaluate([PER_DEGREE["crack_each"]], what).total
    close(total, 3.0 * (scalar.total / 16 + vector.total / 18))


def test_a_degree_that_the_embeddings_lack_is_refused() -> None:
    """With how many rows it takes."""
    term = replace(PER_DEGREE["n2n_each"], degrees=Degrees(lmax=2))
    with pytest.raises(ValueError, match=r"expected \(lmax \+ 1\)² >= 9 rows, got 4"):
        evaluate([term], sample())


def test_degrees_of_other_quantities_are_refused() -> None:
    """Forces are vectors, but no rows (l, m)."""
    with pytest.raises(ValueError, match="degrees are those of equivariant_embeddings, got forces"):
        replace(TERMS["forces"], degrees=Degrees())


class WaitCounter(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = function.name().removeprefix("aten::")
        is_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for argument in args
            if isinstance(argument, (list, tuple))
            for index in argument
        )
        if is_mask or name.startswith(
            ("_local_scalar", "nonzero", "_unique", "unique", "masked_s")
        ):
            self.waits.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def count_waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Term, LossInputs], int]:
    """Count how often one step of a term, forward and backward, waits for the device."""

    def count(term: Term, inputs: LossInputs) -> int:
        counter, read = WaitCounter(), Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            counter.waits.append("tolist")
            return read(tensor)

        # On a CPU it reads memory and dispatches nothing.
        monkeypatch.setattr(Tensor, "tolist", tolist)
        with counter:
            DistillationLoss((term,))(inputs, step=0).total.backward()
        monkeypatch.undo()
        return len(counter.waits)

    return count


WAITS = {"crack": 2, "directed": 2, "crack_each": 2, "instance": 1, "instance_each": 2}
"""CRACK: are numbers and edges sound, and how many are chosen; which are long enough. Instance: are
numbers finite, of each degree. All other terms never wait."""


@every_term
@pytest.mark.usefixtures("unchecked")
def test_a_term_waits_for_the_device_no_more_than_it_must(term: Term, count_waits) -> None:
    assert count_waits(term, sample()) == WAITS.get(term.name, 0)


@pytest.mark.parametrize("form", ["plain", "blocked"])
@pytest.mark.usefixtures("unchecked")
def test_neither_form_of_crack_waits_more(form: str, count_waits) -> None:
    assert count_waits(replace(TERMS["crack"], relation=Crack(form=form)), sample()) == 2


@pytest.mark.usefixtures("unchecked")
def test_waits_are_seen(count_waits) -> None:
    """The proof that the law above can fail."""

    def waiting(student: Tensor, teacher: Tensor) -> Tensor:
        largest = float(student.max()) + float(teacher[teacher > 0].sum())
        return (student - teacher).abs() * largest

    term = DistanceTerm("energy", "energy", waiting, Constant(1.0))
    assert count_waits(term, sample()) >= 3
