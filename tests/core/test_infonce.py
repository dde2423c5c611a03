"""CRACK and the instance loss in both forms, plain and blocked, against all logits in float64."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kd_plugins.core import Crack, Instance, _infonce, contrastive, crack_loss, instance_loss
from kd_plugins.core._infonce import info_nce_in_blocks
from kd_plugins.core._relations import Relations, choose_edges
from kd_plugins.core.contrastive import choose_form, info_nce
from tests.core.draws import normal, permutation

ANCHORS, MODES = ("teacher", "student"), ("undirected", "directed")
RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-12}
SLACK = {
    "plain": {torch.float32: 2, torch.float64: 100},
    "blocked": {torch.float32: 10, torch.float64: 100},
}
"""How much more is granted to atoms whose embeddings agree in their first two digits.

Blocks take differences of similarities that are rounded to float32: in float64 they would take
1.5 to 2 times as long. The oracle itself normalises twice, which
costs float64 the digits that float32 never had.
"""

both_anchors = pytest.mark.parametrize("anchor", ANCHORS)
both_modes = pytest.mark.parametrize("edges", MODES)
both_dtypes = pytest.mark.parametrize("dtype", RELATIVE, ids=str)


FORMS = ("plain", "blocked")
both_forms = pytest.mark.parametrize("form", FORMS)


def all_cosines(
    student: Tensor,
    teacher: Tensor,
    edge_index: Tensor,
    edges: str,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return all cosines, teacher x student, of the relations that the teacher resolves."""
    first, second = choose_edges(edge_index, len(teacher), edges)
    units = [normalize(side.to(dtype), dim=1, eps=1e-3) for side in (teacher, student)]
    rows, columns = (side[first] - side[second] for side in units)
    kept = rows.norm(dim=1) >= 1e-3
    return normalize(rows[kept], dim=1, eps=1e-3) @ normalize(columns[kept], dim=1, eps=1e-3).T


def losses_of(cosines: Tensor, temperature: float, anchor: str) -> Tensor:
    """Return equation 3.2.2 row by row."""
    logits = (cosines if anchor == "teacher" else cosines.T) / temperature
    return logits.logsumexp(dim=1) - logits.diagonal()


def gradient(total: Tensor, student: Tensor, retain: bool = False) -> Tensor:
    """Return the gradient in float64."""
    (found,) = torch.autograd.grad(total, student, materialize_grads=True, retain_graph=retain)
    return found.double()


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Compare to within a part of the largest number, or of one where all are smaller."""
    error = (actual.double() - expected).abs().max() if expected.numel() else torch.tensor(0.0)
    scale = expected.abs().max().clamp(min=1.0) if expected.numel() else 1.0
    assert error <= relative * scale, f"{error / scale:.2e} > {relative:.0e}"


def batch(n_atoms: int, n_edges: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return a student, its teacher and directed edges with repetitions."""
    student, teacher = (normal(n_atoms, width, seed=seed, dtype=dtype) for seed in (1, 2))
    edge_index = torch.randint(n_atoms, (2, n_edges), generator=torch.Generator().manual_seed(3))
    return student.requires_grad_(), teacher, edge_index


