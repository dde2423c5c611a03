"""One LMDB file of checksummed records: a single writer, any number of readers, no half records."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import lmdb

LONGEST_ID = 500
"""Bytes of UTF-8; LMDB keys end at 511."""
FIRST_MAP_SIZE = 1 << 28
DIGEST_SIZE = 16


class StoreError(Exception):
    """Something is wrong with a store on disk; the message says what and how to mend it."""


class ShardBusy(StoreError):
    """Another process is writing."""


class ShardWriter:
    """Appends records to a shard, a batch at a time: all of a batch is kept, or nothing.

    The operating system drops the lock of a killed writer, so its successor just goes on.

    Args:
        path: of the LMDB file; made if it is not there.

    Raises:
        ShardBusy: if another process is writing to it.
        StoreError: if the folder is read-only, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            self._lock = exclusive_lock(path)
            _environment(self.path, write=True)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{path.name} cannot be written: {error}") from error

    def append(self, records: Mapping[str, bytes]) -> None:
        """Write a batch durably.

        Raises:
            StoreError: if the disk is full; what was written before is kept.
        """
        try:
            self._put(records)
        except lmdb.MapFullError:
            environment = _environment(self.path, write=True)
            environment.set_mapsize(2 * environment.info()["map_size"])
            self.append(records)
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.path.name}: a batch of {len(records)} could not be written ({error}); "
                "all batches before it are kept: make room and go on"
            ) from error

    def _put(self, records: Mapping[str, bytes]) -> None:
        with _environment(self.path, write=True).begin(write=True) as transaction:
            for structure_id, payload in records.items():
                transaction.put(key(structure_id), _digest(payload) + payload)

    def close(self) -> None:
        """Let another process write."""
        self._lock.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ShardReader:
    """Reads a shard; safe in forked and spawned processes, each of which opens the file anew.

    Args:
        path: of the LMDB file.

    Raises:
        StoreError: if the file is no shard, or shorter than what was written to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        _environment(self.path, write=False)

    def get(self, structure_id: str) -> bytes | None:
        """Return a record's payload, or None if the shard has none of that id.

        Raises:
            StoreError: if the bytes are not those that were written.
        """
        stored = self._stored(structure_id)
        return None if stored is None else self._checked(structure_id, stored)

    def __contains__(self, structure_id: str) -> bool:
        """Look at the key only: a damaged record is there, and says so when it is read."""
        return self._stored(structure_id) is not None

    def ids(self) -> Iterator[str]:
        """Yield all ids in order."""
        with _reading(self.path) as transaction:
            for stored in transaction.cursor().iternext(keys=True, values=False):
                yield bytes(stored).decode()

    def _stored(self, structure_id: str) -> bytes | None:
        try:
            with _reading(self.path) as transaction:
                stored = transaction.get(key(structure_id))
                return None if stored is None else bytes(stored)
        except lmdb.Error as error:
            raise StoreError(
                f"{self.path.name} is damaged ({error}); restore it from a copy, or remove it and "
                "label its structures again"
            ) from error

    def _checked(self, structure_id: str, stored: bytes) -> bytes:
        digest, payload = stored[:DIGEST_SIZE], stored[DIGEST_SIZE:]
        if digest != _digest(payload):
            raise StoreError(
                f"{self.path.name}: the record of {structure_id!r} is damaged (its checksum does "
                "not fit); label that structure again into a new store"
            )
        return payload


def key(structure_id: str) -> bytes:
    """Return the LMDB key of a structure id.

    Raises:
        ValueError: for an empty id, or one that is too long.

    >>> key("mp-149")
    b'mp-149'
    """
    if not isinstance(structure_id, str):
        raise ValueError(f"a structure id must be text, got {structure_id!r}")
    encoded = structure_id.encode()
    if not 0 < len(encoded) <= LONGEST_ID:
        raise ValueError(
            f"a structure id must have 1 to {LONGEST_ID} bytes, got {len(encoded)}: "
            f"{structure_id[:40]!r}"
        )
    return encoded


_OPEN: dict[Path, tuple[int, bool, lmdb.Environment]] = {}
"""LMDB allows a process one handle a file: path to process id, whether it may write, and handle."""


def _environment(path: Path, *, write: bool) -> lmdb.Environment:
    """Return this process's handle of a file, opened anew after a fork or to write."""
    process, may_write, environment = _OPEN.get(path, (-1, False, None))
    if environment is not None:
        if process == os.getpid() and (may_write or not write):
            return environment
        environment.close()
    environment = _open(path, write)
    _OPEN[path] = (os.getpid(), write, environment)
    return environment


def _open(path: Path, write: bool) -> lmdb.Environment:
    try:
        environment = lmdb.open(
            str(path),
            subdir=False,
            readonly=not write,
            lock=os.access(path.parent, os.W_OK),
            map_size=_map_size(path),
            max_readers=1024,
        )
    except lmdb.Error as error:
        raise StoreError(f"{path.name} is no shard of a target store: {error}") from error
    _check_length(path, environment)
    return environment


def _check_length(path: Path, environment: lmdb.Environment) -> None:
    """Refuse a file that is shorter than LMDB's own account of it: reading it would kill us."""
    pages, size = environment.info()["last_pgno"] + 1, path.stat().st_size
    expected = pages * environment.stat()["psize"]
    if size < expected:
        environment.close()
        raise StoreError(
            f"{path.name} is cut short: {size} bytes of {expected}; restore it from a copy, or "
            "remove it and label its structures again"
        )


def _reading(path: Path) -> lmdb.Transaction:
    """Return a read transaction, after another process has made the file larger, too."""
    environment = _environment(path, write=False)
    try:
        return environment.begin()
    except lmdb.MapResizedError:
        environment.set_mapsize(0)
        return environment.begin()


def exclusive_lock(path: Path) -> IO[str]:
    """Return a lock beside ``path`` that ends when it is closed, or with its process.

    Raises:
        ShardBusy: if another process has it.
    """
    file = path.with_name(f"{path.name}.writer").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ShardBusy(
            f"{path.name} is being written by another process; give each writer its own shard"
        ) from None
    return file


def _map_size(path: Path) -> int:
    size = FIRST_MAP_SIZE
    while path.exists() and size < 2 * path.stat().st_size:
        size *= 2
    return size


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest()
