"""Classify crystals as organic, complex or inorganic by their elements (Taniguchi 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from ase.data import atomic_numbers as number_of
from numpy.typing import NDArray

from kd_plugins.names import renamed_argument, suggestion
from kd_plugins.structures.readers import LabelledStructure

Kind = Literal["organic", "complex", "inorganic"]

ORGANIC_ELEMENTS = ("H", "C", "N", "O", "P", "S", "F", "Cl", "Br", "I")
"""Taniguchi 2024, Experimental. An organic crystal needs no carbon: ice is one."""

FEWEST_IN_COMPLEX = 2
"""The least number of organic elements in a complex."""

LEAST_PERCENT_IN_COMPLEX = 80
"""The least percentage of a complex's atoms that are of organic elements."""

_ORGANIC_NUMBERS = tuple(number_of[symbol] for symbol in ORGANIC_ELEMENTS)
_LARGEST = max(number_of.values())


def kind(atomic_numbers: Sequence[int] | NDArray[np.integer[Any]]) -> Kind:
    """Return the kind of crystal with these atoms, by the rule of Taniguchi 2024 (Experimental).

    Organic: all elements are among `ORGANIC_ELEMENTS`. Complex: two or more of those, at least one
    other element, and 80 % of the atoms or more are of the organic ones. Inorganic: all else.

    Args:
        atomic_numbers: (N,) of all atoms, not only of the elements, because atoms are counted.

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
    # In integers, so that exactly 80 % counts.
    enough_atoms = 100 * organic.sum() >= LEAST_PERCENT_IN_COMPLEX * len(numbers)
    return "complex" if enough_elements and enough_atoms else "inorganic"


@renamed_argument("frames", "structures")
def of_kind(structures: Iterable[LabelledStructure], wanted: Kind) -> Iterator[LabelledStructure]:
    """Return the structures of one kind, one after the other.

    Raises:
        KeyError: for an unknown kind, before any structure is read.
    """
    if wanted not in get_args(Kind):
        raise KeyError(f"unknown kind of crystal {wanted!r}{suggestion(wanted, get_args(Kind))}")
    return (one for one in structures if kind(one.atoms.numbers) == wanted)
