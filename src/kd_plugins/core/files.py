"""Files that are there whole or not at all, and JSON without NaN."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

LARGEST_JSON = 100_000_000
"""Bytes; what we write has some hundred thousand."""
LARGEST_WHOLE = 2**63 - 1


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file under a partial name and give it its own once it is whole; return the path."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            # of a full disk Python tells no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return path


def write_json(path: Path, content: Mapping[str, object]) -> Path:
    """Write a mapping as JSON, numbers as they are; return the path.

    Raises:
        ValueError: for a number that is not finite, or text that is no Unicode.
        TypeError: for something that JSON does not have.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected finite numbers ({error}); leave out what was not measured"
        ) from None
    try:
        encoded = f"{text}\n".encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: {text[max(0, error.start - 20) : error.end + 20]!r} is not Unicode; give the "
            "file of that name another one"
        ) from None
    return write_bytes(path, encoded)


def read_json(path: Path) -> Mapping[str, object]:
    """Read a mapping that `write_json` has written.

    Raises:
        FileNotFoundError: without the file.
        ValueError: if it is not JSON, not a mapping, nested too deeply or too long, or holds NaN,
            infinity or an integer beyond 64 bits.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"{size} bytes, expected at most {LARGEST_JSON}")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON of ours (nested too deeply); write it anew") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); write it anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, got a {type(content).__name__}")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number; leave out what was not measured")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _bounded(text: str) -> int:
    # Python refuses to read integers of some thousand digits, and others overflow as a float
    if len(text) > 20 or abs(value := int(text)) > LARGEST_WHOLE:
        raise ValueError(f"the integer {text[:20]}... of {len(text)} digits is beyond 64 bits")
    return value


def file_hash(path: Path) -> str:
    """Return 16 hex digits of a file's SHA-256, whatever its size.

    Raises:
        FileNotFoundError: without the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
