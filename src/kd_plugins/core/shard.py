"""One LMDB file of checksummed records: a single writer, any number of readers, no half records."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO

import lmdb

from kd_plugins.core.environment import StoreError as StoreError
from kd_plugins.core.environment import handle_of, is_born, recover, transaction

LONGEST_ID = 500
"""Bytes of UTF-8; LMDB keys end at 511."""
DIGEST_SIZE = 16
PAGE = 1000
"""Ids that are read at once."""


class ShardBusy(StoreError):
    """Another process is writing."""


class ShardWriter:
    """Appends records to a shard, a batch at a time: all of a batch is kept, or nothing.

    The operating system drops the lock of a killed writer, so its successor just goes on.

    Args:
        path: of the LMDB file; made if it is not there.
        patience: seconds to wait for another writer.

    Raises:
        ShardBusy: if another process is writing to it.
        StoreError: if the folder is read-only, or the file is damaged.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        self.path = path.resolve()
        try:
            self._lock = exclusive_lock(path, patience)
            if self.path.exists() and not is_born(self.path):
                self.path.unlink()  # what a full disk or a kill left of its making
            recover(self.path)
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
            handle = handle_of(self.path, write=True)
            handle.set_mapsize(2 * handle.info()["map_size"])
            self.append(records)
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.path.name}: a batch of {len(records)} could not be written ({error}); "
                "all batches before it are kept: make room and go on"
            ) from error

    def _put(self, records: Mapping[str, bytes]) -> None:
        with transaction(self.path, write=True) as writing:
            for structure_id, payload in records.items():
                writing.put(key(structure_id), _digest(payload) + payload)

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
        handle_of(self.path, write=False)

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
        """Yield all ids in order, whatever happens to the shard in between."""
        page = self._page(b"")
        while page:
            yield from (stored.decode() for stored in page)
            page = self._page(page[-1] + b"\0")

    def _page(self, start: bytes) -> list[bytes]:
        with self._access() as reading, reading.cursor() as cursor:
            if not cursor.set_range(start):
                return []
            return [bytes(k) for k in islice(cursor.iternext(keys=True, values=False), PAGE)]

    def _stored(self, structure_id: str) -> bytes | None:
        with self._access() as reading:
            stored = reading.get(key(structure_id))
            return None if stored is None else bytes(stored)

    @contextmanager
    def _access(self) -> Iterator[lmdb.Transaction]:
        try:
            with transaction(self.path, write=False) as reading:
                yield reading
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


def exclusive_lock(path: Path, patience: float = 0.0) -> IO[str]:
    """Return a lock beside ``path`` that ends when it is closed, or with its process.

    Raises:
        ShardBusy: if another process still has it after ``patience`` seconds.
    """
    file, deadline = path.with_name(f"{path.name}.writer").open("a"), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise ShardBusy(
                    f"{path.name} is being written by another process; give each writer its own "
                    "shard"
                ) from None
        time.sleep(0.01)


def take_over(shard: Path, patience: float) -> None:
    """Wait some seconds until nobody writes a shard, and make its last whole batch seen."""
    ShardWriter(shard, patience).close()


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest()
