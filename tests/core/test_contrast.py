"""The blocked contrast behind CRACK against its dense definition in float64, form by form."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kd_plugins.core import Crack, Instance, crack_loss, instance_loss
from kd_plugins.core.contrast import _backward, _forward, contrast
from kd_plugins.core.dense import contrast_dense
from kd_plugins.core.edges import choose_edges
from kd_plugins.core.pairing import choose_form
from tests.core.draws import normal, permutation

ANCHORS, MODES = ("teacher", "student"), ("undirected", "directed")
RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-12}
SLACK = {
    "dense": {torch.float32: 2, torch.float64: 100},
    "blocks": {torch.float32: 10, torch.float64: 100},
}
"""How much more is granted to atoms whose embeddings agree in their first two digits.

Blocks take differences of similarities that are rounded to float32: in float64 they would take
1.5 to 2 times as long. The oracle itself normalises twice, which
costs float64 the digits that float32 never had.
"""

both_anchors = pytest.mark.parametrize("anchor", ANCHORS)
both_modes = pytest.mark.parametrize("edges", MODES)
both_dtypes = pytest.mark.parametrize("dtype", RELATIVE, ids=str)


@pytest.fixture(params=["dense", "blocks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Contrast relations in one of the two ways, however many there are."""
    for limit in ("MOST_DENSE", "WIDEST_DENSE"):
        monkeypatch.setattr(
            f"kd_plugins.core.pairing.{limit}", 10**9 if request.param == "dense" else -1
        )
    return request.param


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make logits in blocks, however few there are."""
    monkeypatch.setattr("kd_plugins.core.pairing.MOST_DENSE", -1)


def dense_logits(
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


def dense_items(cosines: Tensor, temperature: float, anchor: str) -> Tensor:
    """Return equation 3.2.2 row by row."""
    logits = (cosines if anchor == "teacher" else cosines.T) / temperature
    return logits.logsumexp(dim=1) - logits.diagonal()


def gradient(total: Tensor, student: Tensor) -> Tensor:
    """Return the gradient in float64."""
    return torch.autograd.grad(total, student, materialize_grads=True)[0].double()


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
    ("form", "temperature"), [("dense", 0.15), ("blocks", 0.15), ("blocks", 1.0)], indirect=["form"]
)
@both_dtypes
@both_anchors
@both_modes
def test_crack_is_its_dense_definition(
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
    items, _ = Crack(temperature, anchor, edges)(student, teacher, edge_index)
    cosines = dense_logits(student, teacher, edge_index, edges)
    expected = dense_items(cosines, temperature, anchor)
    relative = RELATIVE[dtype] * (SLACK[form][dtype] if draw is alike else 1)
    assert items.dtype == dtype
    assert_close(items, expected, relative)
    weights = normal(len(items), seed=8).abs() / max(len(items), 1)
    moved, pulled = (gradient((weights * x).sum(), student) for x in (items, expected))
    scale = pulled.norm().clamp(min=1e-3)
    error = (moved - pulled).norm() / scale
    assert error <= relative, f"{error:.2e}"


@pytest.mark.parametrize("width", [5, 128, 300])
def test_single_precision_is_better_than_that_of_all_logits(width: int, form: str) -> None:
    """Where atoms are alike: what belongs to atoms is kept in float64."""
    student, teacher, edge_index = alike(40, 400, width, torch.float32)
    exact = dense_items(dense_logits(student, teacher, edge_index, "undirected"), 0.15, "teacher")
    single = dense_items(
        dense_logits(student, teacher, edge_index, "undirected", torch.float32), 0.15, "teacher"
    )
    pulls = [
        gradient(loss, student)
        for loss in (exact.mean(), single.mean(), crack_loss(student, teacher, edge_index))
    ]
    assert (pulls[2] - pulls[0]).norm() < (pulls[1] - pulls[0]).norm()


@pytest.mark.parametrize("temperature", [0.02, 1e-3, 1e-6])
@both_dtypes
@both_anchors
@both_modes
def test_a_low_temperature_is_safe(
    temperature: float, dtype: torch.dtype, anchor: str, edges: str, form: str
) -> None:
    """No overflow, no loss of the partition sum; errors are those of logits of size 1/tau."""
    student, teacher, edge_index = batch(12, 60, 4, dtype)
    items, _ = Crack(temperature, anchor, edges)(student, teacher, edge_index)
    expected = dense_items(dense_logits(student, teacher, edge_index, edges), temperature, anchor)
    assert_close(items, expected, RELATIVE[dtype])
    moved, pulled = (gradient(x.sum(), student) for x in (items, expected))
    relative = RELATIVE[dtype] * (1 + 1 / temperature) if temperature > 1e-5 else 1.0
    assert bool(moved.isfinite().all())
    assert (moved - pulled).norm() <= relative * pulled.norm()


@pytest.mark.parametrize("n_atoms", [1, 2, 40])
@pytest.mark.parametrize("temperature", [0.15, 0.01])
@both_dtypes
@both_anchors
def test_the_instance_loss_is_its_dense_definition(
    n_atoms: int, temperature: float, dtype: torch.dtype, anchor: str, form: str
) -> None:
    """With every atom in place of a relation."""
    student, teacher, _ = batch(n_atoms, 0, 6, dtype)
    items = Instance(temperature, anchor)(student, teacher)
    cosines = normalize(teacher.double(), dim=1) @ normalize(student.double(), dim=1).T
    expected = dense_items(cosines, temperature, anchor)
    relative = RELATIVE[dtype] * (1 if temperature > 0.1 else 10)
    assert_close(items, expected, relative)
    moved, pulled = (gradient(x.mean(), student) for x in (items, expected))
    assert (moved - pulled).norm() <= relative * pulled.norm().clamp(min=1e-3)


@both_anchors
@both_modes
def test_all_forms_are_one_loss(monkeypatch: pytest.MonkeyPatch, anchor: str, edges: str) -> None:
    """All at once, or in blocks made of embeddings or of similarities of atoms."""
    student, teacher, edge_index = batch(10, 80, 30, torch.float64)
    results = []
    for most, widest in ((400, 128), (-1, 0), (-1, 1000)):
        monkeypatch.setattr("kd_plugins.core.pairing.MOST_DENSE", most)
        monkeypatch.setattr("kd_plugins.core.pairing.WIDEST_DIRECT", widest)
        loss = crack_loss(student, teacher, edge_index, anchor=anchor, edges=edges)
        results.append((loss, gradient(loss, student)))
    for actual in results[:2]:
        for one, other in zip(actual, results[2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("n_atoms", "n_relations", "width", "form"),
    [
        *((50, 400, 128, "dense"), (50, 401, 128, "direct"), (300, 3750, 128, "direct")),
        *((300, 3750, 6272, "gram"), (23, 128, 6272, "gram"), (5000, 100, 6272, "direct")),
    ],
)
def test_the_form_follows_the_sizes(n_atoms: int, n_relations: int, width: int, form: str) -> None:
    """All at once where they are few; similarities where wide, never more than relations hold."""
    assert choose_form(n_atoms, n_relations, width) == form


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
@pytest.mark.parametrize("first", [0, 2])
def test_the_dense_form_can_be_differentiated_twice(
    mirrored: bool, temperature: float, first: int
) -> None:
    """Its gradient is that of its value, and so on."""
    keys, anchors = ((temperature * normal(n, 3, seed=n)).requires_grad_() for n in (5 + first, 5))

    def losses(*tensors: Tensor) -> Tensor:
        return contrast_dense(*tensors, temperature**2, mirrored, first)[0]

    eps = 1e-6 * temperature
    assert torch.autograd.gradcheck(losses, (keys, anchors), eps=eps, atol=1e-5 / temperature)
    if temperature > 0.1:
        assert torch.autograd.gradgradcheck(losses, (keys, anchors))


COMPILED = """
import torch
from kd_plugins.core.dense import contrast_dense

