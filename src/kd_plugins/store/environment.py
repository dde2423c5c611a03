"""LMDB's handles of the files of a store: one a process, whole and with room to lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from kd_plugins.store.walk import announced

FIRST_MAP_SIZE = 1 << 28
MOST_READERS = 1024
LOCK_SIZE = 64 * MOST_READERS + 128
"""Bytes of LMDB's lock file."""
GRACE = 30.0
"""Seconds for which a reader without a slot in LMDB's lock file may rely on what it reads."""


class StoreError(Exception):
    """Something is wrong with a store on disk; the message says what and how to mend it."""


def recover(path: Path) -> None:
    """Let readers see the last batch of a killed writer, if it was whole.

    LMDB tells readers of a commit at its very end, or when somebody writes again.
    """
    handle_of(path, write=True).reader_check()  # slots of killed processes keep pages from reuse
    begin(path, write=True).abort()


_OPEN: dict[Path, tuple[int, bool, bool, lmdb.Environment]] = {}
"""LMDB allows a process one handle a file: path to process id, may write, has slots, handle."""


def handle_of(path: Path, *, write: bool) -> lmdb.Environment:
    """Return this process's handle of a file, opened anew after a fork or to write."""
    process, may_write, _, environment = _OPEN.get(path, (-1, False, False, None))
    if environment is not None:
        if process == os.getpid() and (may_write or not write):
            return environment
        environment.close()
        del _OPEN[path]
    locked = has_room_for_lock(path, write)
    environment = _open(path, write, locked)
    _OPEN[path] = (os.getpid(), write, locked, environment)
    return environment


def _open(path: Path, write: bool, locked: bool) -> lmdb.Environment:
    try:
        environment = lmdb.open(
            str(path),
            subdir=False,
            readonly=not write,
            lock=locked,
            map_size=_map_size(path),
            max_readers=MOST_READERS,
        )
    except lmdb.Error as error:
        raise StoreError(f"{path.name} is no shard of a target store: {error}") from error
    _check_length(path, environment)
    return environment


def has_room_for_lock(path: Path, write: bool) -> bool:
    """Make LMDB's lock file whole: mapped from a full disk, it would end the process.

    Returns:
        whether there is one. Who only reads does without it where the folder, the file or the
        disk does not allow it.
    """
    if not os.access(path.parent, os.W_OK):
        return False
    try:
        with path.with_name(f"{path.name}-lock").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, LOCK_SIZE)
    except OSError:
        if write:
            raise
        return False
    return True


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


def begin(path: Path, *, write: bool) -> lmdb.Transaction:
    """Return a transaction, after another process has made the file larger, too.

    Raises:
        StoreError: if too many processes read it at once.
    """
    environment = handle_of(path, write=write)
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
def reading(path: Path) -> Iterator[lmdb.Transaction]:
    """Give a transaction in which what is read stays as it is while others write.

    Who has no slot in LMDB's lock file, since it may not write there, relies on `Snapshots`.
    """
    handle_of(path, write=False)
    _, _, locked, _ = _OPEN[path]
    with announced(str(path), locked), begin(path, write=False) as transaction:
        yield transaction


class Snapshots:
    """What a writer keeps for readers that LMDB does not know of.

    LMDB writes over pages that no reader in its lock file may still see. A user who may only read,
    or on a full disk, is not in that file, and would read pages of another record, or be ended by
    LMDB. So the writer keeps transactions of its own open: each state of the shard stays readable
    for `GRACE` seconds after it has been written over. Where the writer before it has just gone,
    readers of older states are waited for, who show it by a shared lock on the shard.

    Args:
        path: of the shard, which this process has opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: deque[tuple[float, lmdb.Transaction]] = deque()
        self._alone = False
        self._hold()

    def _hold(self) -> None:
        self._held.append((time.monotonic(), begin(self._path, write=False)))

    def before_commit(self) -> None:
        """Make it safe to write over what is two states old."""
        self._wait_for_earlier_readers()
        now = time.monotonic()
        if now - self._held[-1][0] > GRACE:
            self._hold()
        # Who began to read after the first one and before the second is done by now.
        while len(self._held) > 1 and now - self._held[1][0] > GRACE:
            self._held.popleft()[1].abort()

    def _wait_for_earlier_readers(self) -> None:
        if self._alone:
            return
        start = self._held[0][0]
        with self._path.open("rb") as file:
            while not self._alone:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._alone = True
                except BlockingIOError:
                    self._alone = time.monotonic() - start > GRACE
                    time.sleep(0.001)

    def release(self) -> None:
        """Let LMDB use the pages again."""
        while self._held:
            self._held.popleft()[1].abort()


def _map_size(path: Path) -> int:
    size = FIRST_MAP_SIZE
    while path.exists() and size < 2 * path.stat().st_size:
        size *= 2
    return size
