"""A shard read from end to end, in a process of its own: damage may end it.

Run by `kd_plugins.store.condition` as a script. It imports nothing that is slow to load, so nothing
of kd_plugins; what it has in common with the shard is defined here.
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
from typing import Any

import lmdb

DIGEST_SIZE = 16
MODULUS = 1 << 8 * DIGEST_SIZE
PAGE_RECORDS, PAGE_BYTES = 1000, 1 << 24
"""What is read in one transaction: little, since a reader without a slot has some seconds only."""


def digest(structure_id: bytes, payload: bytes) -> bytes:
    """Return the checksum of a record: it holds for this id and this payload together."""
    content = hashlib.blake2b(len(structure_id).to_bytes(2, "big"), digest_size=DIGEST_SIZE)
    content.update(structure_id)
    content.update(payload)
    return content.digest()


def payload_digest(payload: bytes) -> bytes:
    """Return the checksum of a record as format 1 kept it, of the payload alone."""
    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest()


def stored_digest(structure_id: bytes, payload: bytes, form: int) -> bytes:
    """Return what stands before a record's payload in a store of some format."""
    return payload_digest(payload) if form == 1 else digest(structure_id, payload)


@contextmanager
def announced(path: str, locked: bool) -> Iterator[None]:
    """Let a writer that starts wait for a reader that has no slot in LMDB's lock file.

    The lock is shared, on the shard itself, and needs no permission to write.
    """
    if locked:
        yield
        return
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


class Walk:
    """Goes through a shard in the order of its ids and adds up what it finds."""

    def __init__(self, path: str, form: int, locked: bool, ids_only: bool) -> None:
        self.path, self.form, self.locked, self.ids_only = path, form, locked, ids_only
        self.records = self.total = 0
        self.damaged: list[str] = []
        self.unfound: list[str] = []
        self.last = b""

    def all(self) -> str | None:
        """Read everything; return what is wrong with the shard as a whole, if anything."""
        try:
            environment = lmdb.open(
                self.path, subdir=False, readonly=True, lock=self.locked, max_readers=1024
            )
            pages = environment.info()["last_pgno"] + 1
            expected, size = pages * environment.stat()["psize"], os.path.getsize(self.path)
            if size < expected:
                return f"it is cut short: {size} bytes of {expected}"

            while True:
                before = self.records
                fault = self._page(environment)
                if fault is None and self.unfound:
                    # A key in a page above the records: one after the other, all are there.
                    fault = f"looked up by its id, {self.unfound[0]!r} is not found"
                if fault is not None or self.records == before:
                    return fault
                print(self.records, flush=True)  # how far we came, should this process end
        except (lmdb.Error, OSError) as error:
            return str(error).removeprefix(f"{self.path}: ")

    def _page(self, environment: lmdb.Environment) -> str | None:
        with announced(self.path, self.locked), self._begin(environment) as reading:
            cursor, lookup, size = reading.cursor(), reading.cursor(), 0
            if not cursor.set_range(self.last + b"\0"):
                return None
            for number, (name, value) in enumerate(cursor):
                structure_id, stored = bytes(name), value
                if number == PAGE_RECORDS or size > PAGE_BYTES:
                    return None
                if structure_id <= self.last:  # a loop, or a key that lookups will not find
                    return f"its ids are out of order at {structure_id!r}"
                if not self.ids_only:
                    self._add(structure_id, bytes(stored))
                elif len(stored):
                    _ = stored[-1]  # a length that is damaged leads out of the file, and ends us
                self.records, self.last = self.records + 1, structure_id
                if not lookup.set_key(structure_id):
                    self.unfound.append(structure_id.decode("utf-8", "backslashreplace"))
                size += len(stored)
        return None

    def _begin(self, environment: lmdb.Environment) -> lmdb.Transaction:
        try:
            return environment.begin(buffers=True)
        except lmdb.MapResizedError:  # another process has made the file larger
            environment.set_mapsize(0)
            return environment.begin(buffers=True)

    def _add(self, structure_id: bytes, stored: bytes) -> None:
        check, payload = stored[:DIGEST_SIZE], stored[DIGEST_SIZE:]
        own = digest(structure_id, payload)
        if check != (payload_digest(payload) if self.form == 1 else own):
            self.damaged.append(structure_id.decode("utf-8", "backslashreplace"))
        self.total = (self.total + int.from_bytes(own, "big")) % MODULUS


def main(words: list[str]) -> None:
    """Walk through the shard that the words name, and print what was found as JSON."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    walk = Walk(words[0], int(words[1]), words[2] == "locked", words[3] == "ids")
    fault = walk.all()
    found: dict[str, Any] = {"records": walk.records, "total": f"{walk.total:x}"}
    print(json.dumps({**found, "damaged": walk.damaged[:1000], "fault": fault}), flush=True)
    os._exit(0)  # closing a damaged shard need not go well either


if __name__ == "__main__":
    main(sys.argv[1:])