sides = [torch.randn(7, 3, requires_grad=True) for _ in range(2)]
plain = lambda *x: contrast_dense(*x, 0.2, True)
found = []
for function in (torch.compile(plain, fullgraph=True, backend="aot_eager"), plain):
    losses, hits = function(*sides)
    found.append((losses, hits, *torch.autograd.grad(losses.sum(), sides)))
for actual, expected in zip(*found):
    torch.testing.assert_close(actual, expected)
"""


def test_the_dense_form_compiles_without_a_break() -> None:
    """Forward and backward; elsewhere, because torch cannot see through the checks of beartype."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("gram", [True, False])
def test_some_relations_may_ask_among_all(mirrored: bool, gram: bool) -> None:
    """Their losses and hits are those that they have where all ask; gradients add up."""
    keys, anchors, pairs, *scales, temperature, _ = arguments("gram" if gram else "direct", True)
    differentiable = [x for x in (keys, anchors, *scales) if x is not None]
    whole = contrast(keys, anchors, pairs, *scales, temperature, mirrored)
    expected = torch.autograd.grad(whole[0].sum(), differentiable)
    total = [torch.zeros_like(x) for x in differentiable]
    for first, stop in ((0, 3), (3, 7)):
        asking = scales[1][first:stop]
        losses, hits = contrast(
            keys, anchors, pairs, scales[0], asking, temperature, mirrored, first
        )
        torch.testing.assert_close(losses, whole[0][first:stop], rtol=1e-12, atol=0)
        assert torch.equal(hits, whole[1][first:stop])
        for sum_, part in zip(
            total, torch.autograd.grad(losses.sum(), differentiable), strict=True
        ):
            sum_ += part
    for actual, reference in zip(total, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-12, atol=1e-13)


