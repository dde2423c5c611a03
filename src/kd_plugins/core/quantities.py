"""The table of physical quantities that students, teachers and labels have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from kd_plugins.names import look_up

Scope = Literal["atom", "structure"]


@dataclass(frozen=True)
class Quantity:
    """One row of the table.

    The scope is declared, never guessed from a tensor's length: a batch of twelve one-atom
    structures has as many atoms as structures.

    Args:
        name: the field's standard term.
        scope: ``"atom"`` (leading axis N) or ``"structure"`` (leading axis B).
        shape: trailing axes; a letter stands for a size that the model decides.
        unit: ASE unit, or ``"1"`` for learned features.
    """

    name: str
    scope: Scope
    shape: tuple[int | str, ...]
    unit: str

    def n_items(self, n_structures: int, n_atoms: int) -> int:
        """Return the expected length of the leading axis.

        >>> QUANTITIES["forces"].n_items(n_structures=2, n_atoms=7)
        7
        """
        return n_atoms if self.scope == "atom" else n_structures

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether the trailing axes of a tensor are those of this quantity.

        >>> QUANTITIES["stress"].fits((6,)), QUANTITIES["stress"].fits((3, 3))
        (True, False)
        """
        return len(shape) == len(self.shape) and all(
            isinstance(expected, str) or expected == found
            for expected, found in zip(self.shape, shape, strict=True)
        )


_ROWS = (
    Quantity("energy", "structure", (), "eV"),
    Quantity("energy_per_atom", "structure", (), "eV/atom"),
    Quantity("forces", "atom", (3,), "eV/Å"),
    Quantity("stress", "structure", (6,), "eV/Å³"),
    Quantity("atomic_energies", "atom", (), "eV"),
    Quantity("magmoms", "atom", (), "μB"),
    Quantity("node_embeddings", "atom", ("D",), "1"),
    Quantity("equivariant_embeddings", "atom", ("M", "D"), "1"),
    Quantity("force_derivatives", "atom", ("K", 3), "eV/Å²"),
)

_SPREADS = tuple(
    replace(row, name=f"{row.name}_std")
    for row in _ROWS
    if row.name in ("energy", "forces", "stress", "atomic_energies", "magmoms")
)

QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {row.name: row for row in (*_ROWS, *_SPREADS)}
)
"""Name to row. ``stress`` is Voigt (xx, yy, zz, yz, xz, xy), tension positive, as in ASE.
``<name>_std`` is the standard deviation of a quantity over several teachers, number by number.
``equivariant_embeddings`` holds all (l, m) rows, M = (lmax + 1)², row 0 being l = 0, which is
``node_embeddings``. ``force_derivatives`` are K directional derivatives of the forces."""


def quantity(name: str) -> Quantity:
    """Return the row called ``name``.

    Raises:
        KeyError: if there is none; the message suggests the nearest name.

    >>> quantity("energy").unit
    'eV'
    """
    return look_up(name, QUANTITIES, "quantity")
