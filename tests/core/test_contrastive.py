"""CRACK and the instance loss: Algorithm 1 in plain loops, symmetries and awkward inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase.build import bulk
from ase.neighborlist import neighbor_list
from torch import Tensor

from kd_plugins.core import Crack, crack_loss, instance_loss
from kd_plugins.core._relations import choose_edges
from tests.core.draws import normal, orthogonal, permutation
from tests.tolerances import MODEL, REORDERED

Graph = tuple[int, Tensor]
ANCHORS, MODES = ("teacher", "student"), ("undirected", "directed")

both_anchors = pytest.mark.parametrize("anchor", ANCHORS)
both_modes = pytest.mark.parametrize("edges", MODES)


def crystal(name: str, cutoff: float, **structure: Any) -> Graph:
    """Return the periodic graph of an ideal crystal."""
    atoms = bulk(name, **structure)
    sources, targets = neighbor_list("ij", atoms, cutoff)
    return len(atoms), torch.stack([torch.from_numpy(sources), torch.from_numpy(targets)])


def random_graph(n_atoms: int, n_edges: int, seed: int) -> Graph:
    """Return directed edges with repetitions and self-edges, as they fall."""
    draws = torch.randint(n_atoms, (2, n_edges), generator=torch.Generator().manual_seed(seed))
    return n_atoms, draws


def graph(n_atoms: int, *edges: tuple[int, int]) -> Graph:
    """Return a graph written by hand."""
    return n_atoms, torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T


GRAPHS = {
    "no edges": graph(3),
    "one edge": graph(2, (0, 1)),
    "two edges": graph(3, (0, 1), (2, 1)),
    "isolated atoms": graph(6, (1, 2), (2, 4), (4, 1), (2, 1)),
    "self-image edges only": crystal("Cu", 2.6, crystalstructure="fcc", a=3.61),
    "several images of one pair": crystal("NaCl", 4.1, crystalstructure="rocksalt", a=5.64),
    "images and self-images": crystal("Cu", 3.7, cubic=True),
    "random": random_graph(7, 16, seed=1),
    "dense": random_graph(4, 40, seed=2),
}
every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def embeddings(n_atoms: int, width: int = 5) -> tuple[Tensor, Tensor]:
    """Return a student with a graph and a teacher without."""
    return normal(n_atoms, width, seed=3).requires_grad_(), normal(n_atoms, width, seed=4)


def with_equal_neighbours(teacher: Tensor, edge_index: Tensor) -> Tensor:
    """Make one bonded pair point the same way, so that its relation is masked."""
    source, target = edge_index[:, edge_index[0] != edge_index[1]].T[0].tolist()
    teacher = teacher.clone()
    teacher[target] = 2.5 * teacher[source]
    return teacher


def loop_unit(vector: Tensor, shortest: float) -> Tensor:
    """Line 19 and half of line 20 of Algorithm 1."""
    return vector / max((vector @ vector).sqrt(), vector.new_tensor(shortest))


def loop_contrast(rows: list[Tensor], columns: list[Tensor], temperature: float) -> Tensor:
    """Line 23 of Algorithm 1, one row after the other."""
    total = torch.zeros((), dtype=torch.float64)
    for k, row in enumerate(rows):
        similarities = [row @ column for column in columns]
        odds = sum((similarity / temperature).exp() for similarity in similarities)
        total = total - ((similarities[k] / temperature).exp() / odds).log()
    return total / max(len(rows), 1)


def loop_edges(edge_index: Tensor, edges: str) -> list[tuple[int, int]]:
    """Self-image edges go; undirected, a pair is one however often it comes, in both directions."""
    bonds = [(i, j) for i, j in edge_index.T.tolist() if i != j]
    if edges == "directed":
        return bonds
    once = sorted({(min(bond), max(bond)) for bond in bonds})
    return once + [(j, i) for i, j in once]


def loop_crack(
    student: Tensor,
    teacher: Tensor,
    edge_index: Tensor,
    temperature: float,
    anchor: str,
    edges: str,
) -> Tensor:
    """Algorithm 1, lines 17 to 23; relations whose teacher difference is short are left out."""
    student, teacher = ([loop_unit(z, 1e-6) for z in side] for side in (student, teacher))
    bonds = [
        (i, j) for i, j in loop_edges(edge_index, edges) if (teacher[i] - teacher[j]).norm() >= 1e-3
    ]
    r_student, r_teacher = (
        [loop_unit(side[i] - side[j], 1e-3) for i, j in bonds] for side in (student, teacher)
    )
    sides = (r_teacher, r_student) if anchor == "teacher" else (r_student, r_teacher)
    return loop_contrast(*sides, temperature)


def loop_instance(student: Tensor, teacher: Tensor, temperature: float, anchor: str) -> Tensor:
    """The same contrast between the atoms themselves."""
    student, teacher = ([loop_unit(z, 1e-6) for z in side] for side in (student, teacher))
    sides = (teacher, student) if anchor == "teacher" else (student, teacher)
    return loop_contrast(*sides, temperature)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    """Return the gradient, zero where the loop met nothing to differentiate."""
    if not loss.requires_grad:
        return torch.zeros_like(student)
    (result,) = torch.autograd.grad(loss, student, materialize_grads=True)
    return result


def assert_same_loss(actual: Tensor, expected: Tensor, student: Tensor) -> None:
    """Compare values and gradients."""
    torch.testing.assert_close(actual, expected, **REORDERED[torch.float64])
    gradients = gradient(actual, student), gradient(expected, student)
    torch.testing.assert_close(*gradients, **REORDERED[torch.float64])


@every_graph
@both_anchors
@both_modes
def test_crack_equals_algorithm_1(graph: Graph, anchor: str, edges: str) -> None:
    """Value and gradient equal those of plain loops."""
    n_atoms, edge_index = graph
    student, teacher = embeddings(n_atoms)
    settings = {"temperature": 0.3, "anchor": anchor, "edges": edges}
    actual = crack_loss(student, teacher, edge_index, **settings)
    assert_same_loss(actual, loop_crack(student, teacher, edge_index, **settings), student)


@pytest.mark.parametrize("name", ["one edge", "random", "dense", "images and self-images"])
@both_anchors
@both_modes
def test_crack_with_masked_relations_equals_algorithm_1(name: str, anchor: str, edges: str) -> None:
    """A relation that the teacher does not resolve is neither anchor nor negative."""
    n_atoms, edge_index = GRAPHS[name]
    student, teacher = embeddings(n_atoms)
    teacher = with_equal_neighbours(teacher, edge_index)
    settings = {"temperature": 0.15, "anchor": anchor, "edges": edges}
    actual = crack_loss(student, teacher, edge_index, **settings)
    assert_same_loss(actual, loop_crack(student, teacher, edge_index, **settings), student)


@pytest.mark.parametrize("length", [3e-3, 3e-4, 3e-9])
@both_anchors
@both_modes
def test_a_short_student_relation_equals_algorithm_1(
    length: float, anchor: str, edges: str
) -> None:
    """It stays in; below the tolerance it is not blown up to unit length."""
    n_atoms, edge_index = GRAPHS["random"]
    student, teacher = embeddings(n_atoms)
    i, j = edge_index[:, edge_index[0] != edge_index[1]].T[0].tolist()
    with torch.no_grad():
        student[j] = student[i] + length * normal(5)
    settings = {"temperature": 0.3, "anchor": anchor, "edges": edges}
    actual = crack_loss(student, teacher, edge_index, **settings)
    expected = loop_crack(student, teacher, edge_index, **settings)
    torch.testing.assert_close(actual, expected, **REORDERED[torch.float64])
    # A tiny difference of numbers near one has lost digits, so gradients agree to fewer of them.
    gradients = gradient(actual, student), gradient(expected, student)
    torch.testing.assert_close(*gradients, **MODEL[torch.float64])


@both_anchors
@both_modes
def test_masked_equals_removed(anchor: str, edges: str) -> None:
    """As if the graph had never had the edge; the mask marks it."""
    n_atoms, edge_index = GRAPHS["random"]
    student, teacher = embeddings(n_atoms)
    teacher = with_equal_neighbours(teacher, edge_index)
    _, kept = Crack(anchor=anchor, edges=edges)(student, teacher, edge_index)
    chosen = choose_edges(edge_index, n_atoms, edges)
    assert 0 < int(kept.sum()) < len(kept)
    whole = crack_loss(student, teacher, edge_index, anchor=anchor, edges=edges)
    removed = crack_loss(student, teacher, chosen[:, kept], anchor=anchor, edges=edges)
    assert_same_loss(whole, removed, student)


@pytest.mark.parametrize("n_atoms", [0, 1, 2, 6])
@both_anchors
def test_the_instance_loss_equals_plain_loops_over_atoms(n_atoms: int, anchor: str) -> None:
    """Value and gradient equal those of plain loops."""
    student, teacher = embeddings(n_atoms)
    actual = instance_loss(student, teacher, temperature=0.3, anchor=anchor)
    assert_same_loss(actual, loop_instance(student, teacher, 0.3, anchor), student)


@pytest.mark.parametrize("temperature", [0.15, 1.0])
@pytest.mark.parametrize("name", ["one edge", "isolated atoms", "images and self-images"])
@both_anchors
@both_modes
def test_gradient_of_crack_is_that_of_its_value(
    temperature: float, name: str, anchor: str, edges: str
) -> None:
    """Against central differences."""
    n_atoms, edge_index = GRAPHS[name]
    student, teacher = embeddings(n_atoms, width=3)
    settings = {"temperature": temperature, "anchor": anchor, "edges": edges}
    assert torch.autograd.gradcheck(
        lambda s: crack_loss(s, teacher, edge_index, **settings), student
    )


@both_anchors
def test_gradient_of_the_instance_loss_is_that_of_its_value(anchor: str) -> None:
    """Against central differences."""
    student, teacher = embeddings(4, width=3)
    assert torch.autograd.gradcheck(lambda s: instance_loss(s, teacher, anchor=anchor), student)


Batch = tuple[Tensor, Tensor, Tensor]


def permute_atoms(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Batch:
    """Number the atoms anew."""
    order = permutation(len(teacher))
    return student[order], teacher[order], order.argsort()[edge_index]


def permute_edges(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Batch:
    """List the edges in another order."""
    return student, teacher, edge_index[:, permutation(edge_index.shape[1])]


def flip_edges(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Batch:
    """Call every source a target."""
    return student, teacher, edge_index.flip(0)


def rotate(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Batch:
    """Turn the space that both sides' embeddings live in."""
    turn = orthogonal(teacher.shape[1])
    return student @ turn, teacher @ turn, edge_index


