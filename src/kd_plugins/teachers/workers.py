"""Workers that label: one in this process, or several in processes of their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from kd_plugins.processes import end_with_parent, take_share
from kd_plugins.store import StoreError
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure
from kd_plugins.teachers.batches import Outcome, Worker
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher, TeacherError


class Engine(Protocol):
    """Workers, numbered from 0, that take one batch at a time."""

    n_workers: int

    def submit(self, worker: int, batch: Sequence[LabelledStructure]) -> None:
        """Give a batch to an idle worker."""

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return the outcome of a batch or more; None if the worker died and was replaced.

        Raises:
            TeacherError: if a worker's teacher does not work.
            StoreError: if a worker cannot write.
        """
        ...

    def close(self) -> None:
        """Stop all workers; what they have not committed is lost."""


class SerialEngine:
    """One worker in this process.

    Args:
        teacher: that labels.
        store: to write to.
    """

    def __init__(self, teacher: Teacher, store: TargetStore) -> None:
        self.n_workers = 1
        self._worker = Worker(teacher, store, "main")
        self._outcomes: list[tuple[int, Outcome | None]] = []

    def submit(self, worker: int, batch: Sequence[LabelledStructure]) -> None:
        """Label a batch before returning."""
        self._outcomes.append((worker, self._worker.label(batch)))

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return the outcomes of the batches submitted since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Let another process write."""
        self._worker.writer.close()


class ProcessEngine:
    """Workers in processes of their own, each with its teacher; a dead one is replaced.

    Args:
        teacher: its name, since each process makes its own.
        folder: of the store.
        n_workers: how many.
        device: where each worker's teacher computes, as `load_teacher` takes it. Without a number,
            each worker has a GPU, see `kd_plugins.processes.device_of_worker`.
    """

    def __init__(self, teacher: str, folder: Path, n_workers: int, device: str = "auto") -> None:
        self.n_workers = n_workers
        self._job = (teacher, device, folder, n_workers)

        # Each worker is forked from a server that has imported everything and computed nothing:
        # it starts at once, and no thread or CUDA context of this process is copied.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._processes: dict[int, Any] = {}
        self._pipes: dict[int, Any] = {}
        for worker in range(n_workers):
            self._start(worker)

    @property
    def pids(self) -> list[int]:
        """Process id of each worker."""
        return [self._processes[worker].pid for worker in range(self.n_workers)]

    def submit(self, worker: int, batch: Sequence[LabelledStructure]) -> None:
        """Send a batch; whether the worker lives shows in `wait`."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipes[worker].send(batch)

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return the outcomes that have come, at least one."""
        ready = connection.wait(list(self._pipes.values()))
        workers = [worker for worker, pipe in self._pipes.items() if pipe in ready]
        return [(worker, self._receive(worker)) for worker in workers]

    def close(self) -> None:
        """Kill the workers: a shard is never left with half a batch."""
        for process in self._processes.values():
            process.kill()
            process.join()
        for pipe in self._pipes.values():
            pipe.close()

    def _receive(self, worker: int) -> Outcome | None:
        try:
            received = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            self._processes[worker].join()
            self._pipes[worker].close()
            self._start(worker)
            return None

        # A teacher or a store that does not work ends the run, not only this worker.
        if isinstance(received, Exception):
            raise received
        return received

    def _start(self, worker: int) -> None:
        here, there = self._context.Pipe()
        arguments = (there, *self._job, worker)
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        process.start()

        # With a copy left open here, the pipe would not end with the worker.
        there.close()
        self._processes[worker], self._pipes[worker] = process, here


def _serve(pipe: Any, teacher: str, device: str, folder: Path, n_workers: int, number: int) -> None:
    """Label the batches that come through a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    take_share(device, number, n_workers)

    try:
        made = load_teacher(teacher, device)
        worker = Worker(made, TargetStore.open(folder), f"worker-{number}")
        while True:
            pipe.send(worker.label(pipe.recv()))
    except (TeacherError, StoreError) as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        pass  # the parent has closed the pipe
