"""What makes two structures the same: elements, cell and positions up to lattice translations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

Array = np.ndarray[Any, Any]

HEAVIEST = 118
SAME_POSITION = 1e-3
"""Å by which positions and cell vectors may differ: more than float32 loses, less than a move."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure as far as its identity goes.

    Args:
        atomic_numbers: (N,), each of an element, 1 to 118.
        positions: (N, 3) in Å.
        cell: (3, 3) in Å, rows are the lattice vectors; zeros where there is none.
        pbc: (3,), along which lattice vectors it is periodic.

    Raises:
        ValueError: for shapes that do not match, what are no real numbers, a number that is not
            finite, or an atomic number that no element has.

    >>> Structure([29], [[0.0, 0.0, 0.0]], np.eye(3) * 3.6, [True, True, True]).n_atoms
    1
    """

    atomic_numbers: Int[Array, " N"]
    positions: Float[Array, "N 3"]
    cell: Float[Array, "3 3"]
    pbc: Bool[Array, "3"]

    def __init__(
        self, atomic_numbers: object, positions: object, cell: object, pbc: object
    ) -> None:
        object.__setattr__(self, "atomic_numbers", _elements(atomic_numbers))
        object.__setattr__(self, "positions", _reals("positions", positions))
        object.__setattr__(self, "cell", _reals("cell", cell))
        object.__setattr__(self, "pbc", _flags("pbc", pbc))
        expected = {
            "atomic_numbers": (self.n_atoms,),
            "positions": (self.n_atoms, 3),
            "cell": (3, 3),
            "pbc": (3,),
        }
        for name, shape in expected.items():
            _check_array(name, getattr(self, name), shape)
        if not self.n_atoms:
            raise ValueError("atomic_numbers: expected one atom or more, got none")

    @property
    def n_atoms(self) -> int:
        """How many atoms it has."""
        return len(np.atleast_1d(self.atomic_numbers))

    def difference(self, other: Structure) -> str | None:
        """Return in words how another structure differs, or None if it is the same.

        >>> one = Structure([29], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)
        >>> one.difference(Structure([29], [[1.0, 0.0, 0.0]], np.eye(3), [True] * 3))
        >>> one.difference(Structure([78], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3))
        'atom 0 is element 29 here and 78 there'
        """
        if self.n_atoms != other.n_atoms:
            return f"it has {self.n_atoms} atoms here and {other.n_atoms} there"
        elements = np.flatnonzero(self.atomic_numbers != other.atomic_numbers)
        if len(elements):
            atom = elements[0]
            here, there = self.atomic_numbers[atom], other.atomic_numbers[atom]
            return f"atom {atom} is element {here} here and {there} there"
        if not np.array_equal(self.pbc, other.pbc):
            return f"it is periodic along {self.pbc.tolist()} here and {other.pbc.tolist()} there"
        if np.abs(self.cell - other.cell).max() > SAME_POSITION:
            return f"its cell differs by {np.abs(self.cell - other.cell).max():.4f} Å"
        return self._moved(other)

    def _moved(self, other: Structure) -> str | None:
        distances = np.linalg.norm(self._apart(other), axis=1)
        if self.n_atoms and distances.max() > SAME_POSITION:
            return f"atom {distances.argmax()} is {distances.max():.4f} Å away from where it was"
        return None

    def _apart(self, other: Structure) -> NDArray[np.float64]:
        """Return each atom's displacement without whole lattice vectors, (N, 3)."""
        apart = self.positions - other.positions
        translations = np.round(apart @ np.linalg.pinv(self.cell)) * self.pbc
        return apart - translations @ self.cell


def _elements(given: object) -> NDArray[np.int64]:
    """Return atomic numbers, which nothing has rounded or wrapped."""
    numbers = _reals("atomic_numbers", given)
    strange = np.flatnonzero((numbers != np.round(numbers)) | (numbers < 1) | (numbers > HEAVIEST))
    if len(strange):
        atom = strange[0]
        raise ValueError(
            f"atomic_numbers: expected elements, 1 to {HEAVIEST}, got {numbers.flat[atom]:g} for "
            f"atom {atom}"
        )
    return numbers.astype(np.int64)


def _reals(name: str, given: object) -> NDArray[np.float64]:
    try:
        array = np.asarray(given)
        if array.dtype.kind in "iufO" or array.size == 0:
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):  # ragged, or no numbers
        pass
    raise ValueError(f"{name}: expected real numbers, got {given!r:.60}")


def _flags(name: str, given: object) -> NDArray[np.bool_]:
    try:
        array = np.asarray(given)
        if array.dtype == bool or np.isin(array, (0, 1)).all():
            return array.astype(bool)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name}: expected True or False a lattice vector, got {given!r:.60}")


def _check_array(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or inf")
