"""How many records were written to a shard, kept beside it, so that their loss is noticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kd_plugins.store.environment import StoreError
from kd_plugins.store.walk import MODULUS

SUFFIX = ".written"
LARGEST = 1 << 16
"""Bytes after which the file starts anew: only its last line is ever needed."""
HEAD = 8192
"""Bytes at the beginning of a shard that say which of its pages are valid."""


@dataclass(frozen=True)
class Total:
    """What a shard holds.

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
class Look:
    """What a shard's file looks like from outside.

    Args:
        size: in bytes.
        changed: time of its last change in ns.
        head: hash of its first two pages.
    """

    size: int
    changed: int
    head: str

    @classmethod
    def at(cls, path: Path) -> Look:
        """Return what a file looks like now."""
        with path.open("rb") as file:
            head = hashlib.blake2b(file.read(HEAD), digest_size=8).hexdigest()
            status = os.fstat(file.fileno())
        return cls(status.st_size, status.st_mtime_ns, head)


@dataclass(frozen=True)
class Entry:
    """The last line of the file.

    Args:
        before: what the shard held before the last batch.
        after: what it holds with it.
        look: of the shard's file once the batch was there; None while it may or may not be.
    """

    before: Total
    after: Total
    look: Look | None = None

    def admits(self, total: Total) -> bool:
        """Return whether the shard may hold this."""
        return total == self.after or (self.look is None and total == self.before)


class WrittenLog:
    """A file beside a shard with a line before each batch and one after it.

    The line before is on the disk before the batch is, so that a shard that holds less than it
    says has lost records. A kill between the two leaves the shard with or without that batch, and
    both are as they should be. The line after is not waited for. A torn line is passed over.

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
        for line in reversed(lines):
            entry = _parse(line)
            if entry is not None:
                return entry
        raise StoreError(
            f"{self.path.name} is damaged, so that nobody knows how many records its shard should "
            f"hold; restore it from a copy, or remove it and copy what is there into another "
            "store (kd-plugins merge STORE --into NEW)"
        )

    def begin(self, before: Total, after: Total) -> None:
        """Say, durably, what is about to be written."""
        line = _line("writing", *_words(before), *_words(after))
        if self.path.exists() and self.path.stat().st_size < LARGEST:
            self._add(line, durably=True)
            if before.records == 0:
                sync_folder(self.path.parent)
            return

        # As a whole or not at all, be it the first line or the first after many. Of an empty shard
        # nothing can be lost, so that its line need not be waited for.
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(line)
                file.flush()
                if after.records:
                    os.fsync(file.fileno())
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        if after.records:
            sync_folder(self.path.parent)

    def end(self, total: Total, look: Look) -> None:
        """Say that all of it was written."""
        line = _line("written", *_words(total), str(look.size), str(look.changed), look.head)
        self._add(line, durably=False)

    def _add(self, line: bytes, *, durably: bool) -> None:
        with self.path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # after a torn one
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


def _words(total: Total) -> tuple[str, str]:
    return str(total.records), f"{total.digest:032x}"


def _line(*words: str) -> bytes:
    text = " ".join(words)
    return f"{text} {_check(text)}\n".encode("ascii")


def _check(text: str) -> str:
    return hashlib.blake2b(text.encode("ascii"), digest_size=4).hexdigest()


def _parse(line: bytes) -> Entry | None:
    """Return what a line says, or None if it is torn."""
    text, _, check = line.decode("ascii", "replace").rpartition(" ")
    if not text.isascii() or check != _check(text):
        return None
    kind, *words = text.split(" ")
    first = Total(int(words[0]), int(words[1], 16))
    if kind == "writing":
        return Entry(first, Total(int(words[2]), int(words[3], 16)))
    return Entry(first, first, Look(int(words[2]), int(words[3]), words[4]))
