"""LMDB's handles of the files of a store: one a process, whole and with room to lock."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import lmdb

FIRST_MAP_SIZE = 1 << 28
MOST_READERS = 1024
LOCK_SIZE = 64 * MOST_READERS + 128
"""Bytes of LMDB's lock file."""


class StoreError(Exception):
    """Something is wrong with a store on disk; the message says what and how to mend it."""


def is_born(path: Path) -> bool:
    """Return whether a shard has the two pages that make it one; its writer makes the others."""
    return path.exists() and path.stat().st_size >= 2 * mmap.PAGESIZE


def recover(path: Path) -> None:
    """Let readers see the last batch of a killed writer, if it was whole.

    LMDB tells readers of a commit at its very end, or when somebody writes again.
    """
    transaction(path, write=True).abort()


_OPEN: dict[Path, tuple[int, bool, lmdb.Environment]] = {}
"""LMDB allows a process one handle a file: path to process id, whether it may write, and handle."""


def handle_of(path: Path, *, write: bool) -> lmdb.Environment:
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
            lock=_has_room_for_lock(path, write),
            map_size=_map_size(path),
            max_readers=MOST_READERS,
        )
    except lmdb.Error as error:
        raise StoreError(f"{path.name} is no shard of a target store: {error}") from error
    _check_length(path, environment)
    return environment


def _has_room_for_lock(path: Path, write: bool) -> bool:
    """Make LMDB's lock file whole: mapped from a full disk, it would end the process."""
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


def transaction(path: Path, *, write: bool) -> lmdb.Transaction:
    """Return a transaction, after another process has made the file larger, too."""
    environment = handle_of(path, write=write)
    try:
        return environment.begin(write=write)
    except lmdb.MapResizedError:
        environment.set_mapsize(0)
        return environment.begin(write=write)


def _map_size(path: Path) -> int:
    size = FIRST_MAP_SIZE
    while path.exists() and size < 2 * path.stat().st_size:
        size *= 2
    return size
