"""A shard: one LMDB file of checksummed records, with one writer and any number of readers.

Three properties of LMDB shape this module. It allows one handle a file and process, so handles are
shared and opened anew after a fork. It writes over pages that no reader in its lock file uses, so a
writer keeps old states for readers that cannot write into that file. And it trusts the file, so
damage is looked for before it opens one (`kd_plugins.store._integrity`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

import lmdb

from kd_plugins.files import FolderInUse, folder_lock
from kd_plugins.store._integrity import (
    FORMAT,
    MOST_READERS,
    Entry,
    FileState,
    StoreError,
    Total,
    WrittenLog,
    check_shard,
    digest,
    is_initialized,
    make_lock_file,
    missing_log_fault,
    reader_lock,
    stored_digest,
    walk_shard,
)
from kd_plugins.store.record import check_payload, encode_id

FIRST_MAP_SIZE = 1 << 28
"""Bytes of address space, not of disk; doubled when a shard grows beyond it."""
IDS_AT_ONCE = 1000
GRACE = 30.0
"""Seconds for which a reader without a slot in LMDB's lock file may rely on what it reads."""


class ShardBusy(StoreError):
    """Another process is writing."""


# Handles of LMDB files, one a process and file.


@dataclass(frozen=True)
class _Handle:
    """An open LMDB file.

    Args:
        environment: LMDB's handle.
        process: id of the process that opened it; LMDB's handles do not survive a fork.
        is_writable: whether it was opened for writing.
        has_slot: whether its readers are in LMDB's lock file.
        inode: device and inode of the file.
    """

    environment: lmdb.Environment
    process: int
    is_writable: bool
    has_slot: bool
    inode: tuple[int, int]


_HANDLES: dict[Path, _Handle] = {}


def _open_handle(path: Path, *, write: bool) -> _Handle:
    """Return this process's handle of a file, opened anew after a fork, or to write."""
    handle = _HANDLES.get(path)
    if handle is not None:
        if handle.process == os.getpid() and (handle.is_writable or not write):
            return handle
        _close_handle(path)

    has_slot = make_lock_file(path, write=write)
    environment = _open_environment(path, write, has_slot)
    status = path.stat()
    inode = (status.st_dev, status.st_ino)
    _HANDLES[path] = _Handle(environment, os.getpid(), write, has_slot, inode)
    return _HANDLES[path]


def _close_handle(path: Path) -> None:
    _HANDLES.pop(path).environment.close()


def _close_stale_handle(path: Path) -> None:
    """Close the handle of a file that was removed or replaced since: it would read the old one."""
    handle = _HANDLES.get(path)
    if handle is None:
        return

    try:
        status = path.stat()
        is_stale = (status.st_dev, status.st_ino) != handle.inode
    except FileNotFoundError:
        is_stale = True

    if is_stale:
        _close_handle(path)


def _open_environment(path: Path, write: bool, has_slot: bool) -> lmdb.Environment:
    try:
        environment = lmdb.open(
            str(path),
            subdir=False,
            readonly=not write,
            lock=has_slot,
            map_size=_map_size(path),
            max_readers=MOST_READERS,
        )
    except lmdb.Error as error:
        raise StoreError(f"{path.name} is no shard of a target store: {error}") from error

    # A file that is shorter than LMDB's own account of it would end the process that reads it.
    n_pages, size = environment.info()["last_pgno"] + 1, path.stat().st_size
    expected = n_pages * environment.stat()["psize"]
    if size < expected:
        environment.close()
        raise StoreError(
            f"{path.name} is cut short: {size} bytes of {expected}; restore it from a copy, or "
            "remove it and label its structures again"
        )
    return environment


def _map_size(path: Path) -> int:
    """Return a map in which the file can grow to twice its size."""
    size = FIRST_MAP_SIZE
    while path.exists() and size < 2 * path.stat().st_size:
        size *= 2
    return size


def begin_transaction(path: Path, *, write: bool) -> lmdb.Transaction:
    """Begin a transaction, also after another process has made the file larger.

    Raises:
        StoreError: if too many processes read the file at once.
    """
    environment = _open_handle(path, write=write).environment

    # Twice, since both can be in the way.
    for _ in range(2):
        try:
            return environment.begin(write=write)
        except lmdb.MapResizedError:
            environment.set_mapsize(0)
        except lmdb.ReadersFullError:
            environment.reader_check()  # frees the slots of processes that were killed

    try:
        return environment.begin(write=write)
    except lmdb.ReadersFullError as error:
        raise StoreError(
            f"{path.name} is read by {MOST_READERS} processes already; use fewer workers, or give "
            "each machine a copy of the store"
        ) from error