def rescale(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Batch:
    """Stretch every embedding by a factor of its own."""
    factors = normal(2, len(teacher), 1).exp()
    return factors[0] * student, factors[1] * teacher, edge_index


SYMMETRIES = (permute_atoms, permute_edges, flip_edges, rotate, rescale)
every_symmetry = pytest.mark.parametrize("change", SYMMETRIES, ids=lambda change: change.__name__)


@every_symmetry
@pytest.mark.parametrize("name", ["random", "images and self-images"])
@both_anchors
@both_modes
def test_crack_is_invariant(
    change: Callable[..., Batch], name: str, anchor: str, edges: str
) -> None:
    """Names of atoms, order of edges, frame and lengths of embeddings do not matter."""
    n_atoms, edge_index = GRAPHS[name]
    student, teacher = embeddings(n_atoms)
    settings = {"anchor": anchor, "edges": edges}
    changed = crack_loss(*change(student, teacher, edge_index), **settings)
    assert_same_loss(changed, crack_loss(student, teacher, edge_index, **settings), student)


@every_symmetry
@both_anchors
def test_the_instance_loss_is_invariant(change: Callable[..., Batch], anchor: str) -> None:
    """Names of atoms, frame and lengths of embeddings do not matter."""
    student, teacher = embeddings(6)
    changed_student, changed_teacher, _ = change(student, teacher, GRAPHS["no edges"][1])
    changed = instance_loss(changed_student, changed_teacher, anchor=anchor)
    assert_same_loss(changed, instance_loss(student, teacher, anchor=anchor), student)


@both_anchors
def test_images_of_a_pair_count_once(anchor: str) -> None:
    """Undirected, a crystal's graph holds no more than which atoms are neighbours."""
    n_atoms, edge_index = GRAPHS["images and self-images"]
    student, teacher = embeddings(n_atoms)
    once = torch.tensor(list(itertools.combinations(range(n_atoms), 2))).T
    losses = [crack_loss(student, teacher, e, anchor=anchor) for e in (edge_index, once)]
    assert_same_loss(*losses, student)


@both_anchors
def test_a_symmetric_graph_without_images_is_the_same_either_way(anchor: str) -> None:
    """As every molecule's."""
    student, teacher = embeddings(5)
    edge_index = torch.tensor(list(itertools.permutations(range(5), 2))).T
    losses = [crack_loss(student, teacher, edge_index, anchor=anchor, edges=mode) for mode in MODES]
    assert_same_loss(*losses, student)


def test_self_image_edges_do_not_count() -> None:
    """Nor do their atoms: a crystal of one atom has no relations, and a zero with a graph."""
    n_atoms, edge_index = GRAPHS["self-image edges only"]
    student, teacher = embeddings(n_atoms)
    assert edge_index.shape[1] == 12
    loss = crack_loss(student, teacher, edge_index)
    assert loss.requires_grad
    assert loss.item() == 0


@both_modes
def test_isolated_atoms_get_no_gradient(edges: str) -> None:
    """Only atoms with a relation learn."""
    n_atoms, edge_index = GRAPHS["isolated atoms"]
    student, teacher = embeddings(n_atoms)
    moved = (
        gradient(crack_loss(student, teacher, edge_index, edges=edges), student).abs().sum(1) > 0
    )
    assert moved.tolist() == [False, True, True, False, True, False]


DEGENERATE = {
    "perfect crystal": (True, True),
    "student of a kind": (True, False),
    "teacher of a kind": (False, True),
}


@pytest.mark.parametrize(("student_equal", "teacher_equal"), DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("value", [1.0, 0.0, 1e-30, 1e10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@both_anchors
@both_modes
def test_gradients_stay_finite(
    student_equal: bool,
    teacher_equal: bool,
    value: float,
    dtype: torch.dtype,
    anchor: str,
    edges: str,
) -> None:
    """Also where all embeddings are equal, or zero, and no direction is defined."""
    n_atoms, edge_index = GRAPHS["images and self-images"]
    sides = (normal(n_atoms, 5, seed=seed, dtype=dtype) for seed in (3, 4))
    student, teacher = (
        torch.full_like(side, value) if equal else side
        for side, equal in zip(sides, (student_equal, teacher_equal), strict=True)
    )
    student.requires_grad_()
    for loss in (
        crack_loss(student, teacher, edge_index, anchor=anchor, edges=edges),
        instance_loss(student, teacher, anchor=anchor),
    ):
        assert bool(loss.isfinite())
        assert bool(gradient(loss, student).isfinite().all())


@pytest.mark.parametrize("student_equal", [True, False])
def test_relations_of_a_perfect_crystal_have_no_gradient(student_equal: bool) -> None:
    """Between symmetry-equivalent atoms the teacher's difference is noise: exactly no gradient."""
    n_atoms, edge_index = GRAPHS["images and self-images"]
    student, teacher = embeddings(n_atoms)
    if student_equal:
        student = torch.ones_like(student).requires_grad_()
    noise = 1e-7 * teacher
    loss = crack_loss(student, torch.ones_like(teacher) + noise, edge_index)
    assert loss.item() == 0
    assert torch.equal(gradient(loss, student), torch.zeros_like(student))


@both_anchors
def test_the_loss_of_one_bond_is_known(anchor: str) -> None:
    """Its two directions are opposite: log(1 + exp(-2 cos / tau)); directed, there is no choice."""
    student, teacher = embeddings(2)
    cosine = torch.cosine_similarity(
        *(torch.nn.functional.normalize(side, dim=1).diff(dim=0) for side in (student, teacher))
    )
    bond = torch.tensor([[0], [1]])
    expected = torch.log1p(torch.exp(-2 * cosine / 0.15)).squeeze()
    assert_same_loss(crack_loss(student, teacher, bond, anchor=anchor), expected, student)
    assert crack_loss(student, teacher, bond, anchor=anchor, edges="directed").item() == 0


@both_anchors
@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_student_beats_a_random_one(anchor: str, seed: int) -> None:
    """In either loss."""
    n_atoms, edge_index = GRAPHS["random"]
    teacher, student = normal(n_atoms, 5, seed=seed), normal(n_atoms, 5, seed=seed + 100)
    perfect, random = (
        (
            crack_loss(side, teacher, edge_index, anchor=anchor).item(),
            instance_loss(side, teacher, anchor=anchor).item(),
        )
        for side in (teacher, student)
    )
    assert perfect[0] < random[0]
    assert perfect[1] < random[1]


@both_anchors
def test_the_gradient_at_a_perfect_student_vanishes_as_the_temperature_falls(anchor: str) -> None:
    """At the paper's 0.15 a student that equals its teacher still has a gradient.

    The loss also drives different relations apart, so its minimum is not the teacher; the gradient
    vanishes as the temperature falls. The same holds for the instance loss.
    """
    n_atoms, edge_index = GRAPHS["random"]
    teacher = normal(n_atoms, 5)
    student = teacher.clone().requires_grad_()
    for loss in (
        lambda tau: crack_loss(student, teacher, edge_index, temperature=tau, anchor=anchor),
        lambda tau: instance_loss(student, teacher, temperature=tau, anchor=anchor),
    ):
        falling = (0.15, 0.05, 0.02, 0.005, 0.001)
        norms = [gradient(loss(tau), student).norm().item() for tau in falling]
        assert norms[0] > 1e-3
        assert norms == sorted(norms, reverse=True)
        assert norms[-1] < 1e-6


BAD_SETTINGS = [
    ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
    ({"temperature": -0.1}, "temperature must be a finite number > 0, got -0.1"),
    ({"temperature": float("nan")}, "temperature must be a finite number > 0, got nan"),
    ({"temperature": float("inf")}, "temperature must be a finite number > 0, got inf"),
    ({"anchor": "techer"}, "unknown anchor 'techer'; did you mean 'teacher'"),
]
BAD_CRACK_SETTINGS = [
    ({"tolerance": 0.0}, "tolerance must be a finite number > 0, got 0.0"),
    ({"tolerance": float("nan")}, "tolerance must be a finite number > 0, got nan"),
    ({"edges": "undirect"}, "unknown edges 'undirect'; did you mean 'undirected'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS + BAD_CRACK_SETTINGS)
@pytest.mark.usefixtures("unchecked")
def test_crack_refuses_bad_settings(settings: dict[str, Any], message: str) -> None:
    """Naming the setting and what came."""
    with pytest.raises(ValueError, match=message):
        crack_loss(normal(2, 3), normal(2, 3), torch.tensor([[0], [1]]), **settings)


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
@pytest.mark.usefixtures("unchecked")
def test_the_instance_loss_refuses_bad_settings(settings: dict[str, Any], message: str) -> None:
    """Naming the setting and what came."""
    with pytest.raises(ValueError, match=message):
        instance_loss(normal(2, 3), normal(2, 3), **settings)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ((0, 3), r"edge_index: expected indices from 0 to 2 \(N=3 atoms\), got 0 to 3"),
        ((-1, 2), r"edge_index: expected indices from 0 to 2 \(N=3 atoms\), got -1 to 2"),
        ((7, 7), "got 7 to 7"),
    ],
)
def test_an_edge_out_of_range_is_refused(edge: tuple[int, int], message: str) -> None:
    """Negative indices would count from the end without a word."""
    with pytest.raises(ValueError, match=message):
        crack_loss(normal(3, 2), normal(3, 2), torch.tensor(edge)[:, None])


@pytest.mark.usefixtures("unchecked")
def test_an_edge_without_atoms_is_refused() -> None:
    """An empty batch has no edges."""
    with pytest.raises(ValueError, match=r"N=0 atoms"):
        crack_loss(normal(0, 2), normal(0, 2), torch.tensor([[0], [0]]))


@pytest.mark.parametrize("teacher", [(3, 5), (4, 2), (3,), (3, 2, 1)])
@pytest.mark.usefixtures("unchecked")
def test_embeddings_of_two_shapes_are_refused(teacher: tuple[int, ...]) -> None:
    """Widths that differ need a projection, which the message names."""
    for loss in (
        lambda *sides: crack_loss(*sides, torch.tensor([[0], [1]])),
        instance_loss,
    ):
        with pytest.raises(ValueError, match=r"must have one shape \(N, D\); .* need a projection"):
            loss(normal(3, 2), normal(*teacher))


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(side: str, bad: float) -> None:
    """Also those of an isolated atom, which would not show in the loss."""
    sides = {"student": normal(3, 2, seed=1), "teacher": normal(3, 2, seed=2)}
    sides[side][2, 0] = bad
    for loss in (
        lambda *sides: crack_loss(*sides, torch.tensor([[0], [1]])),
        instance_loss,
    ):
        with pytest.raises(ValueError, match=f"{side}_embeddings hold NaN or inf"):
            loss(sides["student"], sides["teacher"])


@pytest.mark.parametrize(
    "edge_index",
    [torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([0, 1]), torch.tensor([[0.0], [1.0]])],
    ids=["(E, 2)", "flat", "float"],
)
@pytest.mark.usefixtures("unchecked")
def test_edges_of_another_shape_or_kind_are_refused(edge_index: Tensor) -> None:
    """Transposed, they would pass for two rows of something else."""
    with pytest.raises(ValueError, match=r"edge_index: expected .*\(2, E\)"):
        crack_loss(normal(3, 2), normal(3, 2), edge_index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_teacher_may_be_kept_in_another_precision(dtype: torch.dtype) -> None:
    """As the distances allow; the student's precision is kept."""
    student, teacher = embeddings(3)
    student, bond = student.float(), torch.tensor([[0], [1]])
    assert crack_loss(student, teacher.to(dtype), bond).dtype == torch.float32
    assert instance_loss(student, teacher.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_compared_in_single(dtype: torch.dtype) -> None:
    """The loss is that of the same numbers in float32, and its gradient that one, rounded."""
    n_atoms, edge_index = GRAPHS["random"]
    student, teacher = (side.detach().to(dtype) for side in embeddings(n_atoms))
    half, single = student.clone().requires_grad_(), student.float().requires_grad_()
    for loss in (lambda *sides: crack_loss(*sides, edge_index), instance_loss):
        losses = loss(half, teacher), loss(single, teacher.float())
        assert torch.equal(*losses)
        assert torch.equal(gradient(losses[0], half), gradient(losses[1], single).to(dtype))
