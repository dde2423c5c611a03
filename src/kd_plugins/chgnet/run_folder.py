"""The folder of a run: one training at a time, whole checkpoints, and learning curves."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chgnet.model import CHGNet

from kd_plugins.files import write_json
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


def read_model(path: str | Path, *, trust_pickle: bool, remedy: str) -> CHGNet:
    """Return the model of a checkpoint that CHGNet's Trainer or this package wrote, on the CPU.

    Args:
        path: of the file; ``~`` is expanded.
        trust_pickle: read a file that holds pickled code, which may do anything.
        remedy: how the user says that.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ValueError: if it is no CHGNet checkpoint, damaged, or holds pickled code that is not
            trusted.
    """
    state = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    held = state.get("model") if isinstance(state, dict) else None
    if not isinstance(held, dict) or not {"model_args", "state_dict"} <= set(held):
        raise ValueError(
            f"{path} is no CHGNet checkpoint; expected one of CHGNet's Trainer, with model_args "
            "and state_dict under its key model"
        )
    try:
        return CHGNet.from_dict(held)
    except Exception as error:  # whatever building a foreign model leads to
        first = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is no CHGNet checkpoint that can be built ({type(error).__name__}: {first})"
        ) from error


QUANTITIES = {"e": "energy", "f": "forces", "s": "stress", "m": "magmoms"}


def write_curves(errors: Sequence[Mapping[str, float]], folder: str | Path) -> None:
    """Write what `kd-plugins report` draws: ``curves.json`` and ``terms.json``.

    Mean absolute errors in CHGNet's units (eV/atom, eV/Å, GPa, µB), against labels (hard) and the
    teacher (soft): of validation as learning curves, of training as terms.

    Args:
        errors: an epoch each, of `Fitted.errors`.
        folder: of the run.

    Raises:
        ValueError: for a training without an epoch.
    """
    if not errors:
        raise ValueError("the training has no epoch yet, so there are no curves")
    sides = {
        split: {
            _title(name): _series([epoch[name] for epoch in errors])
            for name in errors[0]
            if name.startswith(f"{split}_")
        }
        for split in ("train", "val")
    }
    curves = {f"valid {title}": series for title, series in sides["val"].items()}
    write_json(Path(folder) / "curves.json", curves)
    write_json(Path(folder) / "terms.json", sides["train"])


def _title(name: str) -> str:
    """Return a name in words.

    >>> _title("train_soft_e"), _title("val_score")
    ('soft energy', 'score')
    """
    _, *words = name.split("_")
    return " ".join(QUANTITIES.get(word, word) for word in words)


def _series(values: Sequence[float]) -> Mapping[str, Sequence[float]]:
    return {"epochs": list(range(1, len(values) + 1)), "values": list(values)}
