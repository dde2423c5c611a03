"""Files that are there whole or not at all, and JSON without NaN."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file under a partial name and give it its own once it is whole; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: Mapping[str, object]) -> Path:
    """Write a mapping as JSON, numbers as they are; return the path.

    Raises:
        ValueError: for a number that is not finite.
        TypeError: for something that JSON does not have.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected finite numbers ({error}); leave out what was not measured"
        ) from None
    return write_bytes(path, f"{text}\n".encode())


def read_json(path: Path) -> Mapping[str, object]:
    """Read a mapping that `write_json` has written.

    Raises:
        FileNotFoundError: without the file.
        ValueError: if it is not JSON, not a mapping, or holds NaN or infinity.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); write it anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, got a {type(content).__name__}")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number; leave out what was not measured")


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
