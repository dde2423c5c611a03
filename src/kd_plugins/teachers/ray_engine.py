"""Workers that are actors on a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure
from kd_plugins.teachers.batches import Outcome, Worker
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import TeacherError


class RayEngine:
    """Workers that are Ray actors; a dead one is replaced, here or on another machine.

    Uses the cluster of ``RAY_ADDRESS``, or starts one on this machine. The store's folder must be
    the same on all of them; GPUs are shared evenly.

    Args:
        teacher: its name, since each actor makes its own.
        folder: of the store.
        n_workers: how many.
        device: where each actor's teacher computes, as `load_teacher` takes it.

    Raises:
        TeacherError: if Ray is not installed.
    """

    def __init__(self, teacher: str, folder: Path, n_workers: int, device: str = "auto") -> None:
        try:
            import ray
        except ImportError as error:
            raise TeacherError(
                f"engine 'ray' needs Ray ({error}): pip install 'kd_plugins[ray]'"
            ) from error

        self.n_workers, self._ray = n_workers, ray
        # A cluster that the caller has connected to is the caller's to shut down.
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")

        # Ray shows an actor only the GPUs that it has reserved, so each reserves its share.
        gpus = min(1, ray.cluster_resources().get("GPU", 0) / n_workers)
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus)(_RayWorker)
        self._job = (teacher, device, folder.resolve(), sys.path)
        self._actors = {worker: self._start(worker) for worker in range(n_workers)}
        self._pending: dict[Any, int] = {}

    @property
    def pids(self) -> list[int]:
        """Process id of each worker."""
        return self._ray.get([actor.pid.remote() for actor in self._actors.values()])

    def submit(self, worker: int, batch: Sequence[LabelledStructure]) -> None:
        """Send a batch to an actor."""
        self._pending[self._actors[worker].label.remote(batch)] = worker

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return the outcomes that have come, at least one."""
        ready, _ = self._ray.wait(list(self._pending))
        return [self._receive(reference) for reference in ready]

    def close(self) -> None:
        """Kill the actors: a shard is never left with half a batch."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def _receive(self, reference: Any) -> tuple[int, Outcome | None]:
        worker = self._pending.pop(reference)
        try:
            return worker, self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # the worker's exception, wrapped
            raise error.cause from None
        except self._ray.exceptions.RayActorError:
            self._actors[worker] = self._start(worker)
            return worker, None

    def _start(self, worker: int) -> Any:
        return self._actor.remote(*self._job, f"ray-{worker}")


class _RayWorker:
    """A worker as Ray runs it.

    The teacher is made with the first batch and not with the actor: an exception of a task reaches
    the caller with its type and message, one of an actor's constructor only as a dead actor.
    """

    def __init__(
        self, teacher: str, device: str, folder: Path, path: list[str], shard: str
    ) -> None:
        # The caller's modules, such as a teacher's, may lie in folders that Ray does not know.
        sys.path.extend(entry for entry in path if entry not in sys.path)
        self._job = (teacher, device, folder, shard)
        self._worker: Worker | None = None

    def label(self, batch: Sequence[LabelledStructure]) -> Outcome:
        """Label and commit a batch."""
        if self._worker is None:
            teacher, device, folder, shard = self._job
            self._worker = Worker(load_teacher(teacher, device), TargetStore.open(folder), shard)
        return self._worker.label(batch)

    def pid(self) -> int:
        """Return the actor's process id."""
        return os.getpid()
