"""Whether a shard still holds what was written to it: by checksums, a log beside it, and a walk.

``main.lmdb.written`` has the number of records of ``main.lmdb``, the sum of their checksums, and
the state of the file after the last batch. A shard is opened at once if its file is still in that
state. Any other, such as a copy, is first read in a process of its own: LMDB maps the file into
memory and trusts it, so that damaged pages can end the process that reads them. That process loads
this file, so nothing that is slow to load is imported here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb

from kd_plugins.files import write_bytes

FORMAT = 2
"""Of new stores. In format 1 a record's checksum did not cover its id."""
DIGEST_SIZE = 16
MODULUS = 1 << 8 * DIGEST_SIZE
PAGE_RECORDS, PAGE_BYTES = 1000, 1 << 24
"""Limits of what is read in one transaction; short, as readers without a slot have 30 s only."""
MOST_READERS = 1024
LOCK_FILE_SIZE = 64 * MOST_READERS + 128
"""Bytes of LMDB's lock file: a cache line for each reader, and its header."""
SUFFIX = ".written"
LOG_BYTES = 1 << 16
"""Size at which the log starts anew: only its last line is ever needed."""
META_PAGES = 8192
"""Bytes of LMDB's first two pages, which say which others are valid; a shard has them at least."""


class StoreError(Exception):
    """Something is wrong with a store on disk; the message says what and how to mend it."""


# ----------------------------------------------------------------------------------------------
# Checksums of records


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


# ----------------------------------------------------------------------------------------------
# Locks of LMDB's readers


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


# ----------------------------------------------------------------------------------------------
# The log beside a shard


@dataclass(frozen=True)
class Total:
    """Number of records and sum of their checksums.

    Args:
        records: how many.
        digest: sum of their checksums modulo 2^128, which does not depend on their order.
    """

    records: int = 0
    digest: int = 0

    def plus(self, digests: Iterable[bytes]) -> Total:
        """Return the total after records with these checksums were added."""
        added = [int.from_bytes(digest, "big") for digest in digests]
        return Total(self.records + len(added), (self.digest + sum(added)) % MODULUS)

    def joined(self, other: Total) -> Total:
        """Return the total of the records of two shards."""
        return Total(self.records + other.records, (self.digest + other.digest) % MODULUS)


@dataclass(frozen=True)
class FileState:
    """A shard's file as it can be compared without reading all of it.

    Args:
        size: in bytes.
        changed: time of its last change in ns.
        head: hash of its first two pages.
    """

    size: int
    changed: int
    head: str

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the present state of a file."""
        with path.open("rb") as file:
            head = hashlib.blake2b(file.read(META_PAGES), digest_size=8).hexdigest()
            status = os.fstat(file.fileno())
        return cls(status.st_size, status.st_mtime_ns, head)


@dataclass(frozen=True)
class Entry:
    """The last line of the file.

    Args:
        before: total before the last batch.
        after: total with it.
        state: of the shard's file after the batch; None while the batch may or may not be there.
    """

    before: Total
    after: Total
    state: FileState | None = None

    def allowed(self) -> list[Total]:
        """Return the totals that the shard may have."""
        return [self.after] if self.state is not None else [self.before, self.after]


class WrittenLog:
    """The file beside a shard, with a line before each batch and one after it.

    The line before is on the disk before the batch is, so a shard that holds fewer records than it
    names has lost some. A kill between the two lines leaves the shard with or without that batch,
    and both are as they should be. The line after is not waited for. Each line has a checksum: one
    that a kill has left incomplete is skipped.

    Args:
        shard: path of the shard.
    """

    def __init__(self, shard: Path) -> None:
        self.path = shard.with_name(f"{shard.name}{SUFFIX}")

    def read(self) -> Entry | None:
        """Return the last whole line, or None if there is no such file.

        Raises:
            StoreError: if there is no whole line in it, or it cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error

        # Only the last line can be incomplete, but a damaged file may hold anything.
        for line in reversed(lines):
            entry = _parse_line(line)
            if entry is not None:
                return entry
        raise StoreError(
            f"{self.path.name} is damaged, so the number of records that its shard should hold is "
            "unknown; restore it from a copy, or remove it and copy what is there into another "
            "store (kd-plugins merge STORE --into NEW)"
        )

    def begin(self, before: Total, after: Total) -> None:
        """Note, durably, what is about to be written."""
        line = _format_line("writing", *_fields(before), *_fields(after))
        if self.path.exists() and self.path.stat().st_size < LOG_BYTES:
            self._append(line, durably=True)
            if before.records == 0:
                sync_folder(self.path.parent)
            return

        # The first line, or the first after many, replaces the file as a whole. Nothing can be lost
        # of an empty shard, so its line need not reach the disk first.
        is_durable = after.records > 0
        write_bytes(self.path, line, durably=is_durable)
        if is_durable:
            sync_folder(self.path.parent)

    def end(self, total: Total, state: FileState) -> None:
        """Note that all of it was written."""
        fields = (str(state.size), str(state.changed), state.head)
        self._append(_format_line("written", *_fields(total), *fields), durably=False)

    def _append(self, line: bytes, *, durably: bool) -> None:
        with self.path.open("a+b") as file:
            # After a line that a kill cut short, start a new one.
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line

            file.write(line)
            file.flush()
            if durably:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let a new file's name survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fields(total: Total) -> tuple[str, str]:
    return str(total.records), f"{total.digest:032x}"


