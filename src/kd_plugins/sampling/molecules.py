"""Find the molecules of a crystal through its periodic boundaries."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

from kd_plugins.numbers import check_number, shown

BOND_TOLERANCE = 1.25
"""Two atoms are bound if nearer than this times the sum of their covalent radii.

A bond has about 1.0, the shortest hydrogen bonds have 1.5."""

LARGEST_TOLERANCE = 10.0
"""Beyond it every atom is bound to all others, and the search for neighbours takes too long."""

Bonds = list[list[tuple[int, NDArray[np.int64]]]]
"""For each atom, its neighbours and the lattice vectors to the cell that each is in."""


@dataclass(frozen=True, eq=False)
class Molecules:
    """The assignment of a crystal's atoms to molecules.

    It is valid for every structure with the same atoms as long as no single atom is moved by a
    lattice vector, so also after a relaxation or a strain.

    Args:
        index: (N,) the molecule of each atom; molecules are numbered by their first atom.
        offsets: (N, 3) lattice vectors to add to an atom, so that its molecule is in one piece; 0
            for the first atom of each molecule.
        bonds: (N - M, 2) pairs of bound atoms: the spanning tree of each molecule, breadth first
            from its first atom.
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
        """Return the mean position (M, 3) of each molecule's atoms, which all count the same.

        Args:
            positions: (N, 3) with every molecule in one piece, as `positions` returns them.
        """
        sums = np.zeros((len(self), 3))
        # `sums[index] += positions` would keep one atom of each molecule only.
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
    check_number("tolerance", tolerance, above=0, most=LARGEST_TOLERANCE)
    if not isinstance(atoms, Atoms):
        raise ValueError(f"find_molecules: expected ase.Atoms, got {shown(atoms)}")
    if len(atoms) == 0:
        raise ValueError("find_molecules: expected a structure with atoms, got one without any")

    bonds = _find_bonds(atoms, tolerance)
    index = np.full(len(atoms), -1)
    offsets = np.zeros((len(atoms), 3), dtype=np.int64)
    tree: list[tuple[int, int]] = []
    for first in range(len(atoms)):
        if index[first] < 0:
            index[first] = index.max() + 1
            tree += _walk(first, bonds, index, offsets)

    _check_finite(atoms, bonds, index, offsets)
    return Molecules(index, offsets, np.array(tree, dtype=np.int64).reshape(-1, 2))


def _find_bonds(atoms: Atoms, tolerance: float) -> Bonds:
    """Return the atoms that each atom is bound to, and the cell that each of these is in."""
    cutoffs = natural_cutoffs(atoms, mult=tolerance)
    bonds: Bonds = [[] for _ in atoms]
    for i, j, shift in zip(*neighbor_list("ijS", atoms, cutoffs), strict=True):
        bonds[i].append((int(j), shift.astype(np.int64)))
    return bonds


def _walk(
    first: int, bonds: Bonds, index: NDArray[np.int64], offsets: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Assign all atoms of one molecule in place, breadth first; return the bonds of its tree."""
    tree, todo = [], deque([first])

    while todo:
        i = todo.popleft()
        for j, shift in bonds[i]:
            if index[j] < 0:
                # The cell of j is that of i, and from there that of the bond.
                index[j], offsets[j] = index[first], offsets[i] + shift
                tree.append((i, j))
                todo.append(j)

    return tree


def _check_finite(
    atoms: Atoms, bonds: Bonds, index: NDArray[np.int64], offsets: NDArray[np.int64]
) -> None:
    """Refuse a molecule that is bound to its own image: two paths lead to different cells."""
    for i, neighbours in enumerate(bonds):
        for j, shift in neighbours:
            if np.any(offsets[i] + shift != offsets[j]):
                members = _name_atoms(atoms, np.flatnonzero(index == index[i]))
                bond = _name_atoms(atoms, [i, j])
                raise ValueError(
                    f"{atoms.get_chemical_formula()}: expected separate molecules, but "
                    f"{members} are bound to their own periodic images (through "
                    f"{bond}); a metal, salt or polymer has no molecules, and for "
                    "molecules that nearly touch, lower the tolerance"
                )


def _name_atoms(atoms: Atoms, members: NDArray[np.int64] | list[int], most: int = 6) -> str:
    names = [f"{atoms.symbols[atom]}{atom}" for atom in members[:most]]
    return ", ".join(names) + (f" and {len(members) - most} more" if len(members) > most else "")
