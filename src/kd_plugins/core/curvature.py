"""Curvature of a potential along directions, by central differences of its forces.

Autograd is no substitute here: models such as EquiformerV2 detach the rotations of their edges, so
that what autograd gives as a derivative with respect to positions is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Forces = Float[Tensor, "N 3"]


def random_directions(
    n_atoms: Int[Tensor, " B"], generator: torch.Generator
) -> Float[Tensor, "N 3"]:
    """Return one random displacement direction a structure, of unit length over its 3 n numbers.

    >>> directions = random_directions(torch.tensor([2, 3]), torch.Generator().manual_seed(0))
    >>> directions.square().sum(dim=1).split([2, 3])[0].sum().item() - 1 < 1e-6
    True
    """
    # On the CPU, so that a seed gives the same directions on every device.
    directions = torch.randn(int(n_atoms.sum()), 3, generator=generator).to(n_atoms.device)

    structure_index = torch.repeat_interleave(torch.arange(len(n_atoms)).to(n_atoms), n_atoms)
    squares = torch.zeros(len(n_atoms)).to(directions)
    squares = squares.index_add(0, structure_index, directions.square().sum(dim=1))

    return directions / squares.sqrt()[structure_index].unsqueeze(1)


def force_derivative(
    forces: Callable[[Forces], Forces],
    positions: Forces,
    direction: Float[Tensor, "N 3"],
    step: float,
) -> Float[Tensor, "N 3"]:
    """Return (F(r + hv) - F(r - hv)) / 2h, which is minus the Hessian times v, in eV/Å².

    Args:
        forces: positions in Å, (N, 3), to forces in eV/Å, (N, 3); both calls must use the same
            neighbour graph and random state.
        positions: (N, 3) in Å.
        direction: v, (N, 3), of unit length a structure.
        step: h in Å.

    Raises:
        ValueError: if ``step`` is not positive.

    >>> spring = lambda positions: -2.0 * positions
    >>> along_x = torch.tensor([[1.0, 0.0, 0.0]])
    >>> force_derivative(spring, torch.zeros(1, 3), along_x, step=0.01).tolist()
    [[-2.0, 0.0, 0.0]]
    """
    if not step > 0:
        raise ValueError(f"step must be > 0 Å, got {step}")

    ahead = forces(positions + step * direction)
    behind = forces(positions - step * direction)
    return (ahead - behind) / (2.0 * step)