Arguments = tuple[Any, ...]


def arguments(
    form: str, mirrored: bool, n_relations: int = 7, temperature: float = 0.2
) -> Arguments:
    """Return what `contrast` takes, all of it differentiable."""
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
    return (*tensors, temperature, mirrored)


every_form = pytest.mark.parametrize("form", ["direct", "gram", "atoms"])
either_way = pytest.mark.parametrize("mirrored", [True, False])


@every_form
@either_way
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
def test_the_gradient_is_that_of_the_value(form: str, mirrored: bool, temperature: float) -> None:
    """With respect to every argument, against central differences."""
    values = arguments(form, mirrored, temperature=temperature)
    places = [place for place in (0, 1, 3, 4) if values[place] is not None]

    def losses(*tensors: Tensor) -> Tensor:
        changed = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            changed[place] = tensor
        return contrast(*changed)[0]

    eps = min(1e-6, 1e-4 * temperature)
    assert torch.autograd.gradcheck(
        losses, tuple(values[place] for place in places), eps=eps, atol=1e-4 / temperature * 1e-2
    )


@every_form
@either_way
def test_the_operators_keep_their_promises(form: str, mirrored: bool) -> None:
    """Schema, shapes without data, autograd and tracing, as torch checks them."""
    values = arguments(form, mirrored)
    torch.library.opcheck(_forward, (*values, 0, 3))
    losses, _, log_partition = _forward(*values, 0, None)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in values]
    needed = [detached[0] is not None, True, True, False]
    inputs = (torch.ones_like(losses.detach()), log_partition, *detached, 0, 3, needed)
    torch.library.opcheck(_backward, inputs)


