"""Read a shard's ids from end to end in a process of its own, which damage may end.

LMDB maps the file into memory and trusts it: damaged pages can end the process that reads them.
`kd_plugins.store._written` therefore runs this file as a script in a child process. It imports
nothing that is slow to load, so nothing of kd_plugins; what it has in common with the rest of the
store (checksums, LMDB's lock file, the lock of readers) is defined here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

FORMAT = 2
"""Of new stores. In format 1 a record's checksum did not cover its id."""
DIGEST_SIZE = 16
MODULUS = 1 << 8 * DIGEST_SIZE
PAGE_RECORDS, PAGE_BYTES = 1000, 1 << 24
"""Limits of what is read in one transaction; short, as readers without a slot have 30 s only."""
MOST_READERS = 1024
LOCK_FILE_SIZE = 64 * MOST_READERS + 128
"""Bytes of LMDB's lock file: a cache line for each reader, and its header."""


def digest(structure_id: bytes, payload: bytes) -> bytes:
    """Return the checksum of a record, which holds for its id and its payload together."""
    content = hashlib.blake2b(len(structure_id).to_bytes(2, "big"), digest_size=DIGEST_SIZE)
    content.update(structure_id)
    content.update(payload)
    return content.digest()


def payload_digest(payload: bytes) -> bytes:
    """Return the checksum of a record as format 1 kept it, of the payload alone."""
    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest()


def stored_digest(structure_id: bytes, payload: bytes, form: int) -> bytes:
    """Return the checksum that precedes a record's payload in a store of some format."""
    return payload_digest(payload) if form == 1 else digest(structure_id, payload)


def make_lock_file(path: str | os.PathLike[str], *, write: bool) -> bool:
    """Give LMDB's lock file its full size; return whether it has one that can be used.

    LMDB maps the file and writes to it. On a full disk, a page that has no block yet would end the
    process, so all blocks are allocated first. A process that only reads does without the file
    where the folder, the file or the disk does not allow it.

    Args:
        path: of the shard; the lock file stands beside it.
        write: whether the process is going to write the shard.

    Raises:
        OSError: for a writer that cannot have the file.
    """
    path = os.fspath(path)
    if not os.access(os.path.dirname(path) or ".", os.W_OK):
        return False

    try:
        with open(f"{path}-lock", "ab") as file:
            os.posix_fallocate(file.fileno(), 0, LOCK_FILE_SIZE)
    except OSError:
        if write:
            raise
        return False

    return True


@contextmanager
def reader_lock(path: str, has_slot: bool) -> Iterator[None]:
    """Let a writer that starts wait for a reader that has no slot in LMDB's lock file.

    The lock is shared, on the shard itself, and needs no permission to write.
    """
    if has_slot:
        yield
        return

    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


class ShardWalk:
    """One pass through a shard in the order of its ids, with what it has found so far.

    Args:
        path: of the shard.
        ids_only: leave the payloads, which are most of the file, unread, and so ``total`` at 0.
    """

    def __init__(self, path: str, ids_only: bool) -> None:
        self.path, self.ids_only = path, ids_only
        self.has_slot = make_lock_file(path, write=False)
        self.n_records = 0
        self.total = 0  # sum of the checksums modulo MODULUS
        self.last_id = b""

    def run(self) -> str | None:
        """Read everything; return what is wrong with the shard as a whole, if anything."""
        try:
            environment = lmdb.open(
                self.path,
                subdir=False,
                readonly=True,
                lock=self.has_slot,
                max_readers=MOST_READERS,
            )
            n_pages = environment.info()["last_pgno"] + 1
            expected = n_pages * environment.stat()["psize"]
            size = os.path.getsize(self.path)
            if size < expected:
                return f"it is cut short: {size} bytes of {expected}"

            while True:
                before = self.n_records
                fault = self._read_page(environment)
                if fault is not None or self.n_records == before:
                    return fault
                print(self.n_records, flush=True)  # progress, in case this process is ended
        except (lmdb.Error, OSError) as error:
            return str(error).removeprefix(f"{self.path}: ")

    def _read_page(self, environment: lmdb.Environment) -> str | None:
        """Read some records in one transaction; return what is wrong, if anything."""
        not_found: str | None = None
        with reader_lock(self.path, self.has_slot), self._begin(environment) as transaction:
            cursor, lookup, size = transaction.cursor(), transaction.cursor(), 0
            if not cursor.set_range(self.last_id + b"\0"):
                return None

            for number, (key, value) in enumerate(cursor):
                if number == PAGE_RECORDS or size > PAGE_BYTES:
                    break

                # In a sound B-tree ids ascend: otherwise it has a loop, or a damaged key.
                structure_id, stored = bytes(key), value
                if structure_id <= self.last_id:
                    return f"its ids are out of order at {structure_id!r}"

                if not self.ids_only:
                    self._add_digest(structure_id, bytes(stored)[DIGEST_SIZE:])
                elif len(stored):
                    _ = stored[-1]  # a damaged length leads out of the file, and ends this process
                self.n_records += 1
                self.last_id = structure_id
                size += len(stored)

                # A damaged key in a page above the records hides them from lookups, while a cursor
                # that goes from one record to the next passes all of them.
                if not_found is None and not lookup.set_key(structure_id):
                    not_found = structure_id.decode("utf-8", "backslashreplace")

        return None if not_found is None else f"looked up by its id, {not_found!r} is not found"

    def _begin(self, environment: lmdb.Environment) -> lmdb.Transaction:
        try:
            return environment.begin(buffers=True)
        except lmdb.MapResizedError:  # another process has made the file larger
            environment.set_mapsize(0)
            return environment.begin(buffers=True)

    def _add_digest(self, structure_id: bytes, payload: bytes) -> None:
        added = int.from_bytes(digest(structure_id, payload), "big")
        self.total = (self.total + added) % MODULUS


def main(arguments: list[str]) -> None:
    """Walk through a shard and print the result as JSON; arguments: path, ``ids`` or ``all``."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    walk = ShardWalk(arguments[0], ids_only=arguments[1] == "ids")
    fault = walk.run()
    print(
        json.dumps({"records": walk.n_records, "total": f"{walk.total:x}", "fault": fault}),
        flush=True,
    )
    os._exit(0)  # closing a damaged shard may end the process, too


if __name__ == "__main__":
    main(sys.argv[1:])
