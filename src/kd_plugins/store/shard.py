"""One LMDB file of checksummed records: a single writer, any number of readers, no half records."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO

import lmdb

from kd_plugins.store.condition import check, is_unborn, walk
from kd_plugins.store.environment import Snapshots, begin, handle_of, reading, recover
from kd_plugins.store.environment import StoreError as StoreError
from kd_plugins.store.walk import DIGEST_SIZE, digest, stored_digest
from kd_plugins.store.written import Look, Total, WrittenLog

LONGEST_ID = 500
"""Bytes of UTF-8; LMDB keys end at 511."""
FORMAT = 2
"""Of new stores. In format 1 a record's checksum did not cover its id."""
PAGE = 1000
"""Ids that are read at once."""


class ShardBusy(StoreError):
    """Another process is writing."""


class ShardWriter:
    """Appends records to a shard, a batch at a time: all of a batch is kept, or nothing.

    The operating system drops the lock of a killed writer, so its successor just goes on. How many
    records were written stands beside the shard, see `kd_plugins.store.written`.

    Args:
        path: of the LMDB file; made if it is not there.
        patience: seconds to wait for another writer.
        form: format of the store.
        held: further locks, which end with the writer's own.

    Raises:
        ShardBusy: if another process is writing to it.
        StoreError: if the folder is read-only, or the shard damaged or gone.
    """

    def __init__(
        self,
        path: Path,
        patience: float = 0.0,
        form: int = FORMAT,
        held: tuple[IO[str], ...] = (),
    ) -> None:
        self.path, self.form = path.resolve(), form
        self._locks = list(held)
        self._log = WrittenLog(self.path)
        try:
            self._locks.append(exclusive_lock(path, patience))
            self._total = self._take_up()
            self._snapshots = Snapshots(self.path)
        except (lmdb.Error, OSError) as error:
            self._unlock()
            raise StoreError(f"{path.name} cannot be written: {error}") from error
        except BaseException:
            self._unlock()
            raise

    def _take_up(self) -> Total:
        """Make the shard, or go on with it; return what it holds."""
        entry = self._log.read()
        if entry is None and not self.path.exists():
            self._log.begin(Total(), Total())  # before there is a shard, so that one may be missed
        elif entry is None and self.form > 1:
            raise StoreError(
                f"{self._log.path.name} is missing, so that nobody knows how many records "
                f"{self.path.name} should hold; restore it from a copy, or copy what is there into "
                "another store (kd-plugins merge STORE --into NEW)"
            )
        else:
            check(self.path, self.form)
        if is_unborn(self.path, self._log.read()) and self.path.exists():
            self.path.unlink()  # what a full disk or a kill left of its making

        recover(self.path)
        entry, n_records = self._log.read(), handle_of(self.path, write=True).stat()["entries"]
        if entry is None:  # of a version that did not count: from now on it is
            total = walk(self.path, self.form).total
            self._log.begin(total, total)
        else:
            counts = {entry.before.records: entry.before, entry.after.records: entry.after}
            if n_records not in counts:
                raise StoreError(
                    f"{self.path.name} holds {n_records} records, but {entry.after.records} were "
                    "written; restore it from a copy"
                )
            total = counts[n_records]
        if entry is None or entry.look != Look.at(self.path):
            self._log.end(total, Look.at(self.path))
        return total

    def append(self, records: Mapping[str, bytes]) -> None:
        """Write a batch durably.

        Raises:
            ValueError: for an id that is in the shard already; nothing of the batch is then kept.
            StoreError: if the disk is full; what was written before is kept.
        """
        if not records:
            return
        content = {key(name): payload for name, payload in records.items()}
        total = self._total.plus(digest(name, payload) for name, payload in content.items())
        try:
            self._snapshots.before_commit()
            self._log.begin(self._total, total)
            self._put(content)
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.path.name}: a batch of {len(records)} could not be written ({error}); "
                "all batches before it are kept: make room and go on"
            ) from error
        self._total = total
        with suppress(OSError):  # the batch is there, whether we may say so or not
            self._log.end(total, Look.at(self.path))

    def _put(self, content: Mapping[bytes, bytes]) -> None:
        while True:
            try:
                with begin(self.path, write=True) as writing:
                    for name, payload in content.items():
                        stored = stored_digest(name, payload, self.form) + payload
                        if not writing.put(name, stored, overwrite=False):
                            raise ValueError(
                                f"structure id {name.decode()!r} is in {self.path.name} already"
                            )
                return
            except lmdb.MapFullError:
                handle = handle_of(self.path, write=True)
                handle.set_mapsize(2 * handle.info()["map_size"])

    def close(self) -> None:
        """Let another process write."""
        self._snapshots.release()
        self._unlock()

    def _unlock(self) -> None:
        while self._locks:
            self._locks.pop().close()

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
        form: format of the store.

    Raises:
        StoreError: if the file is no shard, is damaged, or has lost records.
    """

    def __init__(self, path: Path, form: int = FORMAT) -> None:
        self.path, self.form = path.resolve(), form
        if check(self.path, form) is not None:
            _remember(self.path)
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
        with self._access() as seen, seen.cursor() as cursor:
            if not cursor.set_range(start):
                return []
            return [bytes(k) for k in islice(cursor.iternext(keys=True, values=False), PAGE)]

    def _stored(self, structure_id: str) -> bytes | None:
        with self._access() as seen:
            stored = seen.get(key(structure_id))
            return None if stored is None else bytes(stored)

    @contextmanager
    def _access(self) -> Iterator[lmdb.Transaction]:
        try:
            with reading(self.path) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreError(
                f"{self.path.name} is damaged ({error}); restore it from a copy, or remove it and "
                "label its structures again"
            ) from error

    def _checked(self, structure_id: str, stored: bytes) -> bytes:
        found, payload = stored[:DIGEST_SIZE], stored[DIGEST_SIZE:]
        if found != stored_digest(key(structure_id), payload, self.form):
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


def exclusive_lock(path: Path, patience: float = 0.0) -> IO[str]:
    """Return a lock beside ``path`` that ends when it is closed, or with its process.

    Raises:
        ShardBusy: if another process still has it after ``patience`` seconds.
    """
    return _lock(path, fcntl.LOCK_EX, patience)


def shared_lock(path: Path, patience: float = 0.0) -> IO[str]:
    """Return a lock beside ``path`` that many may have while nobody has the exclusive one.

    Raises:
        ShardBusy: if another process still has that after ``patience`` seconds.
    """
    return _lock(path, fcntl.LOCK_SH, patience)


def _lock(path: Path, kind: int, patience: float) -> IO[str]:
    file, deadline = path.with_name(f"{path.name}.writer").open("a"), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise ShardBusy(
                    f"{path.name} is being written by another process; give each writer its own "
                    "shard"
                ) from None
        time.sleep(0.01)


def _remember(shard: Path) -> None:
    """Write down how a shard looks that was just examined, so that the next reader need not.

    Not where nothing may be written, or somebody writes: he does so himself.
    """
    log = WrittenLog(shard)
    with suppress(StoreError, OSError), exclusive_lock(shard):
        entry = log.read()
        if entry is not None and entry.look is not None and entry.look.head == Look.at(shard).head:
            log.end(entry.after, Look.at(shard))


def take_over(shard: Path, patience: float, form: int) -> None:
    """Wait some seconds until nobody writes a shard, and make its last whole batch seen."""
    ShardWriter(shard, patience, form).close()
