"""What makes two structures the same: elements, cell, and positions up to lattice vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

Array = np.ndarray[Any, Any]

HEAVIEST_ELEMENT = 118
POSITION_TOLERANCE = 1e-3
"""Å by which positions and cell vectors of one structure may differ.

More than float32 loses up to some 10,000 Å, and less than an atom moves in a step that matters.
"""

FLATTEST_CELL = 1e-3
"""Volume of a cell over that of a box of the same lengths, from which on it is simply inverted."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The identity of a structure: what must match before a target is given to it.

    Args:
        atomic_numbers: (N,), each of an element, 1 to 118.
        positions: (N, 3) in Å.
        cell: (3, 3) in Å, rows are the lattice vectors; zeros where there is none.
        pbc: (3,), along which lattice vectors it is periodic.

    Raises:
        ValueError: for shapes that do not match, values that are not real numbers, a number that
            is not finite, an atomic number that no element has, or no atom at all.

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
        # The dataclass is frozen, and what callers give is converted first.
        object.__setattr__(self, "atomic_numbers", _as_elements(atomic_numbers))
        object.__setattr__(self, "positions", as_real_numbers("positions", positions))
        object.__setattr__(self, "cell", as_real_numbers("cell", cell))
        object.__setattr__(self, "pbc", _as_booleans("pbc", pbc))

        expected_shapes = {
            "atomic_numbers": (self.n_atoms,),
            "positions": (self.n_atoms, 3),
            "cell": (3, 3),
            "pbc": (3,),
        }
        for name, shape in expected_shapes.items():
            _check_array(name, getattr(self, name), shape)

        if self.n_atoms == 0:
            raise ValueError("atomic_numbers: expected one atom or more, got none")

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return (
            self.atomic_numbers.size if self.atomic_numbers.ndim < 2 else len(self.atomic_numbers)
        )

    def difference(self, other: Structure) -> str | None:
        """Describe the first difference from another structure; None if they are the same.

        Atoms may be wrapped into the cell or not, and lengths may differ by `POSITION_TOLERANCE`.
        Atoms in another order are another structure, since forces belong to atoms by their place.

        >>> one = Structure([29], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)
        >>> one.difference(Structure([29], [[1.0, 0.0, 0.0]], np.eye(3), [True] * 3))
        >>> one.difference(Structure([78], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3))
        'atom 0 is element 29 here and 78 there'
        """
        if self.n_atoms != other.n_atoms:
            return f"it has {self.n_atoms} atoms here and {other.n_atoms} there"

        changed = np.flatnonzero(self.atomic_numbers != other.atomic_numbers)
        if len(changed):
            atom = changed[0]
            here, there = self.atomic_numbers[atom], other.atomic_numbers[atom]
            return f"atom {atom} is element {here} here and {there} there"

        if not np.array_equal(self.pbc, other.pbc):
            return f"it is periodic along {self.pbc.tolist()} here and {other.pbc.tolist()} there"

        # Nearly always nothing has changed at all.
        if (self.positions == other.positions).all() and (self.cell == other.cell).all():
            return None

        cell_change = np.abs(self.cell - other.cell).max()
        if cell_change > POSITION_TOLERANCE:
            return f"its cell differs by {cell_change:.4f} Å"

        distances = np.linalg.norm(self._displacements_from(other), axis=1)
        if distances.max() > POSITION_TOLERANCE:
            return f"atom {distances.argmax()} is {distances.max():.4f} Å away from where it was"
        return None

    def _displacements_from(self, other: Structure) -> NDArray[np.float64]:
        """Return each atom's displacement in Å without whole lattice vectors, (N, 3)."""
        displacements = self.positions - other.positions

        fractional = displacements @ _inverse(self.cell)
        lattice_vectors = np.round(fractional) * self.pbc
        return displacements - lattice_vectors @ self.cell


def _inverse(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a cell, or its pseudo-inverse, which takes six times as long.

    The latter serves slabs and molecules, whose cells may be singular.
    """
    lengths = np.sqrt((cell**2).sum(axis=1)).prod()
    if abs(np.linalg.det(cell)) > FLATTEST_CELL * lengths:
        return np.linalg.inv(cell)
    return np.linalg.pinv(cell)


def as_real_numbers(name: str, value: object) -> NDArray[np.float64]:
    """Return what a caller gave as a float64 array.

    Args:
        name: of the argument or label, for the message.
        value: an array, or nested lists of numbers.

    Raises:
        ValueError: for ragged lists, complex numbers, booleans or text.

    >>> as_real_numbers("forces", [[1, 2, 3]])
    array([[1., 2., 3.]])
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iufO" or array.size == 0:
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):  # ragged, or objects that are not numbers
        pass
    raise ValueError(f"{name}: expected real numbers, got {value!r:.60}")


def _as_elements(value: object) -> NDArray[np.int64]:
    """Return atomic numbers; checked as floats, so that no cast rounds or wraps a wrong one."""
    if (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "iu"
        and value.size
        and 1 <= value.min() <= value.max() <= HEAVIEST_ELEMENT
    ):
        return value.astype(np.int64)

    numbers = as_real_numbers("atomic_numbers", value)
    is_element = (numbers == np.round(numbers)) & (numbers >= 1) & (numbers <= HEAVIEST_ELEMENT)
    if not is_element.all():
        atom = np.flatnonzero(~is_element)[0]
        raise ValueError(
            f"atomic_numbers: expected elements, 1 to {HEAVIEST_ELEMENT}, got "
            f"{numbers.flat[atom]:g} for atom {atom}"
        )

    return numbers.astype(np.int64)


def _as_booleans(name: str, value: object) -> NDArray[np.bool_]:
    try:
        array = np.asarray(value)
        if array.dtype == bool or np.isin(array, (0, 1)).all():
            return array.astype(bool)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name}: expected True or False a lattice vector, got {value!r:.60}")


def _check_array(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or inf")
