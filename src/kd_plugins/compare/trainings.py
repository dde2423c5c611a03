"""Trainings as processes of their own: started, logged, and ended by Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kd_plugins.files import FolderInUse, folder_lock
from kd_plugins.processes import device_of_worker, threads_each

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

    As a context manager it ends them at Ctrl-C. Each has a share of the cores. Of several at a time
    each sees one GPU, in turn; with ``cuda:1`` all see that one, with ``cpu`` none.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        workers: trainings at a time.
        several_gpus: whether one training takes several GPUs, so that it sees all of them.
    """

    def __init__(
        self, device: str = "auto", workers: int = 1, *, several_gpus: bool = False
    ) -> None:
        self._device, self._workers, self._several_gpus = device, workers, several_gpus
        self._free = list(range(workers))
        """Numbers of the workers that train nothing."""
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

    def run(self, command: Sequence[str], folder: Path) -> Finished | None:
        """Run a host's command to its end, its output in ``training.log``.

        Args:
            command: words of the command line.
            folder: of the run.

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
                worker = self._free.pop(0)
                process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env=self._environment(worker),
                    # The training keeps the lock if this process alone is killed.
                    pass_fds=[descriptor],
                )
                self._running[process] = folder

            try:
                return _wait(process)
            finally:
                with self._lock:
                    del self._running[process]
                    self._free.append(worker)

    def _environment(self, worker: int) -> dict[str, str]:
        """Return the environment of a training, whose OMP_NUM_THREADS a user may have set."""
        own = {"OMP_NUM_THREADS": str(threads_each(self._workers)), **os.environ}
        is_named = self._device not in ("auto", "cuda")
        if not is_named and (self._workers == 1 or self._several_gpus):
            return own

        gpus = _gpu_names(os.environ)
        return {**own, **visible_gpus(device_of_worker(self._device, worker, len(gpus)), gpus)}


def visible_gpus(device: str, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variable that shows a process one GPU alone, or none.

    Hosts have arguments of their own for the device; all of them see what this variable leaves.

    Args:
        device: ``cpu``, ``cuda:0`` or ``cuda:1``.
        gpus: names of those that this process sees.

    >>> visible_gpus("cuda:1", ["2", "5"]), visible_gpus("cpu", ["2", "5"])
    ({'CUDA_VISIBLE_DEVICES': '5'}, {'CUDA_VISIBLE_DEVICES': ''})
    """
    name = gpus[int(device.partition(":")[2])] if device.startswith("cuda:") else ""
    return {"CUDA_VISIBLE_DEVICES": name}


def _gpu_names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the GPUs that torch finds, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else list(map(str, range(count)))
    return names[:count]


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
