"""One structure and what its teacher says of it, and its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from kd_plugins.core.quantities import quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.store.manifest import DTYPES, Manifest
from kd_plugins.store.structure import SAME_POSITION, Structure

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
            ValueError: for something else than a tensor of real numbers, a wrong shape or a value
                that is not finite.
        """
        if not isinstance(self.structure, Structure) or not isinstance(self.values, Mapping):
            raise ValueError(
                f"structure {self.structure_id!r}: expected a Structure and a mapping of tensors, "
                f"got {type(self.structure).__name__} and {type(self.values).__name__}"
            )
        for name, value in self.values.items():
            _check_numbers(value, f"structure {self.structure_id!r}: {name}")
        batched = {
            name: value if quantity(name).scope == "atom" else value.unsqueeze(0)
            for name, value in self.values.items()
        }
        n_atoms = torch.tensor([self.structure.n_atoms])
        return TeacherTargets((self.structure_id,), n_atoms, batched)


BATCH_RECORDS, BATCH_BYTES = 1000, 1 << 26
"""What is written at once at most, so the most that copying a store holds in memory."""


def batches(records: Iterable[Record], most: int = BATCH_RECORDS) -> Iterator[list[Record]]:
    """Yield records in lists of so many at most, fewer where they are large.

    A list ends with the record with which it has 64 MB, since a thousand records of embeddings
    may be more than a machine holds.
    """
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += record.structure.positions.nbytes
        size += sum(value.numel() * value.element_size() for value in record.values.values())
        if len(batch) >= most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pack(record: Record, manifest: Manifest) -> bytes:
    """Return a record as safetensors bytes, each quantity in the store's precision.

    Raises:
        KeyError: for a quantity that the store does not hold.
        ValueError: for no value at all, a wrong shape, or a number that is not finite or becomes
            so in the store's precision.
    """
    who = f"structure {record.structure_id!r}"
    unknown = sorted(set(record.values) - set(manifest.dtypes))
    if unknown:
        raise KeyError(
            f"{who}: the store holds no {unknown[0]!r}; it holds {', '.join(manifest.dtypes)}"
        )
    record.targets()
    if not record.values:
        raise ValueError(
            f"{who} has no value of any quantity; the store holds {', '.join(manifest.dtypes)}: "
            "give one or more, or leave the structure out"
        )
    arrays = {
        name: _cast(value, manifest.dtypes[name], f"{who}: {name}")
        for name, value in record.values.items()
    }
    structure = record.structure
    arrays["structure.atomic_numbers"] = structure.atomic_numbers.astype(np.int16)
    arrays["structure.positions"] = _single(structure.positions, f"{who}: positions")
    arrays["structure.cell"] = _single(structure.cell, f"{who}: cell")
    arrays["structure.pbc"] = structure.pbc
    return save(arrays)


def _check_numbers(value: object, what: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{what}: expected a tensor, got {type(value).__name__} {value!r:.40}; give "
            "torch.tensor(...) of it"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{what}: expected real numbers, got {value.dtype}; give its real part")


def _cast(value: Tensor, dtype: str, what: str) -> NDArray[np.generic]:
    array = value.detach().cpu().to(DTYPES[dtype]).contiguous().numpy()
    beyond = np.argwhere(~np.isfinite(array))
    if len(beyond):
        place = tuple(int(index) for index in beyond[0])
        number = float(value[place])
        largest = float(torch.finfo(DTYPES[dtype]).max)
        finer = {"float16": "keep it as float32 or float64", "float32": "keep it as float64"}
        raise ValueError(
            f"{what}{list(place) if place else ''} is {number:g}, beyond {dtype}'s {largest:g}; "
            f"{finer.get(dtype, 'look at its unit')}, or look at its unit"
        )
    return array


def _single(lengths: NDArray[np.float64], what: str) -> NDArray[np.float32]:
    """Return lengths in float32, after a look that they can be told from others there."""
    # Beyond some 10 km, float32 no longer tells a structure from one that was moved.
    with np.errstate(over="ignore"):
        single = lengths.astype(np.float32)
        lost = np.abs(single - lengths)
    if not (lost <= SAME_POSITION).all():
        place = np.unravel_index(int(np.nan_to_num(lost, posinf=np.inf).argmax()), lost.shape)
        raise ValueError(
            f"{what}{[int(index) for index in place]} is {lengths[place]:g} Å, more than can be "
            f"kept to {SAME_POSITION:g} Å; move the structure to the origin, or look at its unit"
        )
    return single


def check_kept(record: Record, manifest: Manifest) -> None:
    """Refuse a record that the store's manifest does not describe.

    Raises:
        ValueError: naming a quantity that the store does not hold, or holds in another precision.
    """
    for name, value in record.values.items():
        kept = manifest.dtypes.get(name)
        if kept is None or value.dtype != DTYPES[kept]:
            raise ValueError(
                f"holds {name} as {str(value.dtype).removeprefix('torch.')}, but the manifest says "
                f"{kept or 'that the store has none'}; restore manifest.json from a copy"
            )


def unpack(structure_id: str, payload: bytes) -> Record:
    """Return the record that `pack` made, its quantities in alphabetical order.

    Raises:
        ValueError: naming the structure, if that is none, as older versions took it.
    """
    arrays = load(payload)
    try:
        structure = Structure(*(arrays.pop(f"structure.{name}") for name in _IDENTITY))
    except ValueError as error:
        raise ValueError(f"structure {structure_id!r}: {error}") from error
    values = {name: torch.from_numpy(array.copy()) for name, array in sorted(arrays.items())}
    return Record(structure_id, structure, values)
