"""Laws that every distance keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_plugins.core import (
    DISTANCES,
    Huber,
    absolute_mean,
    absolute_sum,
    cosine_similarity,
    masked_mean,
    norm,
    squared_mean,
    squared_sum,
)
from kd_plugins.core.distances import Distance
from tests.core.draws import normal, permutation
from tests.tolerances import EXACT, REORDERED

EVERY = {**DISTANCES, "huber": Huber(delta=0.5)}
SHAPES = [(6,), (6, 3), (6, 4, 3)]
MASK = torch.tensor([True, False, True, True, False, True])

every_distance = pytest.mark.parametrize("distance", EVERY.values(), ids=EVERY)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a student with a graph and a teacher without."""
    return normal(*shape, seed=1).requires_grad_(), normal(*shape, seed=2)


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare sums of the same numbers in another order."""
    torch.testing.assert_close(actual, expected, **REORDERED[actual.dtype])


@every_distance
@every_shape
def test_zero_at_the_teacher_and_positive_elsewhere(
    distance: Distance, shape: tuple[int, ...]
) -> None:
    """One number an item, exactly zero where the student is the teacher."""
    student, teacher = pair(shape)
    assert torch.equal(distance(teacher, teacher), torch.zeros(6, dtype=torch.float64))
    assert distance(student, teacher).shape == (6,)
    assert bool((distance(student, teacher) > 0).all())


@every_distance
@every_shape
def test_student_and_teacher_may_change_places(distance: Distance, shape: tuple[int, ...]) -> None:
    """A distance has no direction."""
    student, teacher = pair(shape)
    forth, back = distance(student, teacher), distance(teacher, student)
    torch.testing.assert_close(forth, back, **EXACT[torch.float64])


@every_distance
@every_shape
def test_gradient_is_that_of_the_value(distance: Distance, shape: tuple[int, ...]) -> None:
    """Against central differences, with masked items."""
    student, teacher = pair(shape)
    assert torch.autograd.gradcheck(lambda s: masked_mean(distance(s, teacher), MASK), student)


@every_distance
@every_shape
def test_masked_equals_removed(distance: Distance, shape: tuple[int, ...]) -> None:
    """In value and in gradient, however far off the masked items are."""
    student, teacher = pair(shape)
    teacher[~MASK] = 1e6
    masked = masked_mean(distance(student, teacher), MASK)
    removed = masked_mean(distance(student[MASK], teacher[MASK]))
    close(masked, removed)
    close(*(torch.autograd.grad(mean, student)[0] for mean in (masked, removed)))


@every_distance
@every_shape
def test_two_batches_combine_to_one(distance: Distance, shape: tuple[int, ...]) -> None:
    """Items do not see each other."""
    student, teacher = pair(shape)
    parts = [distance(student[part], teacher[part]) for part in (slice(2), slice(2, None))]
    close(torch.cat(parts), distance(student, teacher))


@every_distance
@every_shape
def test_order_does_not_matter(distance: Distance, shape: tuple[int, ...]) -> None:
    """Neither that of items nor that of features."""
    student, teacher = pair(shape)
    items = permutation(6)
    close(distance(student[items], teacher[items]), distance(student, teacher)[items])
    features = permutation(shape[-1])
    if len(shape) > 1:
        turned = distance(student[..., features], teacher[..., features])
        close(turned, distance(student, teacher))


@every_distance
@every_shape
def test_an_empty_batch_gives_a_zero_with_a_graph(
    distance: Distance, shape: tuple[int, ...]
) -> None:
    """An empty batch can be differentiated like any other."""
    student, teacher = pair((0, *shape[1:]))
    mean = masked_mean(distance(student, teacher))
    assert mean.item() == 0
    assert torch.autograd.grad(mean, student)[0].shape == student.shape


@every_distance
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_at_the_teacher_is_zero(
    distance: Distance, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A student that is its teacher stays there, also where the distance has a kink."""
    teacher = normal(*shape, dtype=dtype)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(masked_mean(distance(student, teacher)), student)
    assert torch.equal(gradient, torch.zeros_like(teacher))


@every_distance
@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4, 1), (4,)), ((1, 3), (4, 3))]
)
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_differ_are_refused(
    distance: Distance, student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    """Nothing is broadcast."""
    with pytest.raises(ValueError, match="student and teacher must have one shape, got .* and "):
        distance(torch.zeros(student), torch.zeros(teacher))


@every_shape
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (squared_mean, F.mse_loss),
        (absolute_mean, F.l1_loss),
        (Huber(0.5), lambda s, t: F.huber_loss(s, t, delta=0.5)),
        (norm, lambda s, t: torch.linalg.vector_norm((s - t).reshape(6, -1), dim=1).mean()),
    ],
    ids=["mse", "l1", "huber", "norm"],
)
def test_means_are_those_of_torch(ours: Distance, theirs: Distance, shape: tuple[int, ...]) -> None:
    """The same number over all items and features."""
    student, teacher = pair(shape)
    close(masked_mean(ours(student, teacher)), theirs(student, teacher))


@every_shape
def test_a_sum_is_as_many_means_as_features(shape: tuple[int, ...]) -> None:
    """The names say which is which, and the norm is the root of the sum of squares."""
    student, teacher = pair(shape)
    n_features = teacher[0].numel()
    close(squared_sum(student, teacher), n_features * squared_mean(student, teacher))
    close(absolute_sum(student, teacher), n_features * absolute_mean(student, teacher))
    close(norm(student, teacher).square(), squared_sum(student, teacher))


@every_shape
def test_huber_is_squared_near_and_linear_far(shape: tuple[int, ...]) -> None:
    """Half the square below delta, delta times what is beyond half of it above."""
    student, teacher = pair(shape)
    farthest = (student - teacher).abs().max().item()
    near = Huber(1.01 * farthest)(student, teacher)
    close(near, 0.5 * squared_mean(student, teacher))
    delta = 0.99 * (student - teacher).abs().min().item()
    linear = delta * (absolute_mean(student, teacher) - 0.5 * delta)
    close(Huber(delta)(student, teacher), linear)


def test_huber_has_one_value_and_slope_where_it_turns() -> None:
    """The step of the gradient over the turn is as small as the step of the argument."""
    step, delta = 1e-6, 0.3
    student = torch.tensor([delta - step, delta + step], dtype=torch.float64, requires_grad=True)
    values = Huber(delta)(student, torch.zeros(2, dtype=torch.float64))
    assert (values[1] - values[0]).item() == pytest.approx(2 * step * delta, rel=1e-5)
    (slopes,) = torch.autograd.grad(values.sum(), student)
    assert (slopes[1] - slopes[0]).item() == pytest.approx(0.0, abs=2 * step)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_huber_without_a_turn_is_refused(delta: float) -> None:
    """With the value that came; an infinite one would have gradients that are not numbers."""
    with pytest.raises(ValueError, match=f"huber: delta must be > 0 and finite, got {delta}"):
        Huber(delta)


def test_the_cosine_of_parallel_opposite_and_normal_vectors() -> None:
    """Lengths do not matter."""
    east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert cosine_similarity(east, 5 * east).item() == 1
    assert cosine_similarity(east, -east).item() == -1
    assert cosine_similarity(east, north).item() == 0


def test_the_cosine_of_an_empty_batch_is_empty() -> None:
    """A batch may be empty."""
    assert cosine_similarity(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
