"""How much a file may unpack to and how large one record may be, lest it fills the memory."""

from __future__ import annotations

import io
import os
from typing import IO, Any

VARIABLE = "KD_LARGEST_GB"
"""Environment variable that lifts every limit here, in GB."""
PACKED_TIMES, PACKED_LEAST = 200, 256 << 20
"""A compressed file may unpack to so many times its size, and to so many bytes in any case."""
STRUCTURE = 256 << 20
"""Bytes of one structure of an extended xyz, and of an ASE JSON database, which is read at once."""
MATERIAL = 64 << 20
"""Bytes of one material of an MPtrj JSON."""
LINE = 16 << 20
"""Bytes of one line of an extended xyz."""
DEEPEST = 1000
"""Brackets of a JSON within each other; 10 are usual."""
BYTES_A_BRACKET = 16
"""Each list or object takes a hundred bytes of memory; in real data one comes every 40 bytes."""


def largest(default: int) -> int:
    """Return a limit in bytes, or what the environment variable allows instead.

    Raises:
        ValueError: for a variable that is no number above 0.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return default
    try:
        size = float(given)
    except ValueError:
        size = -1.0
    if not 0 < size < 1e6:
        raise ValueError(f"{VARIABLE}: expected a number of GB above 0, such as 20, got {given!r}")
    return int(size * 1e9)


def beyond(what: str, limit: int) -> ValueError:
    """Return the error for something that is larger than it may be."""
    return ValueError(
        f"{what} takes more than {limit / 1e6:.0f} MB, as a damaged or hostile file would; if it "
        f"is meant so, allow more, such as {VARIABLE}=20 in front of the command"
    )


class BoundedFile(io.RawIOBase):
    """Passes on what it reads of another file, up to a number of bytes.

    Args:
        source: a file of bytes.
        limit: how many.
        what: the thing that is too large, for the message.
    """

    def __init__(self, source: IO[bytes], limit: int, what: str) -> None:
        self._source, self._limit, self._what, self._n_read = source, limit, what, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes.

        Raises:
            ValueError: beyond the limit.
        """
        chunk = self._source.read(len(buffer))
        self._n_read += len(chunk)
        if self._n_read > self._limit:
            raise beyond(self._what, self._limit)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """Close both."""
        self._source.close()
        super().close()


class BoundedJson:
    """Passes on a JSON in blocks, and counts what would fill the memory of whoever parses it.

    Brackets inside strings count as well, which no real data notice.

    Args:
        file: of bytes.
        limit: how many bytes a record may have.
        what: one record, for the message.
    """

    def __init__(self, file: IO[bytes], limit: int, what: str) -> None:
        self._file, self._limit, self._what = file, limit, what
        self.next_record()

    def next_record(self) -> None:
        """Count anew."""
        self._n_bytes = self._n_open = self._depth = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: for a record that is too large, too deep, or of too many lists.
        """
        chunk = self._file.read(size)
        n_opened = chunk.count(b"[") + chunk.count(b"{")
        self._n_bytes += len(chunk)
        self._n_open += n_opened
        self._depth += n_opened - chunk.count(b"]") - chunk.count(b"}")

        if self._depth > DEEPEST:
            raise ValueError(f"{self._what} is nested more than {DEEPEST} deep; is it damaged?")
        if max(self._n_bytes, BYTES_A_BRACKET * self._n_open) > self._limit:
            raise beyond(self._what, self._limit)
        return chunk
