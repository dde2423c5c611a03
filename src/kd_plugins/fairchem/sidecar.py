"""The distillation state beside fairchem's checkpoint, which itself stays a plain one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from kd_plugins.config import ConfigError
from kd_plugins.files import whole_file
from kd_plugins.numbers import shown
from kd_plugins.torch_files import load_torch_file

LEAVE = "delete it and start under a new --timestamp-id"
"""What to do with a file of a run's own that holds more than this package writes."""


class CheckpointError(OSError):
    """A checkpoint that could not be written; the one before it is whole."""


def write_atomically(state: dict[str, Any], path: Path) -> None:
    """Save a state so that a killed run leaves either the old file or the new one.

    Raises:
        CheckpointError: naming the file, as on a full disk.
    """
    with writing(path), whole_file(path) as file:
        torch.save(state, file)


@contextmanager
def writing(path: Path, *partial: Path) -> Iterator[None]:
    """Say of an error which checkpoint could not be written, and leave no part of it.

    Args:
        path: of the checkpoint.
        partial: files in which it is being made.

    Raises:
        CheckpointError: for an error of the disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        for file in partial:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        if isinstance(error, CheckpointError) or not _of_the_disk(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{path} could not be written: {' '.join(str(reason).split())}; the checkpoint before "
            "it is whole: make room and resume with the same --timestamp-id"
        ) from error


def _of_the_disk(error: OSError | RuntimeError) -> bool:
    # torch's own writer says so in words, among which is a path of its source.
    return isinstance(error, OSError) or "write" in str(error).lower()


def read_checkpoint_file(path: Path, trust_pickle: bool) -> Mapping[str, Any]:
    """Return what a checkpoint of fairchem holds, on the CPU.

    Raises:
        ConfigError: if it is not there, damaged, something else, or holds pickled code that nobody
            trusts.
    """
    remedy = "set task.distill.student.trust_pickle: true"
    try:
        state = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    except FileNotFoundError as error:
        raise ConfigError(f"--checkpoint: there is no file {str(path)!r}") from error
    except ValueError as error:
        raise ConfigError(f"checkpoint {error}") from error
    missing = [
        name
        for name in ("state_dict", "normalizers")
        if not isinstance(state, Mapping) or not isinstance(state.get(name), Mapping)
    ]
    if missing:
        raise ConfigError(f"checkpoint {path}: not of a fairchem trainer, it has no {missing[0]}")
    # fairchem opens, and unpickles, a file that stands in the place of the scale factors.
    if not isinstance(state.get("scale_dict") or {}, Mapping):
        raise ConfigError(
            f"checkpoint {path}: scale_dict: expected numbers by name, got "
            f"{shown(state['scale_dict'])}; save it without"
        )
    return state


def read_own(path: Path) -> Mapping[str, Any]:
    """Return what this package wrote beside a checkpoint.

    Raises:
        ConfigError: if it is damaged or something else.
    """
    try:
        state = load_torch_file(path, trust_pickle=False, remedy=LEAVE)
    except ValueError as error:
        raise ConfigError(f"{error}; or {LEAVE}") from error
    if not isinstance(state, Mapping):
        raise ConfigError(f"{path}: expected a mapping; {LEAVE}")
    return state


def sidecar_path(checkpoint: Path) -> Path:
    """Return where the distillation state of a checkpoint lies."""
    return checkpoint.with_name(f"kd_{checkpoint.name}")


def pending_path(checkpoint: Path) -> Path:
    """Return where that state waits while fairchem's checkpoint is being replaced."""
    return checkpoint.with_name(f"kd_{checkpoint.name}.pending")


def read_sidecar(checkpoint: Path, step: int) -> Mapping[str, Any] | None:
    """Return the distillation state that belongs to a checkpoint of a step, or None.

    A run killed between the two files has it in the pending one.

    Raises:
        ConfigError: if it is damaged.
    """
    for path in (pending_path(checkpoint), sidecar_path(checkpoint)):
        if path.is_file():
            state = read_own(path)
            if state.get("step") == step and isinstance(state.get("teacher"), str):
                return state
    return None


def fits(state: Mapping[str, Any], fingerprint: str, checkpoint: Path, *, refuse: bool) -> bool:
    """Return whether a state was written with this teacher.

    Args:
        state: beside the checkpoint.
        fingerprint: of the teacher of this run.
        checkpoint: for messages.
        refuse: another teacher, because this is the run that had it.

    Raises:
        ConfigError: if a run is to be resumed with another teacher than it had.
    """
    found = state["teacher"]
    if found != fingerprint and refuse:
        raise ConfigError(
            f"{checkpoint.name} was written with another teacher (weights {found[:12]}, now "
            f"{fingerprint[:12]}); resume with that teacher or start under a new --timestamp-id"
        )
    return bool(found == fingerprint)
