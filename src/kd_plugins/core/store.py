"""TargetStore: structure id -> teacher targets, on disk, for years and from every framework."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kd_plugins.core.environment import StoreError, is_born, recover
from kd_plugins.core.manifest import Manifest, check_same
from kd_plugins.core.record import Record, pack, unpack
from kd_plugins.core.shard import (
    ShardBusy,
    ShardReader,
    ShardWriter,
    exclusive_lock,
    take_over,
)
from kd_plugins.core.structure import Structure
from kd_plugins.core.targets import TeacherTargets

MANIFEST = "manifest.json"


class TargetStore:
    """A folder of teacher targets, keyed by structure id and never by position.

    ``manifest.json`` says which teacher made them and in which units; ``<shard>.lmdb`` files hold
    checksummed safetensors records, each with the structure it belongs to. A killed writer loses at
    most the batch in flight. There is no pickle in it.

    Use `create` and `open`; one writer a shard, any number of readers.

    >>> import tempfile, numpy as np, torch
    >>> folder = Path(tempfile.mkdtemp()) / "store"
    >>> store = TargetStore.create(folder, Manifest("EMT", "ase.emt", {"energy": "float64"}))
    >>> copper = Structure([29], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)
    >>> store.append([Record("cu", copper, {"energy": torch.tensor(-3.5)})])
    >>> store["cu"].values["energy"]
    tensor([-3.5000], dtype=torch.float64)
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._readers: dict[str, ShardReader] = {}

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> TargetStore:
        """Make an empty store, or open the one that is there if it has the same manifest.

        One that holds no record yet is made anew.

        Raises:
            StoreError: if the folder holds a store of another teacher or other quantities, or
                something else, or cannot be written.
        """
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            store = cls.open(folder)
            if any(True for _ in store.ids()):
                check_same(store.manifest, manifest, folder)
                return store
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MANIFEST).exists() and any(
                entry.suffix != ".partial" for entry in folder.iterdir()
            ):
                raise StoreError(f"{folder} is not empty and holds no {MANIFEST}; choose another")
            _write_whole(folder / MANIFEST, manifest.to_json())
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}") from error
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: str | Path) -> TargetStore:
        """Open a store.

        Raises:
            StoreError: if there is none, or it was written by a newer version.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise StoreError(f"{folder} holds no target store (no {MANIFEST})")
        return cls(folder, Manifest.from_json(path.read_text(), folder.name))

    def append(self, records: Iterable[Record], shard: str = "main") -> None:
        """Write a batch of records durably: all of it, or nothing.

        Raises:
            KeyError: for a quantity that the store does not hold.
            ValueError: for an id that is in the store already, or a value that is not valid.
            StoreError: if another process writes to that shard or the disk is full.
        """
        with self.only_writer(), self.writer(shard) as writer:
            writer.append(self.pack(records))

    def writer(self, shard: str = "main", patience: float = 0.0) -> ShardWriter:
        """Return a writer, after seconds of patience; give it what `pack` returns, and close it."""
        if not re.fullmatch(r"[\w.-]+", shard):
            raise ValueError(f"a shard's name is made of letters, digits, '_', '-', '.': {shard!r}")
        return ShardWriter(self.folder / f"{shard}.lmdb", patience)

    def pack(self, records: Iterable[Record]) -> dict[str, bytes]:
        """Return id to bytes, validated; see `append` for what is refused."""
        packed: dict[str, bytes] = {}
        for record in records:
            if record.structure_id in packed or record.structure_id in self:
                raise ValueError(f"structure id {record.structure_id!r} is in the store already")
            packed[record.structure_id] = pack(record, self.manifest)
        return packed

    def record(self, structure_id: str) -> Record:
        """Return a record with its structure.

        Raises:
            KeyError: if the store has none of that id.
            StoreError: if it is damaged.
        """
        for shard in self._shards():
            payload = shard.get(structure_id)
            if payload is not None:
                return unpack(structure_id, payload)
        raise KeyError(f"the store {self.folder.name} has no structure {structure_id!r}")

    def __getitem__(self, structure_id: str) -> TeacherTargets:
        """Return the targets of one structure, a batch of one."""
        return self.record(structure_id).targets()

    def read(self, structure_id: str, structure: Structure) -> TeacherTargets:
        """Return the targets of a structure after checking that it is still the one labelled.

        Raises:
            KeyError: if the store has none of that id.
            ValueError: naming how the structure differs.
        """
        record = self.record(structure_id)
        difference = structure.difference(record.structure)
        if difference is not None:
            raise ValueError(
                f"structure {structure_id!r} is not the one that was labelled: {difference}; were "
                "ids shuffled or structures edited since?"
            )
        return record.targets()

    def __contains__(self, structure_id: str) -> bool:
        return any(structure_id in shard for shard in self._shards())

    def __len__(self) -> int:
        return sum(1 for _ in self.ids())

    def ids(self) -> Iterator[str]:
        """Yield every structure id, shard by shard, in order within a shard."""
        for shard in self._shards():
            yield from shard.ids()

    def verify(self) -> list[str]:
        """Read everything; return one line a fault, so an empty list is a clean bill."""
        faults: list[str] = []
        seen: set[str] = set()
        for structure_id in self.ids():
            if structure_id in seen:
                faults.append(f"{structure_id}: stands in two shards")
            seen.add(structure_id)
            try:
                self.record(structure_id).targets()
            except (StoreError, ValueError, KeyError) as error:
                faults.append(f"{structure_id}: {error.args[0]}")
        return faults

    def merge(self, others: Sequence[TargetStore], batch: int = 1000) -> None:
        """Copy what other stores of the same teacher hold and this one does not.

        Raises:
            StoreError: if a store has another teacher or other quantities, or if one id stands for
                different records; what was copied before stays.
        """
        for other in others:
            check_same(self.manifest, other.manifest, other.folder)
        with self.only_writer(), self.writer("merged") as writer:
            for other in others:
                missing = [name for name in other.ids() if not self._has_same(name, other)]
                for start in range(0, len(missing), batch):
                    chunk = missing[start : start + batch]
                    writer.append(self.pack(other.record(name) for name in chunk))

    def _has_same(self, structure_id: str, other: TargetStore) -> bool:
        """Return whether this store has a record, which must then be the other store's."""
        if structure_id not in self:
            return False
        ours, theirs = self.record(structure_id), other.record(structure_id)
        if pack(ours, self.manifest) != pack(theirs, self.manifest):
            raise StoreError(
                f"structure id {structure_id!r} stands for another record in {other.folder} than "
                f"in {self.folder}; give each structure an id of its own, or leave that store out"
            )
        return True

    @contextmanager
    def only_writer(self, patience: float = 0.0) -> Iterator[None]:
        """Keep every other command from writing while this one's processes write their shards.

        Args:
            patience: seconds to wait for writers that a killed command has left behind.

        Raises:
            ShardBusy: if another command is writing.
            StoreError: if the folder cannot be written.
        """
        try:
            lock = exclusive_lock(self.folder / "store")
        except ShardBusy:
            raise ShardBusy(
                f"{self.folder} is being written by another command; wait for it, or write another "
                "store and merge them"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror}") from error
        with lock:
            for path in self._paths():
                take_over(path, patience)
            yield

    def recover(self) -> None:
        """Let this process see the last whole batch of every writer that was killed."""
        for path in self._paths():
            if is_born(path):
                recover(path.resolve())

    def _paths(self) -> list[Path]:
        names = sorted(os.listdir(self.folder))
        return [self.folder / name for name in names if name.endswith(".lmdb")]

    def _shards(self) -> list[ShardReader]:
        for path in self._paths():
            if path.name not in self._readers and is_born(path):
                self._readers[path.name] = ShardReader(path)
        return list(self._readers.values())


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
