"""Workers that label: one in this process, or several in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from ase import Atoms

from kd_plugins.store import StoreError
from kd_plugins.store.record import Record, split_into_batches
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher, TeacherError

Prediction: TypeAlias = Mapping[str, np.ndarray]
Failure: TypeAlias = Exception


@dataclass(frozen=True)
class Outcome:
    """The result of labelling a batch.

    Args:
        labelled: how many structures were committed.
        failed: structure id to reason.
        seconds: that it took.
        device: where the teacher computed.
    """

    labelled: int
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = ""


class Worker:
    """Labels batches and commits each to its shard as a whole.

    Args:
        teacher: that labels.
        store: to write to; its manifest holds the quantities to predict.
        shard: name of the shard that only this worker writes.

    Raises:
        ShardBusy: if another process writes that shard.
    """

    def __init__(self, teacher: Teacher, store: TargetStore, shard: str) -> None:
        self.teacher, self.store = teacher, store
        self.quantities = tuple(store.manifest.dtypes)
        self.batch_size = max(1, teacher.batch_size)
        self.device = teacher.device
        self.writer = store.writer(shard)

    def label(self, structures: Sequence[LabelledStructure]) -> Outcome:
        """Label and commit a batch; a structure that fails is left out with its reason.

        A batch of large records is committed in parts, so that memory does not grow with it.

        Raises:
            TeacherError: if the teacher as a whole does not work.
            StoreError: if the shard cannot be written.
        """
        start = time.monotonic()
        labelled = 0
        failed: dict[str, str] = {}

        packed = self._pack_all(structures, failed)
        for part in split_into_batches(packed, lambda item: len(item[1]), len(structures)):
            self.writer.append(dict(part))
            labelled += len(part)
        return Outcome(labelled, failed, time.monotonic() - start, self.device)

    def _pack_all(
        self, structures: Sequence[LabelledStructure], failed: dict[str, str]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield id and packed record of each structure; add the others to ``failed``."""
        for structure, predicted in self._predict_all(structures):
            try:
                if isinstance(predicted, Exception):
                    raise predicted
                packed = self.store.pack([_make_record(structure, predicted)])
            except Exception as error:  # the teacher's, or a value that no store takes
                failed[structure.structure_id] = f"{type(error).__name__}: {error}"
                continue
            yield from packed.items()

    def _predict_all(
        self, structures: Sequence[LabelledStructure]
    ) -> Iterator[tuple[LabelledStructure, Prediction | Failure]]:
        """Yield each structure with its prediction or failure, batch by batch of the teacher."""
        done = 0
        while done < len(structures):
            # The batch size is read each time, because running out of memory halves it.
            batch = structures[done : done + self.batch_size]
            predicted = self._predict([one.atoms for one in batch])
            yield from zip(batch, predicted, strict=True)
            done += len(batch)

    def _predict(self, batch: Sequence[Atoms]) -> list[Prediction | Failure]:
        """Predict a batch; if that fails, its structures one by one, or half of them at a time.

        Halves are for a GPU without enough memory, and then for all later batches too.

        Raises:
            TeacherError: if the teacher as a whole does not work.
        """
        try:
            predicted = self.teacher.predict(batch, self.quantities)
        except TeacherError:
            raise
        except Exception as error:  # each host has exceptions of its own
            failure = error
        else:
            self._check_length(predicted, len(batch))
            return list(predicted)

        # Not inside of the `except`: there the traceback would hold the failed batch's tensors.
        failure.__traceback__ = None
        is_memory = isinstance(failure, torch.cuda.OutOfMemoryError)
        if is_memory:
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [failure]

        size = 1
        if is_memory:
            size = self.batch_size = (len(batch) + 1) // 2
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return [one for part in parts for one in self._predict(part)]

    def _check_length(self, predicted: Sequence[Prediction], expected: int) -> None:
        if len(predicted) != expected:
            raise TeacherError(
                f"teacher {type(self.teacher).__name__} returned {len(predicted)} predictions for "
                f"{expected} structures; expected one each, in the same order"
            )


def _make_record(structure: LabelledStructure, predicted: Prediction) -> Record:
    tensors = {name: torch.tensor(value) for name, value in predicted.items()}
    return Record(structure.structure_id, to_structure(structure.atoms), tensors)


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
        device: where each worker's teacher computes, as `load_teacher` takes it.
    """

    def __init__(self, teacher: str, folder: Path, n_workers: int, device: str = "auto") -> None:
        self.n_workers = n_workers
        n_threads = max(1, (os.cpu_count() or 1) // n_workers)
        self._job = (teacher, device, folder, n_threads)

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
        arguments = (there, *self._job, f"worker-{worker}")
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        process.start()

        # With a copy left open here, the pipe would not end with the worker.
        there.close()
        self._processes[worker], self._pipes[worker] = process, here


def _serve(pipe: Any, teacher: str, device: str, folder: Path, n_threads: int, shard: str) -> None:
    """Label the batches that come through a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(n_threads)  # or all workers together would have too many

    try:
        worker = Worker(load_teacher(teacher, device), TargetStore.open(folder), shard)
        while True:
            pipe.send(worker.label(pipe.recv()))
    except (TeacherError, StoreError) as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        pass  # the parent has closed the pipe


def _die_with_parent() -> None:
    """End this process with its parent, which a kill does not let close the pipe's other copies."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(1)
