"""Central differences of forces are exact where they should be, and converge elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_plugins.core import force_derivative, random_directions
from tests.core.draws import normal
from tests.tolerances import FINITE_DIFFERENCE, REORDERED

N_ATOMS = torch.tensor([1, 4, 0, 3])


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def hooke(positions: Tensor) -> Tensor:
    """Forces of a quadratic potential that couples all atoms."""
    return -(hessian(len(positions)) @ positions.flatten()).reshape(-1, 3)


def hessian(n_atoms: int) -> Tensor:
    """Return a random symmetric matrix over all 3 N coordinates."""
    half = normal(3 * n_atoms, 3 * n_atoms, seed=1)
    return half + half.T


def quartic(positions: Tensor) -> Tensor:
    """Forces that are cubic in the positions."""
    return -positions.pow(3)


def pairwise(positions: Tensor) -> Tensor:
    """Forces of a smooth repulsion between all pairs of atoms."""
    differences = positions.unsqueeze(1) - positions.unsqueeze(0)
    decay = torch.exp(-differences.square().sum(dim=-1, keepdim=True))
    return (2 * decay * differences).sum(dim=1)


@pytest.mark.parametrize("step", [0.01, 0.5, 2.0])
def test_exact_on_a_quadratic_potential(step: float) -> None:
    """Minus the Hessian times the direction, whatever the step and wherever it is taken."""
    positions, direction = normal(3, 3, seed=2), normal(3, 3, seed=3)
    derivative = force_derivative(hooke, positions, direction, step)
    expected = -(hessian(3) @ direction.flatten()).reshape(3, 3)
    torch.testing.assert_close(derivative, expected, rtol=1e-12 / step, atol=1e-12 / step)


@pytest.mark.parametrize("step", [0.4, 0.1, 0.02])
def test_the_error_falls_with_the_square_of_the_step(step: float) -> None:
    """On cubic forces it is h² v³ exactly, so half the step leaves a quarter of it."""
    positions, direction = normal(4, 3, seed=2), normal(4, 3, seed=3)
    exact = -3 * positions.square() * direction
    whole, half = (
        force_derivative(quartic, positions, direction, h) - exact for h in (step, step / 2)
    )
    torch.testing.assert_close(whole, -(step**2) * direction.pow(3), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(half, whole / 4, rtol=0.0, atol=1e-12)


def test_it_is_the_derivative_of_forces() -> None:
    """Where autograd can be trusted, both agree."""
    positions, direction = normal(5, 3, seed=2), normal(5, 3, seed=3)
    _, expected = torch.autograd.functional.jvp(pairwise, positions, direction)
    derivative = force_derivative(pairwise, positions, direction, step=1e-4)
    torch.testing.assert_close(derivative, expected, **FINITE_DIFFERENCE[torch.float64])


def test_forces_are_evaluated_ahead_and_behind() -> None:
    """Ahead, then behind; the positions themselves are left alone."""
    seen: list[Tensor] = []
    positions, direction = normal(2, 3, seed=2), normal(2, 3, seed=3)
    before = positions.clone()
    force_derivative(lambda r: seen.append(r) or r, positions, direction, step=0.25)
    assert torch.equal(positions, before)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0] - seen[1], 0.5 * direction, **REORDERED[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_flow_through_the_forces(dtype: torch.dtype) -> None:
    """A student learns its curvature through its parameters."""
    stiffness = torch.ones((), dtype=dtype, requires_grad=True)
    positions, direction = normal(2, 3, dtype=dtype), normal(2, 3, seed=3, dtype=dtype)
    derivative = force_derivative(lambda r: -stiffness * r, positions, direction, step=0.5)
    (gradient,) = torch.autograd.grad(derivative.sum(), stiffness)
    torch.testing.assert_close(gradient, -direction.sum(), **REORDERED[dtype])


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan")])
def test_no_step_is_refused(step: float) -> None:
    """With its unit."""
    with pytest.raises(ValueError, match=f"step must be > 0 Å, got {step}"):
        force_derivative(hooke, torch.zeros(1, 3), torch.ones(1, 3), step)


def test_directions_have_unit_length_a_structure() -> None:
    """Over all 3 n numbers of each, the structure without atoms left out."""
    directions = random_directions(N_ATOMS, generator())
    assert directions.shape == (int(N_ATOMS.sum()), 3)
    lengths = torch.stack([part.norm() for part in directions.split(N_ATOMS.tolist())])
    torch.testing.assert_close(lengths, (N_ATOMS > 0).float(), **REORDERED[torch.float32])


def test_directions_follow_their_generator_alone() -> None:
    """The same seed gives the same directions; the next draw and the global state differ."""
    state, ours = torch.get_rng_state(), generator()
    first, second = random_directions(N_ATOMS, ours), random_directions(N_ATOMS, ours)
    assert torch.equal(random_directions(N_ATOMS, generator()), first)
    assert not torch.equal(first, second)
    assert not torch.equal(random_directions(N_ATOMS, generator(1)), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_directions_favour_no_axis() -> None:
    """The mean of v vᵀ over many one-atom structures is a third of the identity."""
    directions = random_directions(torch.ones(20_000, dtype=torch.long), generator())
    covariance = directions.T @ directions / len(directions)
    torch.testing.assert_close(covariance, torch.eye(3) / 3, rtol=0.0, atol=0.02)


def test_no_structures_have_no_directions() -> None:
    """A batch may be empty."""
    assert random_directions(torch.zeros(0, dtype=torch.long), generator()).shape == (0, 3)
