"""The molecules of a crystal: which atoms belong together, and where each molecule is whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

from kd_plugins.numbers import check_number, shown

BOND_TOLERANCE = 1.25
"""Two atoms are bound if nearer than this times the sum of their covalent radii. A bond has about
1.0, the shortest hydrogen bonds have 1.5."""

MOST_TOLERANCE = 10.0
"""Beyond it everything is bound to everything, and the search for neighbours takes for ever."""

Bonds = list[list[tuple[int, NDArray[np.int64]]]]


@dataclass(frozen=True, eq=False)
class Molecules:
    """How the atoms of one crystal make molecules.

    It holds for every structure with the same atoms as long as none of them is moved by a lattice
    vector alone, so also for one that was relaxed or strained.

    Args:
        index: (N,) the molecule of each atom; molecules are numbered by their first atom.
        offsets: (N, 3) lattice vectors to add to an atom, so that its molecule is in one piece; 0
            for the first atom of each molecule.
        bonds: (N - M, 2) atoms that are bound, no more than join each molecule, in the order in
            which one walks through it from its first atom.
    """

    index: NDArray[np.int64]
    offsets: NDArray[np.int64]
    bonds: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.index.max()) + 1

    @property
    def members(self) -> tuple[NDArray[np.int64], ...]:
        """The atoms of each molecule."""
        return tuple(np.flatnonzero(self.index == number) for number in range(len(self)))

    def positions(self, atoms: Atoms) -> NDArray[np.float64]:
        """Return the atoms' positions in Å, (N, 3), with every molecule in one piece.

        Raises:
            ValueError: for a structure with another number of atoms.
        """
        self.check(atoms)
        return atoms.positions + self.offsets @ atoms.cell.array

    def centroids(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean position of each molecule's atoms, all with the same weight, (M, 3).

        Args:
            positions: (N, 3) with every molecule in one piece, as `positions` returns them.
        """
        sums = np.zeros((len(self), 3))
        np.add.at(sums, self.index, positions)
        return sums / np.bincount(self.index)[:, None]

    def check(self, atoms: Atoms) -> None:
        """Raise a ValueError for a structure with another number of atoms."""
        if len(atoms) != len(self.index):
            raise ValueError(
                f"molecules: expected the structure of {len(self.index)} atoms in which they were "
                f"found, got {atoms.get_chemical_formula()} with {len(atoms)}; call find_molecules"
            )


def find_molecules(atoms: Atoms, tolerance: float = BOND_TOLERANCE) -> Molecules:
    """Return the molecules of a structure, through its periodic boundaries.

    Args:
        atoms: a structure, wrapped or not.
        tolerance: two atoms are bound if nearer than this times the sum of their covalent radii.

    Raises:
        ValueError: for no atoms, a tolerance that is not above 0, or if a chain of bonds joins an
            atom to its own periodic image, as in a metal, a salt or a polymer.

    >>> water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    >>> water.set_cell([3.0, 3.0, 3.0])
    >>> water.set_pbc(True)
    >>> water.wrap()
    >>> find_molecules(water).offsets[2].tolist()
    [-1, 0, 0]
    """
    check_number("tolerance", tolerance, above=0, most=MOST_TOLERANCE)
    if not isinstance(atoms, Atoms):
        raise ValueError(f"find_molecules: expected ase.Atoms, got {shown(atoms)}")
    if len(atoms) == 0:
        raise ValueError("find_molecules: expected a structure with atoms, got one without any")
    bonds = _bonds(atoms, tolerance)
    index = np.full(len(atoms), -1)
    offsets = np.zeros((len(atoms), 3), dtype=np.int64)
    walked: list[tuple[int, int]] = []
    for first in range(len(atoms)):
        if index[first] < 0:
            index[first] = index.max() + 1
            walked += _walk(first, bonds, index, offsets)
    _check_finite(atoms, bonds, index, offsets)
    return Molecules(index, offsets, np.array(walked, dtype=np.int64).reshape(-1, 2))


def _bonds(atoms: Atoms, tolerance: float) -> Bonds:
    """Return of each atom what it is bound to, and in which cell that lies."""
    cutoffs = natural_cutoffs(atoms, mult=tolerance)
    bonds: Bonds = [[] for _ in atoms]
    for i, j, shift in zip(*neighbor_list("ijS", atoms, cutoffs), strict=True):
        bonds[i].append((int(j), shift.astype(np.int64)))
    return bonds


def _walk(
    first: int, bonds: Bonds, index: NDArray[np.int64], offsets: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Fill in the molecule of one atom, breadth first, and return the bonds that led through."""
    walked, todo = [], deque([first])
    while todo:
        i = todo.popleft()
        for j, shift in bonds[i]:
            if index[j] < 0:
                index[j], offsets[j] = index[first], offsets[i] + shift
                walked.append((i, j))
                todo.append(j)
    return walked


def _check_finite(
    atoms: Atoms, bonds: Bonds, index: NDArray[np.int64], offsets: NDArray[np.int64]
) -> None:
    for i, neighbours in enumerate(bonds):
        for j, shift in neighbours:
            if np.any(offsets[i] + shift != offsets[j]):
                members = np.flatnonzero(index == index[i])
                raise ValueError(
                    f"{atoms.get_chemical_formula()}: expected separate molecules, but "
                    f"{_named(atoms, members)} are bound to their own periodic images (through "
                    f"{_named(atoms, [i, j])}); a metal, salt or polymer has no molecules, and for "
                    "molecules that nearly touch, lower the tolerance"
                )


def _named(atoms: Atoms, members: NDArray[np.int64] | list[int], most: int = 6) -> str:
    names = [f"{atoms.symbols[atom]}{atom}" for atom in members[:most]]
    return ", ".join(names) + (f" and {len(members) - most} more" if len(members) > most else "")
