"""The folder of a run: one training at a time, whole checkpoints, learning curves."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from chgnet.model import CHGNet

from kd_plugins.chgnet.convert import LETTERS
from kd_plugins.files import FolderInUse, folder_lock, write_bytes, write_json
from kd_plugins.torch_files import load_torch_file

LAST, BEST = "last.pth.tar", "best.pth.tar"

# Since version 0.1.0, so that trainings of either version exclude each other.
_LOCK = "run"

# Process, thread and folder of the locks that are held here.
_held: set[tuple[int, int, Path]] = set()


def check_run_folder(folder: str | Path, name: str) -> Path:
    """Return a folder's path, or refuse one that cannot be written; nothing is made.

    Args:
        folder: that is there or will be made; ``~`` is expanded.
        name: of the setting, for the message.

    Raises:
        ValueError: if it is not a path.
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
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other trainings out of it until the end, at the latest the process's.

    Raises:
        FileExistsError: if another training holds it; nothing is touched.
    """
    # `distill` holds the folder while it calls `fit`, which locks it as well; the file's lock
    # itself would refuse a second one of the same process.
    key = (os.getpid(), threading.get_ident(), folder.resolve())
    if key in _held:
        yield
        return

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, _LOCK))
        except FolderInUse:
            raise FileExistsError(
                f"{folder}: another training is writing there; wait for it, or choose another "
                "folder"
            ) from None

        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def check_not_in_use(folder: Path) -> None:
    """Refuse a folder in which another training is writing; nothing is made.

    Raises:
        FileExistsError: if there is one.
    """
    if (folder / f"{_LOCK}.writer").exists():
        with lock_run_folder(folder):
            pass


def read_run_checkpoint(path: Path) -> dict[str, Any]:
    """Return the checkpoint of a run that is to be resumed.

    Raises:
        ValueError: if it is cut short or something else, with the remedy.
    """
    remedy = f"to train anew, remove {path}"
    try:
        state = load_torch_file(path, trust_pickle=False, remedy=remedy)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error

    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise ValueError(f"{path}: holds no model, so it is no checkpoint of CHGNet; {remedy}")
    return state


def read_model(path: str | Path, *, trust_pickle: bool, remedy: str) -> CHGNet:
    """Return the model of a checkpoint that CHGNet's Trainer or this package wrote, on the CPU.

    Args:
        path: of the file; ``~`` is expanded.
        trust_pickle: read a file that holds pickled code, which may do anything.
        remedy: how the user sets that, for the message.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ValueError: if it is not a CHGNet checkpoint, is damaged, or holds pickled code that is not
            trusted.
    """
    state = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not {"model_args", "state_dict"} <= set(model):
        raise ValueError(
            f"{path} is no CHGNet checkpoint; expected one of CHGNet's Trainer, with model_args "
            "and state_dict under its key model"
        )

    try:
        return CHGNet.from_dict(model)
    except Exception as error:  # building a model from foreign settings can raise anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is no CHGNet checkpoint that can be built ({type(error).__name__}: {reason})"
        ) from error


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole: a kill or a full disk leaves what was there before.

    Raises:
        OSError: naming the file, if the disk is full, say.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole, so that it is on the disk when this returns.

    Raises:
        OSError: naming the file and the remedy; nothing is left of it.
    """
    try:
        write_bytes(path, content, durably=True)
    except OSError as error:
        raise type(error)(
            f"{path}: could not be written ({error.strerror or error}); make room or choose "
            "another folder, then the same call goes on"
        ) from error


def write_learning_curves(
    errors: Sequence[Mapping[str, float]],
    folder: str | Path,
    untrained: Mapping[str, float] | None = None,
) -> None:
    """Write what `kd-plugins report` draws: ``curves.json`` and ``terms.json``.

    They hold mean absolute errors in CHGNet's units (eV/atom, eV/Å, GPa, µB), against labels (hard)
    and the teacher (soft): those of validation as learning curves, those of training as terms.

    Args:
        errors: of one epoch each, as `Fitted.errors` has them.
        folder: of the run.
        untrained: validation errors before the first step, `Fitted.untrained`: those of epoch 0.

    Raises:
        ValueError: for a training without an epoch.
    """
    if not errors:
        raise ValueError("the training has no epoch yet, so there are no curves")

    def series(split: str, start: Mapping[str, float]) -> dict[str, dict[str, list[Any]]]:
        found = {}
        for name in (name for name in errors[0] if name.startswith(f"{split}_")):
            values = [start[name]] if name in start else []
            values += [epoch[name] for epoch in errors]
            first = len(errors) + 1 - len(values)
            epochs = list(range(first, len(errors) + 1))
            found[_title(name)] = {"epochs": epochs, "values": values}
        return found

    curves = {f"valid {title}": found for title, found in series("val", untrained or {}).items()}
    write_json(Path(folder) / "curves.json", curves)
    write_json(Path(folder) / "terms.json", series("train", {}))


def _title(name: str) -> str:
    """Return the name of an error in words.

    >>> _title("train_soft_e"), _title("val_score")
    ('soft energy', 'score')
    """
    quantities = {letter: quantity for quantity, letter in LETTERS.items()}
    _, *words = name.split("_")
    return " ".join(quantities.get(word, word) for word in words)
