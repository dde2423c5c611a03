"""CHGNet's names, shapes and units, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import ArrayLike
from pymatgen.core import Lattice, Structure
from torch import Tensor

LETTERS: Mapping[str, str] = MappingProxyType(
    {"energy": "e", "forces": "f", "stress": "s", "magmoms": "m"}
)
"""Our quantity to the letter by which CHGNet calls its counterpart."""

GPA = 160.21766208
"""GPa in 1 eV/Å³, with the digits that CHGNet's model has."""

HEAVIEST = 94
"""Atomic number of the heaviest element that CHGNet knows."""


def to_host(values: Mapping[str, ArrayLike], n_atoms: int) -> dict[str, Tensor]:
    """Return values of one structure as CHGNet trains on them, float32, by its letters.

    ``e`` is the energy per atom in eV, element references included; ``f`` (N, 3) in eV/Å; ``s``
    (3, 3) in GPa, tension positive, which is ASE's sign; ``m`` (N,) the absolute moments in μB.

    Args:
        values: by our names, without a batch axis: energy () in eV of the whole structure, stress
            (6,) in eV/Å³. Quantities that CHGNet has no letter for are left out.
        n_atoms: of the structure.

    >>> to_host({"energy": -8.0, "stress": [0.1, 0, 0, 0, 0, 0]}, n_atoms=2)["s"][0, 0]
    tensor(16.0218)
    """
    arrays = {name: np.asarray(values[name], float) for name in LETTERS if name in values}
    if "energy" in arrays:
        arrays["energy"] = arrays["energy"] / n_atoms
    if "stress" in arrays:
        arrays["stress"] = voigt_6_to_full_3x3_stress(arrays["stress"]) * GPA
    if "magmoms" in arrays:
        arrays["magmoms"] = np.abs(arrays["magmoms"])
    return {
        LETTERS[name]: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()
    }


def to_pymatgen(atoms: Atoms) -> Structure:
    """Return a structure as pymatgen has it, atoms in the same order and not wrapped.

    Left-handed lattice vectors are all reversed, which leaves the lattice as it is: CHGNet would
    take their volume for negative, and so its stress.

    Raises:
        ValueError: without three lattice vectors, which CHGNet needs, without atoms, or for an
            element beyond those that CHGNet knows.
    """
    unknown = [number for number in atoms.numbers if not 1 <= number <= HEAVIEST]
    if unknown or len(atoms) == 0:
        what = f"atomic number {unknown[0]}" if unknown else "no atom"
        raise ValueError(f"CHGNet knows the elements from 1 to {HEAVIEST}; it has {what}")
    if atoms.cell.rank < 3:
        raise ValueError("CHGNet needs three lattice vectors; give a molecule a box")
    hand = 1.0 if atoms.cell.handedness == 1 else -1.0
    fractions = hand * atoms.get_scaled_positions(wrap=False)
    return Structure(Lattice(hand * atoms.cell.array), atoms.get_chemical_symbols(), fractions)
