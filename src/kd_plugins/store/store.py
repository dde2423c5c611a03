"""TargetStore: teacher targets on disk by structure id, for years and for every framework."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from kd_plugins.core.targets import TeacherTargets
from kd_plugins.files import FolderInUse, folder_lock, write_bytes
from kd_plugins.store._integrity import (
    FORMAT,
    SUFFIX,
    StoreError,
    Total,
    WrittenLog,
    digest,
    digest_fault,
    is_initialized,
    missing_log_fault,
)
from kd_plugins.store._lmdb import ShardBusy, ShardReader, ShardWriter, recover_last_batch
from kd_plugins.store.manifest import Manifest, check_same_teacher
from kd_plugins.store.record import (
    Record,
    check_matches_manifest,
    encode_id,
    pack,
    split_into_batches,
    unpack,
)
from kd_plugins.store.structure import Structure

MANIFEST = "manifest.json"
MANIFEST_LOCK = "manifest"
"""Processes that write records hold it together; one that makes a store holds it alone."""
STORE_LOCK = "store"
"""Held by the one command that writes, whose workers each have a shard of their own."""
SECONDS_TO_MAKE = 2.0
"""How long making a store waits for others that are making it, too."""
SECONDS_TO_BE_REFUSED = 0.5
"""How long a writer waits for others, which may hold the lock only to find another's store."""

NS_AT_REST = 2_000_000_000
"""Since when a folder must not have changed for its shards to be listed once only."""


