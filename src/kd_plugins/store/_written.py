"""What was written to a shard, kept in a file beside it, and whether the shard still holds it.

``main.lmdb.written`` has the number of records of ``main.lmdb``, the sum of their checksums, and
the state of the file after the last batch. A shard is opened at once if its file is still in that
state. Any other, such as a copy, is first read in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kd_plugins.files import write_bytes
from kd_plugins.store import _walk
from kd_plugins.store._walk import MODULUS

SUFFIX = ".written"
LOG_BYTES = 1 << 16
"""Size at which the file starts anew: only its last line is ever needed."""
META_PAGES = 8192
"""Bytes of LMDB's first two pages, which say which others are valid; a shard has them at least."""

_SET_PATH = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "


class StoreError(Exception):
    """Something is wrong with a store on disk; the message says what and how to mend it."""


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
    start = f"{_SET_PATH}runpy.run_path({_walk.__file__!r}, run_name='__main__')"
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
