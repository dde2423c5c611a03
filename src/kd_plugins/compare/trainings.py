"""Trainings as processes of their own: started, logged, and ended by Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kd_plugins.files import FolderInUse, folder_lock

LOG, TRAINING = "training.log", "training"
"""File of a host's output, and name of the lock on a run's folder."""
LOG_TAIL = 1500
"""Bytes at the end of a log that an error shows."""


@dataclass(frozen=True)
class Finished:
    """A training that has ended.

    Args:
        code: its exit code.
        cpu_seconds: of it and of all processes that it waited for, such as data loaders; None if
            the system did not report them.
    """

    code: int
    cpu_seconds: float | None


class Trainings:
    """The trainings that run now, and whether more may start.

    As a context manager it ends them at Ctrl-C.
    """

    def __init__(self) -> None:
        self._running: dict[subprocess.Popen[bytes], Path] = {}
        self._lock = threading.Lock()  # runs are started by several threads
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
        """Whether no further training will start."""
        return self._stopped

    def stop(self) -> list[Path]:
        """Start no further training; return the folders of those that run."""
        with self._lock:
            self._stopped = True
            return sorted(self._running.values())

    def end(self) -> None:
        """Start no further training, and terminate those that run."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def run(self, command: Sequence[str], folder: Path, threads: int) -> Finished | None:
        """Run a host's command to its end, its output in ``training.log``.

        Args:
            command: words of the command line.
            folder: of the run.
            threads: for OMP_NUM_THREADS, unless the environment sets it.

        Returns:
            how it ended; None if no further training may start.

        Raises:
            ValueError: if another training holds the folder.
        """
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(folder_lock(folder, TRAINING))
            except FolderInUse:
                raise ValueError(
                    f"{folder}: a training still goes on there, of a command that was stopped or "
                    "runs beside this one; wait for it, or stop it"
                ) from None
            log = stack.enter_context((folder / LOG).open("ab"))

            with self._lock:
                if self._stopped:
                    return None
                process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env={"OMP_NUM_THREADS": str(threads), **os.environ},
                    # The training keeps the lock if this process alone is killed.
                    pass_fds=[descriptor],
                )
                self._running[process] = folder

            try:
                return _wait(process)
            finally:
                with self._lock:
                    del self._running[process]


def _wait(process: subprocess.Popen[bytes]) -> Finished:
    """Wait for a process; `subprocess` does not return the CPU time of its children."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # another thread has waited for it
        return Finished(process.wait(), None)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Finished(process.returncode, usage.ru_utime + usage.ru_stime)


def end_of_log(folder: Path) -> str:
    """Return the end of a training's output, whatever bytes the host wrote."""
    path = folder / LOG
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL))
        return log.read().decode("utf-8", errors="replace")