def alike(n_atoms: int, n_edges: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return atoms of three kinds, far from zero and close to one another."""
    kinds = (normal(3, width, seed=4) + 3 * normal(width, seed=5)).repeat(n_atoms, 1)[:n_atoms]
    teacher = kinds + 0.05 * normal(n_atoms, width, seed=6)
    student = (teacher + 0.02 * normal(n_atoms, width, seed=7)).to(dtype)
    return student.requires_grad_(), teacher.to(dtype), batch(n_atoms, n_edges, 1, dtype)[2]


def identical(n_atoms: int, n_edges: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return one embedding for all atoms of the student."""
    student, teacher, edge_index = batch(n_atoms, n_edges, width, dtype)
    return torch.ones_like(student).requires_grad_(), teacher, edge_index


def repeated(n_atoms: int, n_edges: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return each structure twice, with a relation that the teacher does not resolve."""
    student, teacher, edge_index = batch(n_atoms, n_edges, width, dtype)
    teacher[0] = teacher[-1]
    bond = torch.tensor([[0], [n_atoms - 1]])
    edge_index = torch.cat([edge_index, edge_index + n_atoms, bond], dim=1)
    student = student.detach().repeat(2, 1).requires_grad_()
    return student, teacher.repeat(2, 1), edge_index


@pytest.mark.parametrize("draw", [batch, alike, identical, repeated])
@pytest.mark.parametrize(
    ("n_atoms", "n_edges", "width"),
    [(1, 1, 3), (2, 1, 3), (3, 2, 200), (9, 40, 3), (30, 300, 5), (20, 150, 200)],
)
@pytest.mark.parametrize(
    ("form", "temperature"), [("plain", 0.15), ("blocked", 0.15), ("blocked", 1.0)]
)
@both_dtypes
@both_anchors
@both_modes
def test_crack_equals_its_equation_in_double_precision(
    draw: Callable[..., tuple[Tensor, ...]],
    n_atoms: int,
    n_edges: int,
    width: int,
    temperature: float,
    dtype: torch.dtype,
    anchor: str,
    edges: str,
    form: str,
) -> None:
    """Items, and the gradient of a weighted sum of them."""
    student, teacher, edge_index = draw(n_atoms, n_edges, width, dtype)
    crack = Crack(temperature, anchor, edges, form=form)
    items, _ = crack(student, teacher, edge_index)
    cosines = all_cosines(student, teacher, edge_index, edges)
    expected = losses_of(cosines, temperature, anchor)
    relative = RELATIVE[dtype] * (SLACK[form][dtype] if draw is alike else 1)
    assert items.dtype == dtype
    assert_close(items, expected, relative)
    weights = normal(len(items), seed=8).abs() / max(len(items), 1)
    found_gradient, expected_gradient = (
        gradient((weights * x).sum(), student) for x in (items, expected)
    )
    scale = expected_gradient.norm().clamp(min=1e-3)
    error = (found_gradient - expected_gradient).norm() / scale
    assert error <= relative, f"{error:.2e}"


@pytest.mark.parametrize("width", [5, 128, 300])
@both_forms
def test_single_precision_is_better_than_that_of_all_logits(width: int, form: str) -> None:
    """Where atoms are alike: what belongs to atoms is kept in float64."""
    student, teacher, edge_index = alike(40, 400, width, torch.float32)
    exact = losses_of(all_cosines(student, teacher, edge_index, "undirected"), 0.15, "teacher")
    single = losses_of(
        all_cosines(student, teacher, edge_index, "undirected", torch.float32), 0.15, "teacher"
    )
    pulls = [
        gradient(loss, student)
        for loss in (
            exact.mean(),
            single.mean(),
            crack_loss(student, teacher, edge_index, form=form),
        )
    ]
    assert (pulls[2] - pulls[0]).norm() < (pulls[1] - pulls[0]).norm()


@pytest.mark.parametrize("temperature", [0.02, 1e-3, 1e-6])
@both_dtypes
@both_anchors
@both_modes
@both_forms
def test_a_low_temperature_is_safe(
    temperature: float, dtype: torch.dtype, anchor: str, edges: str, form: str
) -> None:
    """No overflow, no loss of the partition sum; errors are those of logits of size 1/tau."""
    student, teacher, edge_index = batch(12, 60, 4, dtype)
    crack = Crack(temperature, anchor, edges, form=form)
    items, _ = crack(student, teacher, edge_index)
    expected = losses_of(all_cosines(student, teacher, edge_index, edges), temperature, anchor)
    assert_close(items, expected, RELATIVE[dtype])
    found_gradient, expected_gradient = (gradient(x.sum(), student) for x in (items, expected))
    relative = RELATIVE[dtype] * (1 + 1 / temperature) if temperature > 1e-5 else 1.0
    assert bool(found_gradient.isfinite().all())
    assert (found_gradient - expected_gradient).norm() <= relative * expected_gradient.norm()


@pytest.mark.parametrize("n_atoms", [1, 2, 40])
@pytest.mark.parametrize("temperature", [0.15, 0.01])
@both_dtypes
@both_anchors
@both_forms
def test_the_instance_loss_equals_its_equation_in_double_precision(
    n_atoms: int, temperature: float, dtype: torch.dtype, anchor: str, form: str
) -> None:
    """With every atom in place of a relation."""
    student, teacher, _ = batch(n_atoms, 0, 6, dtype)
    items = Instance(temperature, anchor, form=form)(student, teacher)
    cosines = normalize(teacher.double(), dim=1) @ normalize(student.double(), dim=1).T
    expected = losses_of(cosines, temperature, anchor)
    relative = RELATIVE[dtype] * (1 if temperature > 0.1 else 10)
    assert_close(items, expected, relative)
    found_gradient, expected_gradient = (gradient(x.mean(), student) for x in (items, expected))
    assert (found_gradient - expected_gradient).norm() <= relative * expected_gradient.norm().clamp(
        min=1e-3
    )


@both_anchors
@both_modes
def test_all_forms_are_one_loss(monkeypatch: pytest.MonkeyPatch, anchor: str, edges: str) -> None:
    """All at once, or in blocks made of embeddings or of similarities of atoms."""
    student, teacher, edge_index = batch(10, 80, 30, torch.float64)
    results = []
    for form, widest in (("plain", 128), ("blocked", 0), ("blocked", 1000)):
        monkeypatch.setattr("kd_plugins.core._relations.WIDEST_DIRECT", widest)
        loss = crack_loss(student, teacher, edge_index, anchor=anchor, edges=edges, form=form)
        results.append((loss, gradient(loss, student)))
    for actual in results[:2]:
        for one, other in zip(actual, results[2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("n_relations", "width", "form"),
    [
        (512, 128, "plain"),
        (513, 128, "blocked"),
        (10, 6272, "plain"),
        (11, 6272, "blocked"),
    ],
)
def test_the_form_follows_the_sizes(n_relations: int, width: int, form: str) -> None:
    assert choose_form(n_relations, width, "cpu") == form


def test_a_gpu_takes_the_plain_form_for_longer() -> None:
    forms = [choose_form(n, 128, "cuda") for n in (513, 4096, 4097)]
    assert forms == ["plain", "plain", "blocked"]


@pytest.mark.parametrize(
    ("n_atoms", "n_relations", "width", "is_wide"),
    [(300, 3750, 128, False), (300, 3750, 6272, True), (5000, 100, 6272, False)],
)
def test_similarities_of_atoms_are_made_where_they_are_fewer_than_the_relations_numbers(
    n_atoms: int, n_relations: int, width: int, is_wide: bool
) -> None:
    pairs = torch.zeros(2, n_relations, dtype=torch.long)
    embeddings = torch.zeros(1).expand(n_atoms, width)
    assert Relations(embeddings, pairs, 1e-3).is_wide == is_wide


def record_call(calls: list[str], function: Callable[..., Any], *inputs: Any) -> Any:
    """Note that a function is called, and call it."""
    calls.append(function.__name__)
    return function(*inputs)


@pytest.mark.parametrize("loss", ["crack", "instance"])
def test_a_form_that_is_asked_for_overrides_the_sizes(
    monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Few relations in blocks, and as many as one likes at once."""
    student, teacher, edge_index = batch(9, 40, 4, torch.float64)
    for form in FORMS:
        taken = []
        for other in ("info_nce", "info_nce_in_blocks"):
            original = getattr(contrastive, other)
            spy = partial(record_call, taken, original)
            monkeypatch.setattr(contrastive, other, spy)
        if loss == "crack":
            crack_loss(student, teacher, edge_index, form=form)
        else:
            instance_loss(student, teacher, form=form)
        assert set(taken) == {"info_nce" if form == "plain" else "info_nce_in_blocks"}
        monkeypatch.undo()


@pytest.mark.parametrize("both_directions", [True, False])
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
@pytest.mark.parametrize("offset", [0, 2])
def test_the_plain_form_can_be_differentiated_twice(
    both_directions: bool, temperature: float, offset: int
) -> None:
    """Its gradient is that of its value, and so on."""
    keys, anchors = ((temperature * normal(n, 3, seed=n)).requires_grad_() for n in (5 + offset, 5))

    def losses(*tensors: Tensor) -> Tensor:
        keys, anchors = tensors
        return info_nce(anchors, keys, temperature**2, both_directions, offset)[0]

    eps = 1e-6 * temperature
    assert torch.autograd.gradcheck(losses, (keys, anchors), eps=eps, atol=1e-5 / temperature)
    if temperature > 0.1:
        assert torch.autograd.gradgradcheck(losses, (keys, anchors))


COMPILED = """
import torch
from kd_plugins.core.contrastive import info_nce

sides = [torch.randn(7, 3, requires_grad=True) for _ in range(2)]
plain = lambda *x: info_nce(*x, 0.2, True)
found = []
for function in (torch.compile(plain, fullgraph=True, backend="aot_eager"), plain):
    losses, is_correct = function(*sides)
    found.append((losses, is_correct, *torch.autograd.grad(losses.sum(), sides)))
for actual, expected in zip(*found):
    torch.testing.assert_close(actual, expected)
"""


def test_the_plain_form_compiles_without_a_break() -> None:
    """Forward and backward; elsewhere, because torch cannot see through the checks of beartype."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@pytest.mark.parametrize("both_directions", [True, False])
@pytest.mark.parametrize("gram", [True, False])
def test_anchors_of_one_rank_have_the_losses_that_they_have_among_all(
    both_directions: bool, gram: bool
) -> None:
    """And the same top-1 correctness; gradients add up."""
    keys, anchors, pairs, *scales, temperature, _ = arguments("gram" if gram else "direct", True)
    differentiable = [x for x in (keys, anchors, *scales) if x is not None]
    whole = info_nce_in_blocks(keys, anchors, pairs, *scales, temperature, both_directions)
    expected = torch.autograd.grad(whole[0].sum(), differentiable)
    total = [torch.zeros_like(x) for x in differentiable]
    for offset, stop in ((0, 3), (3, 7)):
        anchor_scale = scales[1][offset:stop]
        losses, is_correct = info_nce_in_blocks(
            keys, anchors, pairs, scales[0], anchor_scale, temperature, both_directions, offset
        )
        torch.testing.assert_close(losses, whole[0][offset:stop], rtol=1e-12, atol=0)
        assert torch.equal(is_correct, whole[1][offset:stop])
        for sum_, part in zip(
            total, torch.autograd.grad(losses.sum(), differentiable), strict=True
        ):
            sum_ += part
    for actual, reference in zip(total, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-12, atol=1e-13)


Arguments = tuple[Any, ...]


def arguments(
    form: str, both_directions: bool, n_relations: int = 7, temperature: float = 0.2
) -> Arguments:
    """Return what `info_nce_in_blocks` takes, all of it differentiable."""
    keys, anchors = (normalize(normal(5, 4, seed=seed), dim=1) for seed in (1, 2))
    pairs = torch.stack([permutation(5, seed)[:2] for seed in range(n_relations)], dim=1)
    scales = [0.4 + 0.1 * normal(n_relations, seed=seed).tanh() for seed in (3, 4)]
    if form == "gram":
        keys, anchors = None, anchors @ keys.T
    if form == "atoms":
        pairs, scales = None, [scale.repeat(5)[:5] for scale in scales]
    tensors = [keys, anchors, pairs, *scales]
    for place in (0, 1, 3, 4):
        if tensors[place] is not None:
            tensors[place].requires_grad_()
    return (*tensors, temperature, both_directions)


every_form = pytest.mark.parametrize("form", ["direct", "gram", "atoms"])
either_way = pytest.mark.parametrize("both_directions", [True, False])


@every_form
@either_way
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
def test_the_gradient_is_that_of_the_value(
    form: str, both_directions: bool, temperature: float
) -> None:
    """With respect to every argument, against central differences."""
    values = arguments(form, both_directions, temperature=temperature)
    places = [place for place in (0, 1, 3, 4) if values[place] is not None]

    def losses(*tensors: Tensor) -> Tensor:
        changed = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            changed[place] = tensor
        return info_nce_in_blocks(*changed)[0]

    eps = min(1e-6, 1e-4 * temperature)
    assert torch.autograd.gradcheck(
        losses, tuple(values[place] for place in places), eps=eps, atol=1e-4 / temperature * 1e-2
    )


@every_form
@either_way
def test_the_operators_pass_torchs_own_checks(form: str, both_directions: bool) -> None:
    """Schema, shapes without data, autograd and tracing, as torch checks them."""
    values = arguments(form, both_directions)
    torch.library.opcheck(_infonce._forward.default, (*values, 0, 3))
    losses, _, log_sums = _infonce._forward(*values, 0, None)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in values]
    needed = [detached[0] is not None, True, True, False]
    inputs = (torch.ones_like(losses.detach()), log_sums, *detached, 0, 3, needed)
    torch.library.opcheck(_infonce._backward.default, inputs)


@every_form
@either_way
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_the_size_of_blocks_does_not_matter(form: str, both_directions: bool, block: int) -> None:
    """Nor whether the last one is full."""
    values = arguments(form, both_directions)
    places = [place for place in (0, 1, 3, 4) if values[place] is not None]
    results = []
    for size in (block, None):
        losses, is_correct = info_nce_in_blocks(*values, 0, size)
        weights = normal(len(losses), seed=9)
        gradients = torch.autograd.grad((weights * losses).sum(), [values[p] for p in places])
        results.append((losses, is_correct, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n_relations", [0, 1])
@either_way
def test_few_relations_have_a_gradient_too(n_relations: int, both_directions: bool) -> None:
    """None give zeros; one without an opposite has no negatives."""
    values = (
        arguments("direct", both_directions, n_relations)
        if n_relations
        else (
            normal(5, 4).requires_grad_(),
            normal(5, 4),
            torch.zeros(2, 0, dtype=torch.long),
            normal(0),
            normal(0),
            0.2,
            both_directions,
        )
    )
    losses, _ = info_nce_in_blocks(*values)
    assert losses.shape == (n_relations,)
    (found_gradient,) = torch.autograd.grad(losses.sum(), values[0])
    assert bool(found_gradient.any()) is bool(n_relations and both_directions)


def test_a_second_derivative_in_blocks_is_refused() -> None:
    """In words, where it is asked for and not before."""
    student, teacher, edge_index = batch(5, 20, 3, torch.float64)
    loss = crack_loss(student, teacher, edge_index, form="blocked")
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(NotImplementedError, match="can be differentiated once"):
        first.sum().backward()


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_it_compiles_without_a_break(form: str) -> None:
    """Forward and backward, for any number of relations."""
    values = arguments(form, True)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: _infonce._forward(*x, 0, None), fullgraph=True, backend="aot_eager"
    )
    results = []
    for function in (compiled, lambda *x: _infonce._forward(*x, 0, None)):
        losses, is_correct, _ = function(*values)
        results.append(
            (losses, is_correct, *torch.autograd.grad(losses.sum(), (values[1], values[3])))
        )
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@both_anchors
@both_forms
def test_under_autocast_it_is_the_same_number(dtype: torch.dtype, anchor: str, form: str) -> None:
    """Logits of bfloat16 would be off by a tenth.

    Blocks differentiate to the same number under autocast, too; what is left to autograd does so
    outside, where torch wants it.
    """
    student, teacher, edge_index = batch(9, 40, 8, dtype)
    for loss in (
        lambda: crack_loss(student, teacher, edge_index, anchor=anchor, form=form),
        lambda: instance_loss(student, teacher, anchor=anchor, form=form),
    ):
        plain = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = loss()
            inside = gradient(mixed, student, retain=True) if form == "blocked" else None
        expected = gradient(plain, student)
        assert torch.equal(mixed, plain)
        assert inside is None or torch.equal(inside, expected)
        assert torch.equal(gradient(mixed, student), expected)


@both_anchors
@both_modes
@both_forms
@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_accuracy_and_perfect_loss_are_those_of_all_logits(
    anchor: str, edges: str, form: str, noise: float
) -> None:
    """A perfect student is always right and has no excess, whatever its loss is."""
    _, teacher, edge_index = batch(9, 40, 4, torch.float64)
    student = (teacher + noise * normal(9, 4, seed=11)).requires_grad_()
    edge_index = edge_index.unique(dim=1)
    crack = Crack(anchor=anchor, edges=edges, form=form)
    found = crack.compare(student, teacher, edge_index, perfect=True)
    cosines = all_cosines(student, teacher, edge_index, edges)
    rows = cosines if anchor == "teacher" else cosines.T
    assert found.is_correct.tolist() == (rows.argmax(dim=1) == torch.arange(len(rows))).tolist()
    perfect = losses_of(all_cosines(teacher, teacher, edge_index, edges), 0.15, anchor)
    assert found.perfect_losses is not None
    assert not found.perfect_losses.requires_grad
    assert_close(found.perfect_losses, perfect, 1e-12)
    if noise == 0:
        assert bool(found.is_correct.all())
        torch.testing.assert_close(found.losses.detach(), found.perfect_losses, rtol=0, atol=1e-12)
    else:
        assert (found.losses.detach() - found.perfect_losses).mean() > 0


def test_the_instance_loss_measures_as_much() -> None:
    """Top-1 correctness and the losses of a perfect student, over atoms."""
    teacher = normal(6, 4)
    found = Instance().compare(teacher, teacher, perfect=True)
    assert bool(found.is_correct.all())
    assert torch.equal(found.losses, found.perfect_losses)


def rotation_of_degrees(lmax: int) -> Tensor:
    """Return an orthogonal matrix over (l, m) that mixes the rows of each degree only."""
    turns = [
        torch.linalg.qr(normal(size, size, seed=size))[0] for size in range(1, 2 * lmax + 2, 2)
    ]
    return torch.block_diag(*turns)


@both_anchors
def test_relations_over_all_degrees_are_invariant_to_rotations(anchor: str) -> None:
    """Lengths, and with them losses, do not change when the structures turn."""
    sides = [normal(8, 9, 5, seed=seed) for seed in (1, 2)]
    edge_index = torch.tensor(list(itertools.combinations(range(8), 2))).T
    turn, crack = rotation_of_degrees(2), Crack(anchor=anchor)
    turned = [torch.einsum("km,nmd->nkd", turn, side) for side in sides]
    lengths, turned_lengths = (
        (side[0][edge_index[0]] - side[0][edge_index[1]]).norm(dim=(1, 2))
        for side in (sides, turned)
    )
    torch.testing.assert_close(turned_lengths, lengths, rtol=1e-12, atol=0)
    (losses, _), (turned_losses, _) = (
        crack(*(x.flatten(1) for x in both), edge_index) for both in (sides, turned)
    )
    torch.testing.assert_close(turned_losses, losses, rtol=1e-12, atol=1e-12)


MEMORY = """
import torch
from relational_loss import peak_memory

torch.set_num_threads(1)
for form, n_edges in (("ours", 1000), ("plain", 1000), ("ours", 12000)):
    print(peak_memory(form, n_edges, 128))
"""
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's account of memory")
def test_memory_is_at_most_that_of_all_logits_and_far_below_for_many() -> None:
    """6,000 pairs, both directions of which would be four matrices of 550 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=BENCHMARKS
    )
    few, all_logits, many = map(float, done.stdout.split())
    assert few <= all_logits
    assert many < 100