class TargetStore:
    """A folder of teacher targets, found by structure id and never by position.

    ``manifest.json`` names the teacher and the units; ``<shard>.lmdb`` files hold checksummed
    safetensors records, each with the structure it belongs to. A killed writer loses at most the
    batch in flight. There is no pickle in it.

    Use `create` and `open`. A shard has one writer at a time and any number of readers.

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
        self._listing: tuple[int, list[Path]] = (-1, [])  # when the folder changed, its shards

    # Making and opening.

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> TargetStore:
        """Make an empty store, or open the one that is there if it has the same manifest.

        A store without any record is made anew.

        Raises:
            StoreError: if the folder holds a store of another teacher or other quantities, or
                something else, or cannot be written.
        """
        folder = _as_path(folder)
        if not isinstance(manifest, Manifest):
            raise ValueError(f"expected a Manifest, got {type(manifest).__name__} {manifest!r:.60}")

        try:
            found = cls._open_existing(folder, manifest)
            if found is not None:
                return found

            folder.mkdir(parents=True, exist_ok=True)
            with _lock_for_making(folder):
                # Another command may just have made it.
                found = cls._open_existing(folder, manifest)
                if found is None:
                    found = cls(folder, replace(manifest, format=FORMAT))
                    write_bytes(folder / MANIFEST, found.manifest.to_json().encode(), durably=True)
                return found
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}") from error

    @classmethod
    def _open_existing(cls, folder: Path, manifest: Manifest) -> TargetStore | None:
        """Return the store that is there, or None if there is none with a record in it."""
        if not (folder / MANIFEST).exists():
            _check_empty(folder)
            return None

        store = cls.open(folder)
        if store.manifest == replace(manifest, format=store.manifest.format):
            return store
        if store.is_empty():
            return None
        check_same_teacher(store.manifest, manifest, folder)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> TargetStore:
        """Open a store.

        Raises:
            StoreError: if there is none, or it was written by a newer version.
        """
        folder = _as_path(folder)
        path = folder / MANIFEST
        try:
            has_manifest = path.is_file()
        except OSError as error:
            raise StoreError(f"{folder} cannot be read: {error.strerror}") from error

        if not has_manifest:
            if folder.is_dir() and any(name.endswith(".lmdb") for name in os.listdir(folder)):
                raise StoreError(
                    f"{folder} has lost its {MANIFEST}, which names the teacher of its shards; "
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

    # Reading.

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

        ``TeacherTargets.collate`` joins those of several structures into a batch.

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
        record.check_structure(structure)
        return record.targets()

    def __contains__(self, structure_id: str) -> bool:
        return any(structure_id in shard for shard in self._shards())

    def __len__(self) -> int:
        return sum(1 for _ in self.ids())

    def ids(self) -> Iterator[str]:
        """Yield every structure id, shard by shard, in order within a shard."""
        for shard in self._shards():
            yield from shard.ids()

    def content_digest(self) -> str | None:
        """Return a digest of the manifest and of all records, without reading them.

        It is made of the number of records that the shards should hold and the sum of their
        checksums. None while a batch is being written, and for shards that were never counted.
        """
        total = Total()
        for path in self._shard_paths():
            entry = WrittenLog(path.resolve()).read()
            if entry is None or entry.state is None:
                return None
            total = total.joined(entry.after)

        content = hashlib.blake2b((self.folder / MANIFEST).read_bytes(), digest_size=16)
        content.update(f"{total.records} {total.digest}".encode())
        return content.hexdigest()

    def is_empty(self) -> bool:
        """Return whether the store has no record; without counting them all."""
        return next(self.ids(), None) is None

    # Writing.

    def append(self, records: Iterable[Record], shard: str = "main") -> None:
        """Write a batch of records durably: all of it, or nothing.

        Raises:
            KeyError: for a quantity that the store does not hold.
            ValueError: for an id that is in the store already, or a value that is not valid.
            StoreError: if another process writes to that shard or the disk is full.
        """
        with self.only_writer(), self.writer(shard) as writer:
            writer.append(self.pack(records))

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
        for batch in split_into_batches(records, Record.n_bytes):
            writer.append(self.pack(batch))

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
            check_same_teacher(other.manifest, self.manifest, other.folder)

        with self.only_writer(), self.writer("merged") as writer:
            for other in others:
                # All ids first: a conflict is found before anything of that store is copied.
                missing = [name for name in other.ids() if not self._has_same_record(name, other)]
                self.write(writer, (other.record(name) for name in missing))

    def _has_same_record(self, structure_id: str, other: TargetStore) -> bool:
        """Return whether this store has a record, which must then be the other store's."""
        if structure_id not in self:
            return False

        # Compared as bytes, since packing rounds to the store's dtypes.
        ours, theirs = self.record(structure_id), other.record(structure_id)
        if pack(ours, self.manifest) != pack(theirs, self.manifest):
            raise StoreError(
                f"structure id {structure_id!r} stands for another record in {other.folder} than "
                f"in {self.folder}; give each structure an id of its own, or leave that store out"
            )

        return True

    # Who may write when.

    @contextmanager
    def only_writer(self, patience: float = 0.0) -> Iterator[None]:
        """Keep every other command from writing while this one's processes write their shards.

        Args:
            patience: seconds to wait for writers that a killed command has left behind.

        Raises:
            ShardBusy: if another command is writing.
            StoreError: if the folder cannot be written.
        """
        with ExitStack() as locks:
            try:
                locks.enter_context(
                    folder_lock(self.folder, STORE_LOCK, patience=SECONDS_TO_BE_REFUSED)
                )
            except FolderInUse:
                raise _busy(self.folder) from None
            except OSError as error:
                raise StoreError(f"{self.folder} cannot be written: {error.strerror}") from error
            locks.enter_context(self._hold_manifest())

            # A worker of a killed command may still commit its last batch: wait until it has ended,
            # and let readers see that batch.
            for path in self._shard_paths():
                ShardWriter(path, patience, self.manifest.format).close()
            yield

    def writer(self, shard: str = "main", patience: float = 0.0) -> ShardWriter:
        """Return a writer of a shard; give it what `pack` returns, and close it.

        Args:
            shard: name of the shard, made if it is not there.
            patience: seconds to wait for another process that writes it.

        Raises:
            ValueError: for a name that cannot be a file's.
            ShardBusy: if another process writes that shard.
            StoreError: if the shard is damaged, or the store was made anew for another teacher.
        """
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*", shard):
            raise ValueError(
                f"shard: expected a name of letters, digits, '_', '-' and '.' that begins with a "
                f"letter or digit, got {shard!r}"
            )

        # The writer frees the manifest's lock with its own; if it cannot be made, it does so too.
        with ExitStack() as locks:
            locks.enter_context(self._hold_manifest())
            path = self.folder / f"{shard}.lmdb"
            return ShardWriter(path, patience, self.manifest.format, locks.pop_all())

    @contextmanager
    def _hold_manifest(self) -> Iterator[None]:
        """Keep the store this teacher's, after checking that it still is.

        Opened without a record in it, the store may have been made anew for another teacher since.
        """
        with ExitStack() as locks:
            try:
                lock = folder_lock(
                    self.folder, MANIFEST_LOCK, shared=True, patience=SECONDS_TO_MAKE
                )
                locks.enter_context(lock)
            except FolderInUse:
                raise _busy(self.folder) from None
            except OSError as error:
                raise StoreError(f"{self.folder} cannot be written: {error.strerror}") from error

            now = type(self).open(self.folder).manifest
            if now.format != self.manifest.format:
                raise StoreError(f"{self.folder} was made anew by another command; run this again")
            check_same_teacher(now, self.manifest, self.folder)
            yield

    def recover(self) -> None:
        """Let this process see the last whole batch of every writer that was killed."""
        for path in self._shard_paths():
            if self._reader(path) is not None:
                recover_last_batch(path.resolve())

    # Checking.

    def verify(self) -> list[str]:
        """Read every record once; return one line a fault, so an empty list if all are whole.

        The ids of every shard are read in a process of its own first, which damage may end.
        """
        faults = Manifest.faults((self.folder / MANIFEST).read_bytes())
        seen: set[str] = set()
        for path in self._shard_paths():
            try:
                faults.extend(self._shard_faults(path, seen))
            except StoreError as error:
                faults.append(str(error))
        return faults

    def _shard_faults(self, path: Path, seen: set[str]) -> Iterator[str]:
        """Read a shard; yield its faults, and note its ids in ``seen``."""
        log = WrittenLog(path.resolve())
        entry = log.read()
        if not is_initialized(path.resolve(), entry):
            return
        shard = ShardReader(path, self.manifest.format, always_walk=True)
        if entry is None and self.manifest.format > 1:
            yield missing_log_fault(path)

        total, n_faults = Total(), 0
        for structure_id in shard.ids():
            if structure_id in seen:
                yield f"{structure_id}: stands in two shards"
            seen.add(structure_id)
            try:
                payload = shard.get(structure_id)
                if payload is None:  # removed since; nothing in kd_plugins does that
                    continue
                total = total.plus([digest(encode_id(structure_id), payload)])
                record = unpack(structure_id, payload)
                record.targets()
                check_matches_manifest(record, self.manifest)
            except (StoreError, ValueError, KeyError) as error:
                n_faults += 1
                yield f"{structure_id}: {error.args[0]}"

        # Each record is whole, so they can still be others than those that were written. If the log
        # has changed meanwhile, another process writes, and nothing is known of the total.
        if n_faults == 0 and log.read() == entry:
            fault = digest_fault(path, total, entry)
            if fault is not None:
                yield fault

    def uncounted(self) -> list[str]:
        """Return the shards without a log of how many records they should hold.

        An earlier version kept none; the next writer begins one with what is there.
        """
        paths = self._shard_paths() if self.manifest.format == 1 else []
        return [path.name for path in paths if WrittenLog(path).read() is None]

    # Shards.

    def _shard_paths(self) -> list[Path]:
        """Return the shards, including those whose file is missing."""
        changed = self.folder.stat().st_mtime_ns
        listed_at, paths = self._listing
        if listed_at == changed:
            return paths

        names = {name.removesuffix(SUFFIX) for name in os.listdir(self.folder)}
        paths = [self.folder / name for name in sorted(names) if name.endswith(".lmdb")]

        # Only of a folder that had been at rest: times may be as coarse as that, and a shard that
        # is made in the same tick would not be seen.
        if time.time_ns() - changed > NS_AT_REST:
            self._listing = changed, paths
        return paths

    def _shards(self) -> list[ShardReader]:
        readers = (self._reader(path) for path in self._shard_paths())
        return [reader for reader in readers if reader is not None]

    def _reader(self, path: Path) -> ShardReader | None:
        """Return the reader of a shard, or None if there is nothing in it yet."""
        if path.name not in self._readers:
            resolved = path.resolve()
            if not is_initialized(resolved, WrittenLog(resolved).read()):
                return None
            self._readers[path.name] = ShardReader(path, self.manifest.format)
        return self._readers[path.name]


