"""The distillation state beside fairchem's checkpoint, which itself stays a plain one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from kd_plugins.config import ConfigError


def write_atomically(state: dict[str, Any], path: Path) -> None:
    """Save a state so that a killed run leaves either the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def sidecar_path(checkpoint: Path) -> Path:
    """Return where the distillation state of a checkpoint lies."""
    return checkpoint.with_name(f"kd_{checkpoint.name}")


def pending_path(checkpoint: Path) -> Path:
    """Return where that state waits while fairchem's checkpoint is being replaced."""
    return checkpoint.with_name(f"kd_{checkpoint.name}.pending")


def read_sidecar(checkpoint: Path, step: int) -> dict[str, Any] | None:
    """Return the distillation state that belongs to a checkpoint of a step, or None.

    A run killed between the two files has it in the pending one.
    """
    for path in (pending_path(checkpoint), sidecar_path(checkpoint)):
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["step"] == step:
                return state
    return None


def fits(state: dict[str, Any], fingerprint: str, checkpoint: Path, *, refuse: bool) -> bool:
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