@contextmanager
def read_transaction(path: Path) -> Iterator[lmdb.Transaction]:
    """Give a transaction in which what is read stays as it is while other processes write.

    A process without a slot in LMDB's lock file, since it may not write there, relies on the
    writer's `Snapshots` for that.
    """
    handle = _open_handle(path, write=False)
    with reader_lock(str(path), handle.has_slot), begin_transaction(path, write=False) as reading:
        yield reading


def recover_last_batch(path: Path) -> None:
    """Let readers see the last batch of a killed writer, if it was whole.

    LMDB makes a commit visible to readers at its very end, or when another write begins.
    """
    # Slots of killed processes keep pages from reuse.
    _open_handle(path, write=True).environment.reader_check()
    begin_transaction(path, write=True).abort()


class Snapshots:
    """Keep old states of a shard for readers that LMDB cannot see, while a writer is at work.

    LMDB writes over pages that no reader in its lock file may still see. A user who may only read,
    or on a full disk, is not in that file, and would read pages of another record, or be ended by
    LMDB. So the writer keeps read transactions of its own open: each state of the shard stays
    readable for `GRACE` seconds after it was written over. The writer before may just have ended,
    and its transactions with it, so at first readers of older states are waited for, which show
    themselves by a shared lock on the shard.

    Args:
        path: of the shard, which this process has opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._snapshots: deque[tuple[float, lmdb.Transaction]] = deque()
        self._has_waited = False
        self._take()

    def _take(self) -> None:
        self._snapshots.append((time.monotonic(), begin_transaction(self._path, write=False)))

    def prepare_commit(self) -> None:
        """Make it safe to write over what is two states old."""
        if not self._has_waited:
            self._wait_for_earlier_readers()

        now = time.monotonic()
        if now - self._snapshots[-1][0] > GRACE:
            self._take()

        # Readers that began between the first snapshot and the second have finished by the time
        # that the second is older than GRACE.
        while len(self._snapshots) > 1 and now - self._snapshots[1][0] > GRACE:
            self._snapshots.popleft()[1].abort()

    def _wait_for_earlier_readers(self) -> None:
        """Wait until no reader has a shared lock on the shard, or for `GRACE` seconds."""
        start = self._snapshots[0][0]
        with self._path.open("rb") as file:
            while not self._has_waited:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._has_waited = True
                except BlockingIOError:
                    # Slower readers are not waited for, see GRACE.
                    self._has_waited = time.monotonic() - start > GRACE
                    time.sleep(0.001)

    def release(self) -> None:
        """Let LMDB use the pages again."""
        while self._snapshots:
            self._snapshots.popleft()[1].abort()


class ShardWriter:
    """Appends records to a shard, a batch at a time: all of a batch is kept, or nothing.

    The operating system frees the lock of a killed writer, so the next one goes on without a
    repair. The number of records is kept beside the shard, see `kd_plugins.store._integrity`.

    Args:
        path: of the LMDB file; made if it is not there.
        patience: seconds to wait for another writer.
        form: format of the store.
        locks: further locks, which are freed with the writer's own.

    Raises:
        ShardBusy: if another process is writing to it.
        StoreError: if the folder is read-only, or the shard damaged or gone.
    """

    def __init__(
        self,
        path: Path,
        patience: float = 0.0,
        form: int = FORMAT,
        locks: ExitStack | None = None,
    ) -> None:
        self.path, self.form = path.resolve(), form
        self._log = WrittenLog(self.path)
        self._locks = locks or ExitStack()

        # Whatever fails, no lock is left behind: another process could not write until this one has
        # ended.
        try:
            self._locks.enter_context(folder_lock(path.parent, path.name, patience=patience))
            self._total = self._open_or_create()
            self._snapshots = Snapshots(self.path)
        except FolderInUse:
            self._locks.close()
            raise ShardBusy(
                f"{path.name} is being written by another process; give each writer its own shard"
            ) from None
        except (lmdb.Error, OSError) as error:
            self._locks.close()
            raise StoreError(f"{path.name} cannot be written: {error}") from error
        except BaseException:
            self._locks.close()
            raise

    def _open_or_create(self) -> Total:
        """Open the shard, or make it; return what it holds."""
        entry = self._log.read()
        if entry is None and not self.path.exists():
            # The line comes before the shard, so that the loss of the shard would be noticed.
            self._log.begin(Total(), Total())
        elif entry is None and self.form > 1:
            raise StoreError(missing_log_fault(self.path))
        else:
            check_shard(self.path)

        if not is_initialized(self.path, self._log.read()) and self.path.exists():
            self.path.unlink()  # what a full disk or a kill has left of its making
        _close_stale_handle(self.path)
        recover_last_batch(self.path)

        entry = self._log.read()
        total = self._read_total(entry)
        state = FileState.of(self.path)
        if entry is None:  # of a version that did not count: from now on records are counted
            self._log.begin(total, total)
        if entry is None or entry.state != state:
            self._log.end(total, state)
        return total

    def _read_total(self, entry: Entry | None) -> Total:
        """Return which of the totals in the log's last line the shard has."""
        if entry is None:
            return walk_shard(self.path, payloads=True).total

        n_records = _open_handle(self.path, write=True).environment.stat()["entries"]
        totals = {total.records: total for total in (entry.before, entry.after)}
        if n_records not in totals:
            raise StoreError(
                f"{self.path.name} holds {n_records} records, but {entry.after.records} were "
                "written; restore it from a copy"
            )
        return totals[n_records]

    def append(self, records: Mapping[str, bytes]) -> None:
        """Write a batch durably.

        Raises:
            ValueError: for an id that is in the shard already; nothing of the batch is then kept.
            StoreError: if the disk is full; what was written before is kept.
        """
        if not records:
            return

        content = {encode_id(name): payload for name, payload in records.items()}
        total = self._total.plus(digest(name, payload) for name, payload in content.items())

        try:
            self._snapshots.prepare_commit()
            self._log.begin(self._total, total)
            self._commit(content)
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.path.name}: a batch of {len(records)} could not be written ({error}); "
                "all batches before it are kept: make room and go on"
            ) from error

        self._total = total
        with suppress(OSError):  # the batch is on the disk, with this line or without it
            self._log.end(total, FileState.of(self.path))

    def _commit(self, content: Mapping[bytes, bytes]) -> None:
        """Write a batch in one transaction, which an error takes back as a whole."""
        while True:
            try:
                with begin_transaction(self.path, write=True) as writing:
                    for name, payload in content.items():
                        stored = stored_digest(name, payload, self.form) + payload
                        if not writing.put(name, stored, overwrite=False):
                            raise ValueError(
                                f"structure id {name.decode()!r} is in {self.path.name} already"
                            )
                return
            except lmdb.MapFullError:
                # The map is address space only, so doubling it costs nothing.
                environment = _open_handle(self.path, write=True).environment
                environment.set_mapsize(2 * environment.info()["map_size"])

    def close(self) -> None:
        """Let another process write."""
        self._snapshots.release()
        self._locks.close()

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
        always_walk: read all ids in a child process first, even if the file seems unchanged.

    Raises:
        StoreError: if the file is no shard, is damaged, or has lost records.
    """

    def __init__(self, path: Path, form: int = FORMAT, *, always_walk: bool = False) -> None:
        self.path, self.form = path.resolve(), form
        if check_shard(self.path, always_walk=always_walk):
            _note_state(self.path)
        _close_stale_handle(self.path)
        _open_handle(self.path, write=False)

    def get(self, structure_id: str) -> bytes | None:
        """Return a record's payload, or None if the shard has none of that id.

        Raises:
            StoreError: if the bytes are not those that were written.
        """
        stored = self._get_stored(structure_id)
        if stored is None:
            return None

        return check_payload(structure_id, stored, self.form, self.path.name)

    def __contains__(self, structure_id: str) -> bool:
        """Look at the key only; a damaged record is there, and is refused when it is read."""
        with self._transaction() as transaction, transaction.cursor() as cursor:
            return cursor.set_key(encode_id(structure_id))  # without a copy of the record

    def ids(self) -> Iterator[str]:
        """Yield all ids in order, whatever is written to the shard in between."""
        page = self._ids_from(b"")
        while page:
            yield from (structure_id.decode() for structure_id in page)
            page = self._ids_from(page[-1] + b"\0")

    def _ids_from(self, start: bytes) -> list[bytes]:
        with self._transaction() as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(start):
                return []
            keys = cursor.iternext(keys=True, values=False)
            return [bytes(key) for key in islice(keys, IDS_AT_ONCE)]

    def _get_stored(self, structure_id: str) -> bytes | None:
        """Return a record's checksum and payload."""
        with self._transaction() as transaction:
            stored = transaction.get(encode_id(structure_id))
            return None if stored is None else bytes(stored)

    @contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        try:
            with read_transaction(self.path) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreError(
                f"{self.path.name} is damaged ({error}); restore it from a copy, or remove it and "
                "label its structures again"
            ) from error


def _note_state(shard: Path) -> None:
    """Write down the state of a shard whose ids were just read, so that the next reader need not.

    Not where nothing may be written, nor while another process writes, which does so itself.
    """
    log = WrittenLog(shard)
    with suppress(StoreError, OSError, FolderInUse), folder_lock(shard.parent, shard.name):
        entry, state = log.read(), FileState.of(shard)
        if entry is None or entry.state is None:
            return

        # With other first pages the shard is not the one that was written.
        if entry.state != state and entry.state.head == state.head:
            log.end(entry.after, state)
