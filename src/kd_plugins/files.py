"""Files that are there whole or not at all, JSON without NaN, and the lock of a folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LARGEST_JSON = 100_000_000
"""Bytes; what we write has some hundred thousand."""
LARGEST_WHOLE = 2**63 - 1


@contextmanager
def whole_file(path: Path, *, durably: bool = False) -> Iterator[IO[bytes]]:
    """Give a file to write under a partial name, which gets its own once it is whole.

    Whatever goes wrong meanwhile, what stood at ``path`` stays, and nothing else is left.

    Args:
        path: of the file; its folder is made if it is not there.
        durably: wait until it is on the disk.

    Raises:
        OSError: naming the file, as on a full disk.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file, or nothing yet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            if durably:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is None or (error.filename and Path(error.filename) != partial):
            raise
        # Python names no file when a write fails, and the partial one means nothing to a user.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durably: bool = False) -> Path:
    """Write a file that is there whole or not at all; return the path.

    Raises:
        OSError: naming the file, as on a full disk.
    """
    with whole_file(path, durably=durably) as file:
        file.write(content)
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
    except IsADirectoryError:
        raise IsADirectoryError(f"{path}: is a folder; expected a file of JSON") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise ValueError(f"{path}: not JSON ({where} is not UTF-8); write it anew") from None
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


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made or written into.

    Raises:
        NotADirectoryError: for a file in its place, or on the way to it.
        PermissionError: if nothing may be written there.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        raise NotADirectoryError(f"{folder}: {there} is a file; expected a folder, or nothing yet")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: nothing may be written into {there}")


class FolderInUse(Exception):
    """Another process does in a folder what only one may do at a time."""


@contextmanager
def folder_lock(
    folder: Path, name: str, *, shared: bool = False, patience: float = 0.0
) -> Iterator[int]:
    """Keep other processes from doing the same in a folder.

    The lock is held on the file ``<name>.writer``, which stays behind. The operating system frees
    it when the last process that has it open ends, so a killed process leaves nothing to clean up.

    Args:
        folder: which is there.
        name: of the work. Locks of different names do not exclude each other.
        shared: let other processes hold it at the same time, if theirs is shared, too.
        patience: seconds to wait for another process.

    Yields:
        the lock's file descriptor. A child that inherits it (``Popen(pass_fds=[...])``) holds the
        lock as well, so that it outlives this process.

    Raises:
        FolderInUse: if another process, or another caller in this one, holds the lock; nothing is
            changed then.
        OSError: if the folder is not there or may not be written.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + patience

    # Appending makes the file and changes nothing in one that is there.
    with (folder / f"{name}.writer").open("a") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FolderInUse(
                        f"{folder}: another process holds {name}.writer; wait until it has ended"
                    ) from None
            time.sleep(0.01)
        yield file.fileno()


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