def _format_line(*fields: str) -> bytes:
    text = " ".join(fields)
    return f"{text} {_line_checksum(text)}\n".encode("ascii")


def _line_checksum(text: str) -> str:
    return hashlib.blake2b(text.encode("ascii"), digest_size=4).hexdigest()


def _parse_line(line: bytes) -> Entry | None:
    """Return the content of a line, or None if the line is not whole."""
    text, _, checksum = line.decode("ascii", "replace").rpartition(" ")
    if not text.isascii() or checksum != _line_checksum(text):
        return None

    kind, *fields = text.split(" ")
    first = Total(int(fields[0]), int(fields[1], 16))
    if kind == "writing":
        return Entry(first, Total(int(fields[2]), int(fields[3], 16)))
    return Entry(first, first, FileState(int(fields[2]), int(fields[3]), fields[4]))


# ----------------------------------------------------------------------------------------------
# A walk through a shard, in a process of its own


@dataclass(frozen=True)
class WalkResult:
    """What reading a shard from end to end has found.

    Args:
        total: number of its records, and the sum of their checksums if the payloads were read.
        fault: what is wrong with the shard as a whole, if anything.
    """

    total: Total
    fault: str | None = None


def walk_shard(path: Path, *, payloads: bool = False) -> WalkResult:
    """Read a shard from end to end in a process of its own, which damage may end.

    Args:
        path: of the shard.
        payloads: read the records as well as their ids; they are nearly all of the file.

    Raises:
        StoreError: if no such process can be started.
    """
    # Isolated (-I) and without site packages' start-up (-S), so that no environment variable and
    # no .pth file runs code in it; the parent's search path is given to it instead.
    start = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        f"from {__name__} import print_walk; print_walk(*sys.argv[1:])"
    )
    command = [sys.executable, "-ISc", start, json.dumps(sys.path), str(path)]
    command.append("all" if payloads else "ids")
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise StoreError(
            f"{path.name} cannot be examined, since {sys.executable} cannot be started: {error}"
        ) from error

    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        found = json.loads(lines[-1])
        return WalkResult(Total(found["records"], int(found["total"], 16)), found["fault"])

    # The process was ended; the numbers that it printed say how far it came.
    n_read = next((int(line) for line in reversed(lines) if line.isdecimal()), 0)
    how = f"code {done.returncode}"
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
    why = f" ({errors[-1]})" if errors else ""
    fault = f"reading it ended a process by {how}{why}, after {n_read} records"
    return WalkResult(Total(n_read), fault)


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