def _as_path(folder: str | Path) -> Path:
    """Return the folder that a user names, with the home folder for ``~``."""
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise ValueError(f"expected the path of a target store's folder, got {folder!r:.60}")
    return Path(folder).expanduser()


def _busy(folder: Path) -> ShardBusy:
    return ShardBusy(
        f"{folder} is being written by another command; wait for it, or write another store and "
        "merge them"
    )


@contextmanager
def _lock_for_making(folder: Path) -> Iterator[None]:
    """Keep other processes from making a store, or writing into it, meanwhile."""
    with ExitStack() as locks:
        try:
            locks.enter_context(folder_lock(folder, MANIFEST_LOCK, patience=SECONDS_TO_MAKE))
        except FolderInUse:
            raise _busy(folder) from None
        yield


def _check_empty(folder: Path) -> None:
    """Refuse a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is no folder; choose another name for the store")

    names = os.listdir(folder) if folder.exists() else []
    shards = [name for name in names if name.endswith(".lmdb")]
    if shards:
        raise StoreError(
            f"{folder} has lost its {MANIFEST}, which names the teacher of {shards[0]}; "
            "restore it from a copy, or choose another folder"
        )

    # What a killed `create` may have left is no obstacle.
    ours = f"{MANIFEST_LOCK}.writer"
    if any(name != ours and not name.endswith(".partial") for name in names):
        raise StoreError(f"{folder} is not empty and holds no {MANIFEST}; choose another")
