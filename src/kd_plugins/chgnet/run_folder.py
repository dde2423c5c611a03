"""The folder of a run: one training at a time, and checkpoints that are whole or not there."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kd_plugins.store.shard import ShardBusy, exclusive_lock
from kd_plugins.torch_files import load_torch_file

LAST, BEST = "last.pth.tar", "best.pth.tar"
_LOCK = "run"
_held: set[tuple[int, int, Path]] = set()
"""Process, thread and folder of the locks that are had here."""


def check_folder(folder: str | Path, name: str) -> Path:
    """Return a folder's path, or refuse one that cannot be written; nothing is made.

    Args:
        folder: that is there or will be made; ``~`` is expanded.
        name: of the setting, for the message.

    Raises:
        ValueError: for no path.
        OSError: for a file, a path through one, or a folder that may not be written.
    """
    if not isinstance(folder, str | os.PathLike) or not str(folder).strip():
        raise ValueError(f"{name}: expected the path of a folder, got {folder!r}")

    path = Path(folder).expanduser()
    there = next((part for part in (path, *path.absolute().parents) if part.exists()), Path("/"))
    if not there.is_dir():
        raise NotADirectoryError(f"{name}: {there} is a file, so {path} cannot be a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: {there} may not be written; choose another folder")
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made; ends with the process at the latest.

    Raises:
        FileExistsError: if another training has it; nothing is touched.
    """
    key = (os.getpid(), threading.get_ident(), folder.resolve())
    if key in _held:  # such as of `fit` inside of `distill`
        yield
        return

    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = exclusive_lock(folder / _LOCK)
    except ShardBusy:
        raise FileExistsError(
            f"{folder}: another training is writing there; wait for it, or choose another folder"
        ) from None
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        lock.close()


def check_free(folder: Path) -> None:
    """Refuse a folder in which another training is writing; nothing is made.

    Raises:
        FileExistsError: if so.
    """
    if (folder / f"{_LOCK}.writer").exists():
        with locked(folder):
            pass


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of a run that is to go on.

    Raises:
        ValueError: if it is cut short or something else, saying what to do.
    """
    away = f"to train anew, remove {path}"
    try:
        state = load_torch_file(path, trust_pickle=False, remedy=away)
    except ValueError as error:
        raise ValueError(f"{error}; {away}") from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise ValueError(f"{path}: holds no model, so it is no checkpoint of CHGNet; {away}")
    return state


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint in one go.

    Raises:
        OSError: naming the file if the disk is full, say; what was there before is left.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name, and give it its own once it is on the disk.

    Raises:
        OSError: naming the file; nothing is left of it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise type(error)(
            f"{path}: could not be written ({error.strerror or error}); make room or choose "
            "another folder, then the same call goes on"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
