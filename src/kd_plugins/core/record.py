"""One structure and what its teacher says of it, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from kd_plugins.core.manifest import DTYPES, Manifest
from kd_plugins.core.quantities import quantity
from kd_plugins.core.structure import Structure
from kd_plugins.core.targets import TeacherTargets

_IDENTITY = ("atomic_numbers", "positions", "cell", "pbc")


@dataclass(frozen=True)
class Record:
    """One structure and what its teacher says of it.

    Args:
        structure_id: its identity, unique in a store.
        structure: what is checked when the targets are read.
        values: quantity name to tensor, without a batch axis for structure quantities: energy is
            (), forces (N, 3). Quantities of the store that are left out are missing.
    """

    structure_id: str
    structure: Structure
    values: Mapping[str, Tensor]

    def targets(self) -> TeacherTargets:
        """Return the values as a batch of one, validated.

        Raises:
            ValueError: for a wrong shape or a value that is not finite.
        """
        batched = {
            name: value if quantity(name).scope == "atom" else value.unsqueeze(0)
            for name, value in self.values.items()
        }
        n_atoms = torch.tensor([self.structure.n_atoms])
        return TeacherTargets((self.structure_id,), n_atoms, batched)


def pack(record: Record, manifest: Manifest) -> bytes:
    """Return a record as safetensors bytes, each quantity in the store's precision.

    Raises:
        KeyError: for a quantity that the store does not hold.
        ValueError: for a wrong shape or a value that is not finite.
    """
    unknown = sorted(set(record.values) - set(manifest.dtypes))
    if unknown:
        raise KeyError(
            f"structure {record.structure_id!r}: the store holds no {unknown[0]!r}; it holds "
            f"{', '.join(manifest.dtypes)}"
        )
    record.targets()
    structure = record.structure
    arrays = {
        name: _cast(value, manifest.dtypes[name], f"structure {record.structure_id!r}: {name}")
        for name, value in record.values.items()
    }
    arrays["structure.atomic_numbers"] = structure.atomic_numbers.astype(np.int16)
    arrays["structure.positions"] = structure.positions.astype(np.float32)
    arrays["structure.cell"] = structure.cell.astype(np.float32)
    arrays["structure.pbc"] = structure.pbc
    return save(arrays)


def _cast(value: Tensor, dtype: str, what: str) -> NDArray[np.generic]:
    array = value.detach().cpu().to(DTYPES[dtype]).contiguous().numpy()
    if dtype == "float16" and not np.isfinite(array).all():
        raise ValueError(f"{what} has numbers beyond float16's 65504; keep it as float32")
    return array


def unpack(structure_id: str, payload: bytes) -> Record:
    """Return the record that `pack` made, its quantities in alphabetical order."""
    arrays = load(payload)
    structure = Structure(*(arrays.pop(f"structure.{name}") for name in _IDENTITY))
    values = {name: torch.from_numpy(array.copy()) for name, array in sorted(arrays.items())}
    return Record(structure_id, structure, values)
