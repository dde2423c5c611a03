"""A host's training as a process of its own, which holds a lock on its folder."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kd_plugins.store.shard import ShardBusy, exclusive_lock

LOG, TRAINING = "training.log", "training"
"""What a host says, and the lock."""
TAIL = 1500
"""Bytes of a log that an error shows."""


@dataclass(frozen=True)
class Ended:
    """How a host's process ended.

    Args:
        code: its exit code.
        cpu_seconds: of it and of all processes that it waited for, such as those that load data;
            None if the system did not tell.
    """

    code: int
    cpu_seconds: float | None


class Trainings:
    """The hosts' processes that run now, and whether more may start.

    Ctrl-C in its block ends them.
    """

    def __init__(self) -> None:
        self._running: dict[subprocess.Popen[bytes], Path] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.end()

    @property
    def stopped(self) -> bool:
        """Whether no training starts any more."""
        return self._stopped

    def stop(self) -> list[Path]:
        """Let no training start any more; return the folders of those that run."""
        with self._lock:
            self._stopped = True
            return sorted(self._running.values())

    def end(self) -> None:
        """Let no training start any more, and ask those that run to end."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def called(self, command: Sequence[str], folder: Path, threads: int) -> Ended | None:
        """Call a host and return how it ended; None if no training may start any more.

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
        with lock, (folder / LOG).open("ab") as log:
            with self._lock:
                if self._stopped:
                    return None
                process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env={"OMP_NUM_THREADS": str(threads), **os.environ},
                    pass_fds=[lock.fileno()],
                )
                self._running[process] = folder
            try:
                return _waited(process)
            finally:
                with self._lock:
                    del self._running[process]


def said(folder: Path) -> str:
    """Return the end of what a host has said, whatever bytes it wrote."""
    path = folder / LOG
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - TAIL))
        return log.read().decode("utf-8", errors="replace")


def _waited(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for a process as `subprocess` does, which does not tell what its processes have used."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # somebody else has waited for it
        return Ended(process.wait(), None)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, usage.ru_utime + usage.ru_stime)
