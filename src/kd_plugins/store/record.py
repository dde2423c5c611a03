"""One structure with its teacher targets: as tensors, as stored bytes, and checked when read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from kd_plugins.core.quantities import QUANTITIES, quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.store._integrity import DIGEST_SIZE, StoreError, stored_digest
from kd_plugins.store.manifest import DTYPES, Manifest
from kd_plugins.store.structure import POSITION_TOLERANCE, Structure

T = TypeVar("T")

_STRUCTURE_ARRAYS = ("atomic_numbers", "positions", "cell", "pbc")
"""Kept in a record's bytes as ``structure.atomic_numbers`` and so on."""


@dataclass(frozen=True)
class Record:
    """One structure with its teacher targets.

    Args:
        structure_id: its identity, unique in a store.
        structure: what is compared when the targets are read.
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
            _check_is_real_tensor(value, f"structure {self.structure_id!r}: {name}")

        # TeacherTargets wants a leading axis: atoms, which forces have, or structures.
        batched = {
            name: value if quantity(name).scope == "atom" else value.unsqueeze(0)
            for name, value in self.values.items()
        }
        n_atoms = torch.tensor([self.structure.n_atoms])
        return TeacherTargets((self.structure_id,), n_atoms, batched)

    def check_structure(self, structure: Structure) -> None:
        """Refuse a structure that is not the one that was labelled.

        Raises:
            ValueError: naming how it differs.
        """
        difference = structure.difference(self.structure)
        if difference is not None:
            raise ValueError(
                f"structure {self.structure_id!r} is not the one that was labelled: {difference}; "
                "were ids shuffled or structures edited since?"
            )

    def n_bytes(self) -> int:
        """Return about how much memory it takes: its positions and its tensors."""
        tensors = sum(value.numel() * value.element_size() for value in self.values.values())
        return self.structure.positions.nbytes + tensors


LONGEST_ID = 500
"""Bytes of UTF-8; LMDB keys end at 511."""


def encode_id(structure_id: str) -> bytes:
    """Return the LMDB key of a structure id.

    Raises:
        ValueError: for an empty id, or one that is too long.

    >>> encode_id("mp-149")
    b'mp-149'
    """
    if not isinstance(structure_id, str):
        raise ValueError(f"a structure id must be text, got {structure_id!r}")

    try:
        encoded = structure_id.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a structure id must be Unicode, got {structure_id!r:.60} ({error.reason}); rename it"
        ) from error

    if not 0 < len(encoded) <= LONGEST_ID:
        raise ValueError(
            f"a structure id must have 1 to {LONGEST_ID} bytes, got {len(encoded)}: "
            f"{structure_id[:40]!r}"
        )

    return encoded


BATCH_RECORDS, BATCH_BYTES = 1000, 1 << 26
"""Limits of a batch that is written at once, and so of what writing a store holds in memory."""


def split_into_batches(
    items: Iterable[T], n_bytes: Callable[[T], int], most: int = BATCH_RECORDS
) -> Iterator[list[T]]:
    """Yield lists of at most ``most`` items, shorter ones where the items are large.

    A list ends with the item with which it reaches `BATCH_BYTES` (64 MB), since a thousand records
    of embeddings may be more than a machine holds.

    Args:
        items: any number, which may be made while they are consumed.
        n_bytes: returns the size of an item, such as `Record.n_bytes`.
        most: items of a list.

    >>> list(split_into_batches(["a", "bc", "d"], len, most=2))
    [['a', 'bc'], ['d']]
    """
    batch: list[T] = []
    size = 0

    for item in items:
        batch.append(item)
        size += n_bytes(item)
        if len(batch) >= most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0

    if batch:
        yield batch


def pack(record: Record, manifest: Manifest) -> bytes:
    """Return a record as safetensors bytes, each quantity in the store's dtype.

    Raises:
        KeyError: for a quantity that the store does not hold.
        ValueError: for no value at all, a wrong shape, or a number that is not finite, before or
            after the conversion to the store's dtype.
    """
    who = f"structure {record.structure_id!r}"
    unknown = sorted(set(record.values) - set(manifest.dtypes))
    if unknown:
        raise KeyError(
            f"{who}: the store holds no {unknown[0]!r}; it holds {', '.join(manifest.dtypes)}"
        )

    if not _is_valid(record):
        record.targets()  # names the first fault
    if not record.values:
        raise ValueError(
            f"{who} has no value of any quantity; the store holds {', '.join(manifest.dtypes)}: "
            "give one or more, or leave the structure out"
        )

    arrays = {
        name: _to_dtype(value, manifest.dtypes[name], f"{who}: {name}")
        for name, value in record.values.items()
    }
    structure = record.structure
    arrays["structure.atomic_numbers"] = structure.atomic_numbers.astype(np.int16)
    arrays["structure.positions"] = _to_float32(structure.positions, f"{who}: positions")
    arrays["structure.cell"] = _to_float32(structure.cell, f"{who}: cell")
    arrays["structure.pbc"] = structure.pbc
    return save(arrays)


def check_payload(structure_id: str, stored: bytes, form: int, shard: str) -> bytes:
    """Return the bytes of a record after checking them against the checksum before them.

    Args:
        structure_id: under which they were found.
        stored: checksum and bytes.
        form: format of the store, which decides what the checksum covers.
        shard: name of the file, for the message.

    Raises:
        StoreError: if the record is damaged.
    """
    # The checksum covers the id, too: LMDB may find another record's bytes under a damaged key.
    checksum, payload = stored[:DIGEST_SIZE], stored[DIGEST_SIZE:]
    if checksum != stored_digest(encode_id(structure_id), payload, form):
        raise StoreError(
            f"{shard}: the record of {structure_id!r} is damaged (its checksum does not fit); "
            "label that structure again into a new store"
        )
    return payload


def unpack(structure_id: str, payload: bytes) -> Record:
    """Return the record that `pack` made, its quantities in alphabetical order.

    Raises:
        ValueError: naming the structure, if its arrays are not a structure. Earlier versions took
            some that are refused today.
    """
    arrays = load(payload)
    try:
        structure = Structure(*(arrays.pop(f"structure.{name}") for name in _STRUCTURE_ARRAYS))
    except ValueError as error:
        raise ValueError(f"structure {structure_id!r}: {error}") from error

    # Copied, since safetensors' arrays may not be written and PyTorch warns of such memory.
    values = {name: torch.from_numpy(array.copy()) for name, array in sorted(arrays.items())}
    return Record(structure_id, structure, values)


def check_matches_manifest(record: Record, manifest: Manifest) -> None:
    """Refuse a record that the store's manifest does not describe.

    Raises:
        ValueError: naming a quantity that the manifest lacks, or has with another dtype.
    """
    for name, value in record.values.items():
        expected = manifest.dtypes.get(name)
        if expected is None or value.dtype != DTYPES[expected]:
            found = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"holds {name} as {found}, but the manifest has "
                f"{expected or 'no such quantity'}; restore manifest.json from a copy"
            )


def _is_valid(record: Record) -> bool:
    """Return whether a record is one that `Record.targets` takes; False where that is not sure.

    The same checks at a tenth of the time, which for a fast teacher is a part of its own.
    """
    if not isinstance(record.structure, Structure) or not isinstance(record.values, Mapping):
        return False

    for name, value in record.values.items():
        row = QUANTITIES.get(name)
        if row is None or not isinstance(value, Tensor) or value.requires_grad:
            return False
        if value.dtype not in DTYPES.values() or value.layout is not torch.strided:
            return False
        if value.device.type != "cpu":
            return False

        shape = tuple(value.shape)
        if row.scope == "atom" and shape[:1] != (record.structure.n_atoms,):
            return False
        if not row.fits(shape[1:] if row.scope == "atom" else shape):
            return False
        if not np.isfinite(value.numpy()).all():
            return False
    return isinstance(record.structure_id, str)


def _check_is_real_tensor(value: object, what: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{what}: expected a tensor, got {type(value).__name__} {value!r:.40}; give "
            "torch.tensor(...) of it"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{what}: expected real numbers, got {value.dtype}; give its real part")


def _to_dtype(value: Tensor, dtype: str, what: str) -> NDArray[np.generic]:
    """Return a tensor's numbers in the store's dtype, none of which may overflow."""
    array = value.detach().cpu().to(DTYPES[dtype]).contiguous().numpy()

    # All numbers were finite, so one that is not has overflowed.
    is_finite = np.isfinite(array)
    if not is_finite.all():
        place = tuple(int(index) for index in np.argwhere(~is_finite)[0])
        number = float(value[place])
        largest = float(torch.finfo(DTYPES[dtype]).max)
        finer = {"float16": "keep it as float32 or float64", "float32": "keep it as float64"}
        raise ValueError(
            f"{what}{list(place) if place else ''} is {number:g}, beyond {dtype}'s {largest:g}; "
            f"{finer.get(dtype, 'look at its unit')}, or look at its unit"
        )

    return array


def _to_float32(lengths: NDArray[np.float64], what: str) -> NDArray[np.float32]:
    """Return lengths in Å as float32, which must keep them to `POSITION_TOLERANCE`."""
    # Beyond some 10,000 Å neighbouring float32 numbers are further apart than that, so that a
    # structure would seem the same after its atoms were moved.
    with np.errstate(over="ignore"):
        single = lengths.astype(np.float32)
        lost = np.abs(single - lengths)

    if not lost.max() <= POSITION_TOLERANCE:
        largest = int(np.nan_to_num(lost, posinf=np.inf).argmax())
        place = np.unravel_index(largest, lost.shape)
        raise ValueError(
            f"{what}{[int(index) for index in place]} is {lengths[place]:g} Å, more than can be "
            f"kept to {POSITION_TOLERANCE:g} Å; move the structure to the origin, or look at its "
            "unit"
        )

    return single