@every_form
@either_way
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_the_size_of_blocks_does_not_matter(form: str, mirrored: bool, block: int) -> None:
    """Nor whether the last one is full."""
    values = arguments(form, mirrored)
    places = [place for place in (0, 1, 3, 4) if values[place] is not None]
    results = []
    for size in (block, None):
        losses, hits = contrast(*values, 0, size)
        weights = normal(len(losses), seed=9)
        gradients = torch.autograd.grad((weights * losses).sum(), [values[p] for p in places])
        results.append((losses, hits, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n_relations", [0, 1])
@either_way
def test_few_relations_have_a_gradient_too(n_relations: int, mirrored: bool) -> None:
    """None give zeros; one without an opposite has nothing to be told from."""
    values = (
        arguments("direct", mirrored, n_relations)
        if n_relations
        else (
            normal(5, 4).requires_grad_(),
            normal(5, 4),
            torch.zeros(2, 0, dtype=torch.long),
            normal(0),
            normal(0),
            0.2,
            mirrored,
        )
    )
    losses, _ = contrast(*values)
    assert losses.shape == (n_relations,)
    (moved,) = torch.autograd.grad(losses.sum(), values[0])
    assert bool(moved.any()) is bool(n_relations and mirrored)


def test_a_second_derivative_is_refused(in_blocks: None) -> None:
    """In words, where it is asked for and not before."""
    student, teacher, edge_index = batch(5, 20, 3, torch.float64)
    loss = crack_loss(student, teacher, edge_index)
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(NotImplementedError, match="can be differentiated once"):
        first.sum().backward()


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_it_compiles_without_a_break(form: str) -> None:
    """Forward and backward, for any number of relations."""
    values = arguments(form, True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: _forward(*x, 0, None), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, lambda *x: _forward(*x, 0, None)):
        losses, hits, _ = function(*values)
        results.append((losses, hits, *torch.autograd.grad(losses.sum(), (values[1], values[3]))))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@both_anchors
def test_under_autocast_it_is_the_same_number(dtype: torch.dtype, anchor: str) -> None:
    """Logits of bfloat16 would be off by a tenth."""
    student, teacher, edge_index = batch(9, 40, 8, dtype)
    for loss in (
        lambda: crack_loss(student, teacher, edge_index, anchor=anchor),
        lambda: instance_loss(student, teacher, anchor=anchor),
    ):
        plain = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = loss()
            moved = gradient(mixed, student)
        assert torch.equal(mixed, plain)
        assert torch.equal(moved, gradient(plain, student))


@both_anchors
@both_modes
@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_hits_and_floor_are_those_of_all_logits(anchor: str, edges: str, noise: float) -> None:
    """A perfect student hits every time and has no excess, whatever its loss is."""
    _, teacher, edge_index = batch(9, 40, 4, torch.float64)
    student = (teacher + noise * normal(9, 4, seed=11)).requires_grad_()
    edge_index = edge_index.unique(dim=1)
    found = Crack(anchor=anchor, edges=edges).compare(student, teacher, edge_index, floor=True)
    cosines = dense_logits(student, teacher, edge_index, edges)
    rows = cosines if anchor == "teacher" else cosines.T
    assert found.hits.tolist() == (rows.argmax(dim=1) == torch.arange(len(rows))).tolist()
    perfect = dense_items(dense_logits(teacher, teacher, edge_index, edges), 0.15, anchor)
    assert found.floor is not None
    assert not found.floor.requires_grad
    assert_close(found.floor, perfect, 1e-12)
    if noise == 0:
        assert bool(found.hits.all())
        torch.testing.assert_close(found.losses.detach(), found.floor, rtol=0, atol=1e-12)
    else:
        assert (found.losses.detach() - found.floor).mean() > 0


def test_the_instance_loss_measures_as_much() -> None:
    """Hits and floor, over atoms."""
    teacher = normal(6, 4)
    found = Instance().compare(teacher, teacher, floor=True)
    assert bool(found.hits.all())
    assert torch.equal(found.losses, found.floor)


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
from kd_plugins import crack_loss
torch.set_num_threads(1)

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

def step(n_atoms, n_edges):
    student, teacher = torch.randn(2, n_atoms, 32)
    edge_index = torch.randint(n_atoms, (2, n_edges))
    crack_loss(student.requires_grad_(), teacher, edge_index).backward()

step(5, 10)
before = status("VmRSS")
step(500, 6000)
print((status("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's account of memory")
def test_memory_is_far_below_that_of_all_logits() -> None:
    """12,000 relations would be four matrices of 550 MiB."""
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    ).stdout
    assert float(printed) < 150
