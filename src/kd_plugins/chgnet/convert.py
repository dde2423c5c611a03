"""CHGNet's names, shapes and units, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
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
"""The largest atomic number that CHGNet has an embedding for."""


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
        # CHGNet predicts absolute moments: the energy of a crystal does not depend on their sign.
        arrays["magmoms"] = np.abs(arrays["magmoms"])

    return {
        LETTERS[name]: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()
    }


def from_host(prediction: Mapping[str, Any], n_atoms: int) -> dict[str, np.ndarray]:
    """Return CHGNet's prediction of one structure by our names and in our units.

    The inverse of `to_host`, with what CHGNet predicts besides: atomic energies (N,) in eV,
    element references included, and node embeddings (N, D).

    Args:
        prediction: of ``CHGNet.predict_graph``; ``site_energies`` and ``node_embeddings`` may be
            among it.
        n_atoms: of the structure.

    >>> values = from_host({"e": np.float32(-4.0), "s": np.eye(3) * GPA}, n_atoms=2)
    >>> float(values["energy"]), values["stress"].round(4).tolist()
    (-8.0, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    """
    values: dict[str, np.ndarray] = {}

    if "e" in prediction:
        # In double precision, as single precision would round the total of a large structure.
        energy_per_atom = np.float64(prediction["e"])
        values["energy"] = np.asarray(energy_per_atom * n_atoms)
        values["energy_per_atom"] = np.asarray(energy_per_atom)
    if "f" in prediction:
        values["forces"] = prediction["f"]
    if "s" in prediction:
        values["stress"] = full_3x3_to_voigt_6_stress(prediction["s"]) / GPA
    if "m" in prediction:
        values["magmoms"] = prediction["m"]
    if "site_energies" in prediction:
        values["atomic_energies"] = prediction["site_energies"]
    if "node_embeddings" in prediction:
        values["node_embeddings"] = prediction["node_embeddings"]
    return values


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

    # Without periodicity along a vector an atom has no neighbours beyond the box.
    lattice = Lattice(hand * atoms.cell.array, pbc=tuple(map(bool, atoms.pbc)))
    return Structure(lattice, atoms.get_chemical_symbols(), fractions)
