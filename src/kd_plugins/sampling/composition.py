"""Organic, complex and inorganic crystals, told apart by their elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from ase.data import atomic_numbers as number_of
from numpy.typing import NDArray

from kd_plugins.names import suggestion
from kd_plugins.structures.readers import LabelledStructure

Kind = Literal["organic", "complex", "inorganic"]

ORGANIC_ELEMENTS = ("H", "C", "N", "O", "P", "S", "F", "Cl", "Br", "I")
"""Paper 004, Experimental. An organic crystal needs no carbon: ice is one."""
FEWEST_IN_COMPLEX = 2
"""Organic elements that a complex has at least."""
LEAST_PERCENT_IN_COMPLEX = 80
"""Percentage of a complex's atoms that are of organic elements at least."""

_ORGANIC_NUMBERS = tuple(number_of[symbol] for symbol in ORGANIC_ELEMENTS)
_LARGEST = max(number_of.values())


def kind(atomic_numbers: Sequence[int] | NDArray[np.integer[Any]]) -> Kind:
    """Return what kind of crystal has these atoms, as paper 004 (Experimental) has it.

    Organic: all elements are among `ORGANIC_ELEMENTS`. Complex: two or more of those, at least one
    other element, and 80 % of the atoms or more are of the organic ones. Inorganic: all else.

    Args:
        atomic_numbers: (N,) of all atoms, not of the elements alone, for they are counted.

    Raises:
        ValueError: for no atoms, or a number that no element has.

    >>> kind([8, 1, 1]), kind([29] + 3 * [6, 8]), kind([11, 17])
    ('organic', 'complex', 'inorganic')
    """
    numbers = np.asarray(atomic_numbers)
    is_list = numbers.ndim == 1 and len(numbers) > 0 and numbers.dtype.kind in "iu"
    if not is_list or numbers.min() < 1 or numbers.max() > _LARGEST:
        raise ValueError(
            f"atomic_numbers: expected (N,) numbers of elements, got {str(atomic_numbers)[:80]}"
        )
    organic = np.isin(numbers, _ORGANIC_NUMBERS)
    if organic.all():
        return "organic"
    enough_elements = len(np.unique(numbers[organic])) >= FEWEST_IN_COMPLEX
    enough_atoms = 100 * organic.sum() >= LEAST_PERCENT_IN_COMPLEX * len(numbers)
    return "complex" if enough_elements and enough_atoms else "inorganic"


def of_kind(frames: Iterable[LabelledStructure], wanted: Kind) -> Iterator[LabelledStructure]:
    """Yield the frames of one kind.

    Raises:
        KeyError: at once, for a kind that there is not.
    """
    if wanted not in get_args(Kind):
        raise KeyError(f"unknown kind of crystal {wanted!r}{suggestion(wanted, get_args(Kind))}")
    return (frame for frame in frames if kind(frame.atoms.numbers) == wanted)
