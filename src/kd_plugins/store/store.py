"""TargetStore: structure id -> teacher targets, on disk, for years and from every framework."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from kd_plugins.core.targets import TeacherTargets
from kd_plugins.files import write_bytes
from kd_plugins.store.condition import is_unborn, shard_faults
from kd_plugins.store.environment import StoreError, recover
from kd_plugins.store.manifest import Manifest, check_same
from kd_plugins.store.record import Record, batches, check_kept, pack, unpack
from kd_plugins.store.shard import (
    FORMAT,
    ShardBusy,
    ShardReader,
    ShardWriter,
    exclusive_lock,
    shared_lock,
    take_over,
)
from kd_plugins.store.structure import Structure
from kd_plugins.store.written import SUFFIX, WrittenLog

MANIFEST = "manifest.json"
MANIFEST_LOCK = "manifest"
"""Whoever writes records holds it together with others; whoever makes a store, alone."""
SECONDS_TO_MAKE = 2.0


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
        folder = _path(folder)
        if not isinstance(manifest, Manifest):
            raise ValueError(f"expected a Manifest, got {type(manifest).__name__} {manifest!r:.60}")
        try:
            found = cls._found(folder, manifest)
            if found is not None:
                return found
            folder.mkdir(parents=True, exist_ok=True)
            with _making(folder):
                found = cls._found(folder, manifest)  # what another command may just have made
                if found is None:
                    found = cls(folder, replace(manifest, format=FORMAT))
                    write_bytes(folder / MANIFEST, found.manifest.to_json().encode(), durably=True)
                return found
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}") from error

    @classmethod
    def _found(cls, folder: Path, manifest: Manifest) -> TargetStore | None:
        """Return the store that is there, or None if there is none with a record in it."""
        if not (folder / MANIFEST).exists():
            _check_empty(folder)
            return None
        store = cls.open(folder)
        if store.manifest == replace(manifest, format=store.manifest.format):
            return store
        if any(True for _ in store.ids()):
            check_same(store.manifest, manifest, folder)
            return store
        return None

    @classmethod
    def open(cls, folder: str | Path) -> TargetStore:
        """Open a store.

        Raises:
            StoreError: if there is none, or it was written by a newer version.
        """
        folder = _path(folder)
        path = folder / MANIFEST
        try:
            is_there = path.is_file()
        except OSError as error:
            raise StoreError(f"{folder} cannot be read: {error.strerror}") from error
        if not is_there:
            if folder.is_dir() and any(name.endswith(".lmdb") for name in os.listdir(folder)):
                raise StoreError(
                    f"{folder} has lost its {MANIFEST}, which says whose targets its shards hold; "
                    "restore it from a copy"
                )
            raise StoreError(
                f"{folder} holds no target store (no {MANIFEST}); make one with kd-plugins label "
                "or import"
            )
        try:
            return cls(folder, Manifest.from_json(path.read_bytes(), folder.name))
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error

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
        """Return a writer, after seconds of patience; give it what `pack` returns, and close it.

        Raises:
            ValueError: for a name that is no file's.
            ShardBusy: if another process writes that shard.
            StoreError: if the shard is damaged, or the store was made anew for another teacher.
        """
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*", shard):
            raise ValueError(
                f"shard: expected a name of letters, digits, '_', '-' and '.' that begins with a "
                f"letter or digit, got {shard!r}"
            )
        held = self._hold_manifest()
        return ShardWriter(self.folder / f"{shard}.lmdb", patience, self.manifest.format, (held,))

    def _hold_manifest(self) -> IO[str]:
        """Return a lock under which the store stays this teacher's, after a look that it is."""
        try:
            held = shared_lock(self.folder / MANIFEST_LOCK, SECONDS_TO_MAKE)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            now = type(self).open(self.folder).manifest
            if now.format != self.manifest.format:
                raise StoreError(f"{self.folder} was made anew by another command; run this again")
            check_same(now, self.manifest, self.folder)
        except BaseException:
            held.close()
            raise
        return held

    def pack(self, records: Iterable[Record]) -> dict[str, bytes]:
        """Return id to bytes, validated; see `append` for what is refused."""
        if not isinstance(records, Iterable):
            raise ValueError(f"expected Records, got {type(records).__name__} {records!r:.60}")
        packed: dict[str, bytes] = {}
        for record in records:
            if not isinstance(record, Record):
                raise ValueError(f"expected a Record, got {type(record).__name__} {record!r:.60}")
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
        if not isinstance(structure, Structure):
            raise ValueError(
                f"structure {structure_id!r}: expected a Structure to compare with, got "
                f"{type(structure).__name__}; of ASE's Atoms, "
                "kd_plugins.structures.readers.to_structure makes one"
            )
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
        """Read everything; return one line a fault, so an empty list is a clean bill.

        Every shard is read in a process of its own first, which damage may end.
        """
        faults = Manifest.faults((self.folder / MANIFEST).read_bytes())
        seen: set[str] = set()
        for path in self._paths():
            found = shard_faults(path, self.manifest.format)
            faults += found
            if not found and path.exists():
                faults += self._record_faults(path, seen)
        return faults

    def _record_faults(self, path: Path, seen: set[str]) -> Iterator[str]:
        shard = self._shard(path)
        if shard is None:
            return
        for structure_id in shard.ids():
            if structure_id in seen:
                yield f"{structure_id}: stands in two shards"
            seen.add(structure_id)
            try:
                payload = shard.get(structure_id)
                if payload is not None:
                    record = unpack(structure_id, payload)
                    record.targets()
                    check_kept(record, self.manifest)
            except (StoreError, ValueError, KeyError) as error:
                yield f"{structure_id}: {error.args[0]}"

    def uncounted(self) -> list[str]:
        """Return the shards of which nobody wrote down how many records they should hold.

        An earlier version did not; the next writer begins with what is there.
        """
        paths = self._paths() if self.manifest.format == 1 else []
        return [path.name for path in paths if WrittenLog(path).read() is None]

    def merge(self, others: Sequence[TargetStore]) -> None:
        """Copy what other stores of the same teacher hold and this one does not.

        Raises:
            StoreError: if a store has another teacher or other quantities, or if one id stands for
                different records; what was copied before stays.
        """
        if isinstance(others, TargetStore):
            raise ValueError("expected a list of stores to merge, got one; write merge([store])")
        for other in others:
            if not isinstance(other, TargetStore):
                raise ValueError(
                    f"expected stores to merge, got {type(other).__name__} {other!r:.60}; open "
                    "them with TargetStore.open"
                )
            check_same(other.manifest, self.manifest, other.folder)
        with self.only_writer(), self.writer("merged") as writer:
            for other in others:
                missing = [name for name in other.ids() if not self._has_same(name, other)]
                self.write(writer, (other.record(name) for name in missing))

    def write(self, writer: ShardWriter, records: Iterable[Record]) -> None:
        """Write records one batch after the other, each small enough to be held in memory.

        Args:
            writer: of a shard of this store, as `writer` returns it.
            records: any number, which may be made while they are written.

        Raises:
            KeyError: for a quantity that the store does not hold.
            ValueError: for an id that is in the store already, or a value that is not valid.
            StoreError: if the disk is full; batches before stay.
        """
        for batch in batches(records):
            writer.append(self.pack(batch))

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
        with lock, self._hold_manifest():
            for path in self._paths():
                take_over(path, patience, self.manifest.format)
            yield

    def recover(self) -> None:
        """Let this process see the last whole batch of every writer that was killed."""
        for path in self._paths():
            if self._shard(path) is not None:
                recover(path.resolve())

    def _paths(self) -> list[Path]:
        """Return the shards, those that are missing included."""
        names = {name.removesuffix(SUFFIX) for name in os.listdir(self.folder)}
        return [self.folder / name for name in sorted(names) if name.endswith(".lmdb")]

    def _shards(self) -> list[ShardReader]:
        found = (self._shard(path) for path in self._paths())
        return [shard for shard in found if shard is not None]

    def _shard(self, path: Path) -> ShardReader | None:
        """Return the reader of a shard, or None if there is nothing in it yet."""
        if path.name not in self._readers:
            if is_unborn(path.resolve(), WrittenLog(path.resolve()).read()):
                return None
            self._readers[path.name] = ShardReader(path, self.manifest.format)
        return self._readers[path.name]


def _path(folder: str | Path) -> Path:
    """Return the folder that a user names, with his home folder for ``~``."""
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise ValueError(f"expected the path of a target store's folder, got {folder!r:.60}")
    return Path(folder).expanduser()


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    """Keep others from making a store, or writing into it, meanwhile."""
    try:
        lock = exclusive_lock(folder / MANIFEST_LOCK, SECONDS_TO_MAKE)
    except ShardBusy:
        raise ShardBusy(
            f"{folder} is being written by another command; wait for it, or write another store "
            "and merge them"
        ) from None
    with lock:
        yield


def _check_empty(folder: Path) -> None:
    """Refuse a folder of something else."""
    ours = f"{MANIFEST_LOCK}.writer"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is no folder; choose another name for the store")
    names = os.listdir(folder) if folder.exists() else []
    shards = [name for name in names if name.endswith(".lmdb")]
    if shards:
        raise StoreError(
            f"{folder} has lost its {MANIFEST}, which says whose targets {shards[0]} holds; "
            "restore it from a copy, or choose another folder"
        )
    if any(name != ours and not name.endswith(".partial") for name in names):
        raise StoreError(f"{folder} is not empty and holds no {MANIFEST}; choose another")
