"""Compressed files: .gz, .xz and .bz2, told by their suffix."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kd_plugins.structures.limits import PACKED_LEAST, PACKED_TIMES, BoundedFile, largest

_OPENERS: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}


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
    limit = largest(max(PACKED_LEAST, PACKED_TIMES * path.stat().st_size))
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
    if Path(plain_name(path)).suffix in _OPENERS:
        raise ValueError("it is compressed twice; unpack it once")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / plain_name(path)
        with open_binary(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield plain
