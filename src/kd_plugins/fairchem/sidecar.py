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


def read_sidecar(checkpoint: Path, step: int, fingerprint: str) -> dict[str, Any] | None:
    """Return the distillation state that belongs to a checkpoint of a step, or None.

    A run killed between the two files has it in the pending one.

    Raises:
        ConfigError: if the run had another teacher.
    """
    for path in (pending_path(checkpoint), sidecar_path(checkpoint)):
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["step"] == step:
                _check_teacher(state["teacher"], fingerprint, path)
                return state
    return None


def _check_teacher(found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise ConfigError(
            f"{path.name} was written with another teacher (weights {found[:12]}, now "
            f"{expected[:12]}); resume with that teacher or start under a new --timestamp-id"
        )
