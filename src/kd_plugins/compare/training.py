"""A host's training as a process of its own, which holds a lock on its folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kd_plugins.core.shard import ShardBusy, exclusive_lock

LOG, TRAINING = "training.log", "training"
"""What a host says, and the lock."""


def called(command: Sequence[str], folder: Path, threads: int) -> int:
    """Call a host and return its exit code.

    It holds a lock on the folder: it would go on if this process alone were killed.

    Raises:
        ValueError: if another one still holds it.
    """
    try:
        lock = exclusive_lock(folder / TRAINING)
    except ShardBusy:
        raise ValueError(
            f"{folder}: a training still goes on there, of a command that was stopped or runs "
            "beside this one; wait for it, or stop it"
        ) from None
    with lock, (folder / LOG).open("a") as log:
        return subprocess.call(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            pass_fds=[lock.fileno()],
        )
