"""How relations are made of atoms: the sparse matrix A of L = A X, and its transpose."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class Incidence:
    """A matrix (E, N) whose row m is ``scale[m]`` times atom ``pairs[0, m]`` minus ``pairs[1, m]``.

    Both products are sums over the few entries of a row, which `F.embedding_bag` does in one pass
    over its output, without atomic additions.

    Args:
        pairs: (2, E) atoms; without it the relations are the atoms themselves, A = diag(scale).
        scale: (E,) factor of a row.
        n_atoms: N.
    """

    def __init__(
        self, pairs: Int[Tensor, "2 E"] | None, scale: Float[Tensor, " E"], n_atoms: int
    ) -> None:
        self.pairs, self.scale, self.n_atoms = pairs, scale, n_atoms
        if pairs is not None:
            self._atoms = pairs.T.contiguous()

    def rows(self, table: Float[Tensor, "N W"], block: slice) -> Float[Tensor, "B W"]:
        """Return some rows of A @ table in the table's precision, by subtraction."""
        if self.pairs is None:
            return table[block] * self.scale[block, None].to(table.dtype)
        first, second = self.pairs[0, block], self.pairs[1, block]
        differences = table.index_select(0, first).sub_(table.index_select(0, second))
        return differences.mul_(self.scale[block, None])

    def product(self, table: Float[Tensor, "N B"]) -> Float[Tensor, "E B"]:
        """Return A @ table, scaled last: differences of equal numbers are exactly zero."""
        if self.pairs is None:
            return table * self.scale[:, None]
        signs = self._signs
        differences = F.embedding_bag(self._atoms, table, per_sample_weights=signs, mode="sum")
        return differences.mul_(self.scale[:, None])

    def transposed_product(self, values: Float[Tensor, "E B"]) -> Float[Tensor, "N B"]:
        """Return Aᵀ @ values."""
        if self.pairs is None:
            return values * self.scale[:, None]
        relations, weights, starts = self._transposed_entries
        return F.embedding_bag(relations, values, starts, per_sample_weights=weights, mode="sum")

    def add_rows(
        self, table: Float[Tensor, "N W"], block: slice, values: Float[Tensor, "B W"]
    ) -> None:
        """Add Aᵀ @ values to the table, values being non-zero in some rows only."""
        values = values * self.scale[block, None].to(table.dtype)
        if self.pairs is None:
            table[block] += values
        else:
            table.index_add_(0, self.pairs[0, block], values)
            table.index_add_(0, self.pairs[1, block], values, alpha=-1)

    @cached_property
    def _signs(self) -> Tensor:
        """Return the entries of the rows without their scale, (E, 2)."""
        return self.scale.new_tensor([1.0, -1.0]).repeat(len(self.scale), 1)

    @cached_property
    def _transposed_entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows and values of all entries by column, and where columns start."""
        atoms, order = self._atoms.flatten().sort()
        starts = torch.searchsorted(atoms, torch.arange(self.n_atoms, device=atoms.device))
        values = torch.stack([self.scale, -self.scale], dim=1)
        return order // 2, values.flatten()[order], starts
