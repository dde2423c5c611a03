"""How precisely a store keeps each quantity unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from kd_plugins.core.quantities import QUANTITIES, quantity

_DOUBLE = ("energy", "energy_per_atom", "atomic_energies")

DEFAULT_DTYPES: Mapping[str, str] = MappingProxyType(
    {name: "float64" if name in _DOUBLE else "float32" for name in QUANTITIES}
)
"""Quantity to dtype. Energies are differences of large numbers: float32 leaves a total energy of
-1000 eV with 0.06 meV. Of all else its seven digits are more than a teacher's own noise."""


def default_dtypes(names: Iterable[str]) -> dict[str, str]:
    """Return the dtypes of a store that is to hold these quantities.

    Raises:
        KeyError: for a quantity that is not in the table.

    >>> default_dtypes(["energy", "forces"])
    {'energy': 'float64', 'forces': 'float32'}
    """
    return {name: DEFAULT_DTYPES[quantity(name).name] for name in names}
