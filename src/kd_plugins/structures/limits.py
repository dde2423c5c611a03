"""Open files of others, compressed or not, and refuse what would fill the memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

VARIABLE = "KD_LARGEST_GB"
"""Environment variable that replaces every limit here, in GB."""
UNPACKED_RATIO, UNPACKED_BYTES = 200, 256 << 20
"""A compressed file may unpack to so many times its size, and to so many bytes in any case."""
STRUCTURE_BYTES = 256 << 20
"""One structure of an extended xyz; also a whole ASE JSON database, which ASE reads at once."""
MATERIAL_BYTES = 64 << 20
"""One material of an MPtrj JSON."""
LINE_BYTES = 16 << 20
"""One line of an extended xyz."""
JSON_DEPTH = 1000
"""Brackets of a JSON within each other; 10 are usual."""
BYTES_PER_BRACKET = 16
"""A bracket counts as so many bytes at least. In Python, each list or object takes about a hundred
bytes of memory; in real data there is one in 40 bytes of text, in a hostile file one in two."""

_OPENERS: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}


def max_bytes(default: int) -> int:
    """Return a limit in bytes, or what the environment variable allows instead.

    Raises:
        ValueError: if the variable is not a number above 0.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return default

    try:
        size = float(text)
    except ValueError:
        size = -1.0

    if not 0 < size < 1e6:
        raise ValueError(f"{VARIABLE}: expected a number of GB above 0, such as 20, got {text!r}")

    return int(size * 1e9)


def too_large(what: str, limit: int) -> ValueError:
    """Return the error for something that is larger than its limit."""
    return ValueError(
        f"{what} takes more than {limit / 1e6:.0f} MB, as a damaged or hostile file would; if it "
        f"is meant so, allow more, such as {VARIABLE}=20 in front of the command"
    )


# Compressed files: .gz, .xz and .bz2, recognized by their suffix.


def plain_name(path: Path) -> str:
    """Return a file's name without the suffix of its compression.

    >>> plain_name(Path("data/train.extxyz.xz")), plain_name(Path("POSCAR"))
    ('train.extxyz', 'POSCAR')
    """
    return path.stem if path.suffix in _OPENERS else path.name


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, decompressed on the way, in blocks.

    Reading raises a ValueError where a compressed file unpacks to far more than its own size.
    """
    if path.suffix not in _OPENERS:
        return path.open("rb")

    limit = max_bytes(max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size))
    packed = _OPENERS[path.suffix](path, "rb")
    return io.BufferedReader(BoundedFile(packed, limit, "what it unpacks to"), 1 << 20)


@contextmanager
def decompressed(path: Path) -> Iterator[Path]:
    """Give the path of the file's plain content: itself, or a temporary copy of that name.

    ASE seeks in what it reads, which on a compressed stream takes quadratic time.

    Raises:
        ValueError: for a file that was compressed twice, or unpacks to far more than its own size.
    """
    if path.suffix not in _OPENERS:
        yield path
        return

    # ASE would unpack the inner one without a limit.
    if Path(plain_name(path)).suffix in _OPENERS:
        raise ValueError("it is compressed twice; unpack it once")

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / plain_name(path)
        with open_binary(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield plain


class BoundedFile(io.RawIOBase):
    """A binary file that can be read up to a number of bytes.

    Args:
        source: the file that is read.
        limit: how many bytes.
        what: the thing that is too large, for the message.
    """

    def __init__(self, source: IO[bytes], limit: int, what: str) -> None:
        self._source, self._limit, self._what, self._n_read = source, limit, what, 0

    def readable(self) -> bool:
        """Return True, which `io.BufferedReader` needs."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes.

        Raises:
            ValueError: beyond the limit.
        """
        chunk = self._source.read(len(buffer))
        self._n_read += len(chunk)
        if self._n_read > self._limit:
            raise too_large(self._what, self._limit)

        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """Close both files."""
        self._source.close()
        super().close()


class Readable(Protocol):
    """What has bytes to read, such as an open file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        ...


class BoundedJson:
    """A JSON file, read in blocks, that refuses a record which would fill the parser's memory.

    Brackets inside strings are counted as well; real data have too few of them to matter.

    Args:
        file: of bytes.
        limit: how many bytes a record may have.
        what: one record, for the message.
    """

    def __init__(self, file: Readable, limit: int, what: str) -> None:
        self._file, self._limit, self._what = file, limit, what
        self.start_record()

    def start_record(self) -> None:
        """Begin to count another record."""
        self._n_bytes = self._n_brackets = self._depth = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: for a record that is too large, too deep, or of too many lists.
        """
        chunk = self._file.read(size)
        n_opened = chunk.count(b"[") + chunk.count(b"{")
        n_closed = chunk.count(b"]") + chunk.count(b"}")
        self._n_bytes += len(chunk)
        self._n_brackets += n_opened
        self._depth += n_opened - n_closed

        if self._depth > JSON_DEPTH:
            raise ValueError(f"{self._what} is nested more than {JSON_DEPTH} deep; is it damaged?")
        if max(self._n_bytes, BYTES_PER_BRACKET * self._n_brackets) > self._limit:
            raise too_large(self._what, self._limit)
        return chunk