def print_walk(path: str, what: str) -> None:
    """Walk through a shard, print the result as JSON, and end this process.

    Args:
        path: of the shard.
        what: to read, ``ids`` or ``all``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    walk = ShardWalk(path, ids_only=what == "ids")
    fault = walk.run()
    print(
        json.dumps({"records": walk.n_records, "total": f"{walk.total:x}", "fault": fault}),
        flush=True,
    )
    os._exit(0)  # closing a damaged shard may end the process, too


# ----------------------------------------------------------------------------------------------
# The check before a shard is opened


def is_initialized(path: Path, entry: Entry | None) -> bool:
    """Return whether a shard was ever more than begun; of one that was not, nothing can be lost.

    Args:
        path: of the shard.
        entry: the last line of its `WrittenLog`.
    """
    if entry is None or entry.after.records > 0:
        return True

    is_stub = not path.exists() or (path.is_file() and path.stat().st_size < META_PAGES)
    return not is_stub


def check_shard(path: Path, *, always_walk: bool = False) -> bool:
    """Refuse a shard that does not hold what was written to it, before LMDB opens it.

    If its file is in the state in which its last writer left it, that is all. Otherwise, as for a
    copy, its ids are read in a process of its own and counted. While a writer is at work, or after
    it was killed, the file may be in any state, and LMDB deals with that. A damaged record is no
    reason to refuse the others: its checksum is compared when it is read.

    Args:
        path: of the shard.
        always_walk: read the ids in any case.

    Returns:
        whether they were read.

    Raises:
        StoreError: naming the damage.
    """
    log = WrittenLog(path)
    entry = log.read()
    fault = _file_fault(path, entry)
    if fault is not None:
        raise StoreError(fault)

    if not is_initialized(path, entry):
        return False

    has_no_state = entry is not None and entry.state is None
    is_unchanged = entry is not None and entry.state == FileState.of(path)
    if (has_no_state or is_unchanged) and not always_walk:
        return False

    # The state may be of a batch that another process has written since the line was read.
    if log.read() != entry and not always_walk:
        return False

    found = walk_shard(path)
    state = FileState.of(path)
    if log.read() != entry:
        entry = None  # another process writes meanwhile, so the ids are of several states
    fault = _content_fault(path, found, entry, state)
    if fault is not None:
        raise StoreError(fault)
    return True


def missing_log_fault(path: Path) -> str:
    """Return the message for a shard whose `WrittenLog` is gone."""
    return (
        f"{path.name}{SUFFIX} is missing, so the number of records that {path.name} should hold is "
        "unknown; restore it from a copy, or copy what is there into another store (kd-plugins "
        "merge STORE --into NEW)"
    )


def digest_fault(path: Path, total: Total, entry: Entry | None) -> str | None:
    """Return what is wrong if the records, each of them whole, are not those that were written."""
    if entry is None or total in entry.allowed():
        return None
    return f"{path.name} holds other records than those that were written; {_salvage(path)}"


def _file_fault(path: Path, entry: Entry | None) -> str | None:
    """Return what is wrong with a shard's file, as far as its size tells."""
    log_name = f"{path.name}{SUFFIX}"
    lost = "its records are lost"
    if entry is not None:
        n_records = entry.after.records
        lost = "its one record is lost" if n_records == 1 else f"its {n_records} records are lost"

    if not path.exists():
        if entry is None or entry.after.records == 0:
            return None
        return (
            f"{path.name} is missing and {lost}; restore it from a copy, or remove {log_name}, "
            "too, and label its structures again"
        )
    if not path.is_file():
        return f"{path.name} is no file, and {lost}; restore it from a copy"

    size = path.stat().st_size
    if size < META_PAGES and is_initialized(path, entry):
        return (
            f"{path.name} is cut short: {size} bytes, where the smallest shard has {META_PAGES}, "
            f"and {lost}; restore it from a copy, or remove it (and {log_name}) and label its "
            "structures again"
        )
    return None


def _content_fault(
    path: Path, found: WalkResult, entry: Entry | None, state: FileState
) -> str | None:
    """Return what is wrong with a shard's content, as far as its ids tell."""
    remedy = (
        f"restore it from a copy, or remove it (and {path.name}{SUFFIX}) and label its structures "
        "again"
    )
    if found.fault is not None:
        return f"{path.name} is damaged: {found.fault}; {remedy}"
    if entry is None:
        return None

    n_found, n_written = found.total.records, entry.after.records
    if n_found in [total.records for total in entry.allowed()]:
        if entry.state is not None and entry.state.head != state.head:
            return f"{path.name} is damaged: its first pages are not what was written; {remedy}"
        return None

    if n_found < n_written:
        return (
            f"{path.name} has lost records: it holds {n_found} of {n_written} that were written, "
            f"{n_written - n_found} missing; {_salvage(path)}"
        )
    return (
        f"{path.name} holds {n_found} records, but {n_written} were written; it and "
        f"{path.name}{SUFFIX} are not of one time: {_salvage(path)}"
    )


def _salvage(path: Path) -> str:
    return (
        f"restore it from a copy; to keep what is left, remove {path.name}{SUFFIX} and copy it "
        "into another store (kd-plugins merge STORE --into NEW)"
    )
