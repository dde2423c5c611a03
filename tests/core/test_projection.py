"""Laws of the projection head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_plugins.core import Projection
from tests.core.draws import normal, orthogonal
from tests.tolerances import REORDERED

LMAX = 2
N_ROWS = (LMAX + 1) ** 2
WIDTHS = [(4, 4), (3, 5), (5, 3), (1, 4)]

every_width = pytest.mark.parametrize(("student_width", "teacher_width"), WIDTHS)


def trained(student_width: int, teacher_width: int) -> Projection:
    """Return a projection in float64 that has moved from where it started, its bias too."""
    projection = Projection(student_width, teacher_width, LMAX, seed=0).double()
    with torch.no_grad():
        for seed, parameter in enumerate(projection.parameters()):
            parameter += normal(*parameter.shape, seed=seed)
    return projection


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare the same sums in another order."""
    torch.testing.assert_close(actual, expected, **REORDERED[actual.dtype])


@pytest.mark.parametrize("lmax", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_widths_start_as_the_identity(lmax: int, seed: int) -> None:
    """Bit for bit, whatever the seed."""
    embeddings = normal(6, (lmax + 1) ** 2, 4, dtype=torch.float32)
    assert torch.equal(Projection(4, 4, lmax, seed)(embeddings), embeddings)


@pytest.mark.parametrize(("student_width", "teacher_width"), [(3, 5), (5, 3), (1, 4), (4, 1)])
def test_other_widths_start_orthonormal(student_width: int, teacher_width: int) -> None:
    """Lengths and angles survive as far as the narrower side allows; degrees differ."""
    weight = Projection(student_width, teacher_width, LMAX, seed=0).weight.detach()
    narrow = min(student_width, teacher_width)
    tall = weight if teacher_width > student_width else weight.mT
    close(tall.mT @ tall, torch.eye(narrow).expand(LMAX + 1, -1, -1))
    assert not torch.allclose(weight[0].abs(), weight[1].abs())


@every_width
def test_it_commutes_with_rotations(student_width: int, teacher_width: int) -> None:
    """Channels are mixed, rows are not: any orthogonal matrix within a degree commutes."""
    projection, embeddings = trained(student_width, teacher_width), normal(6, N_ROWS, student_width)
    turn = torch.block_diag(
        *(orthogonal(2 * degree + 1, seed=degree) for degree in range(LMAX + 1))
    )
    turn[0, 0] = 1.0
    close(projection(turn @ embeddings), turn @ projection(embeddings))


def test_degrees_do_not_share_a_matrix() -> None:
    """The proof that the law above can fail: a turn that mixes degrees does not commute."""
    projection, embeddings = trained(4, 4), normal(6, N_ROWS, 4)
    turn = orthogonal(N_ROWS)
    assert not torch.allclose(projection(turn @ embeddings), turn @ projection(embeddings))


@every_width
def test_the_bias_belongs_to_degree_zero(student_width: int, teacher_width: int) -> None:
    """A bias on a vector would single out a direction of space."""
    projection = trained(student_width, teacher_width)
    projected = projection(torch.zeros(6, N_ROWS, student_width, dtype=torch.float64))
    assert torch.equal(projected[:, 0], projection.bias.expand(6, -1))
    assert torch.equal(projected[:, 1:], torch.zeros_like(projected[:, 1:]))


@every_width
@pytest.mark.parametrize("lmax", range(LMAX + 1))
def test_the_first_degrees_alone_give_the_first_rows(
    student_width: int, teacher_width: int, lmax: int
) -> None:
    """With l = 0 alone, M = 1, the projection is the first row of the whole one."""
    projection, embeddings = trained(student_width, teacher_width), normal(6, N_ROWS, student_width)
    n_rows = (lmax + 1) ** 2
    close(projection(embeddings[:, :n_rows]), projection(embeddings)[:, :n_rows])


@every_width
def test_atoms_do_not_see_each_other(student_width: int, teacher_width: int) -> None:
    """Two batches combine to one, and no atom is a batch too."""
    projection, embeddings = trained(student_width, teacher_width), normal(6, N_ROWS, student_width)
    parts = [projection(part) for part in embeddings.split([0, 2, 4])]
    close(torch.cat(parts), projection(embeddings))


def test_gradient_is_that_of_the_value() -> None:
    """With respect to embeddings, matrices and bias, against central differences."""
    projection, embeddings = trained(2, 3), normal(2, N_ROWS, 2).requires_grad_()
    names = [name for name, _ in projection.named_parameters()]

    def project(embeddings: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(projection, parameters, (embeddings,))

    assert torch.autograd.gradcheck(project, (embeddings, *projection.parameters()))


@every_width
def test_the_seed_decides_and_the_global_state_is_left_alone(
    student_width: int, teacher_width: int
) -> None:
    """So that a student starts the same with and without a projection beside it."""
    before = torch.get_rng_state()
    twins = [Projection(student_width, teacher_width, LMAX, seed=7) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(twins[0].weight, twins[1].weight)
    other = Projection(student_width, teacher_width, LMAX, seed=8)
    assert torch.equal(twins[0].weight, other.weight) == (student_width == teacher_width)


def test_its_state_is_its_parameters() -> None:
    """What can be computed is not saved, and what is saved brings the projection back."""
    projection, copy = trained(3, 5), trained(3, 5)
    assert set(projection.state_dict()) == {"weight", "bias"}
    copy.load_state_dict(projection.state_dict())
    embeddings = normal(6, N_ROWS, 3)
    assert torch.equal(copy(embeddings), projection(embeddings))


@pytest.mark.parametrize(
    ("widths", "lmax", "message"),
    [
        ((0, 4), 0, "student_width: expected a whole number of 1 or more, got 0"),
        ((4, -1), 0, "teacher_width: expected a whole number of 1 or more, got -1"),
        ((4, 4), -1, "lmax: expected a whole number of 0 or more, got -1"),
    ],
)
def test_impossible_sizes_are_refused(widths: tuple[int, int], lmax: int, message: str) -> None:
    """With the number that came."""
    with pytest.raises(ValueError, match=message):
        Projection(*widths, lmax=lmax, seed=0)


@pytest.mark.parametrize("shape", [(6, N_ROWS + 1, 4), (6, N_ROWS, 3), (6, 2, 4)])
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Too many rows, another width, a degree cut in two."""
    with pytest.raises(ValueError, match="embeddings: expected .*, got"):
        Projection(4, 4, LMAX, seed=0)(torch.zeros(shape))
