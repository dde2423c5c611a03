"""Workers that are actors on a Ray cluster."""

from __future__ import annotations

import math
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
    the same on all of them; GPUs are shared evenly, unless ``device`` names one by its number.

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

        n_gpus = int(ray.cluster_resources().get("GPU", 0))
        self._actor = ray.remote(num_cpus=1, **_gpu_options(device, n_workers, n_gpus))(_RayWorker)
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


def _gpu_options(device: str, n_workers: int, n_gpus: int) -> dict[str, Any]:
    """Return the options with which Ray gives actors their GPUs.

    Ray shows an actor only the GPU of which it has reserved a share. The shares of one GPU's actors
    must fit on it, or Ray would wait for ever for another GPU.

    >>> _gpu_options("auto", 4, 3), _gpu_options("cuda", 2, 4), _gpu_options("cpu", 2, 4)
    ({'num_gpus': 0.5}, {'num_gpus': 1.0}, {'num_gpus': 0})
    >>> _gpu_options("cuda:1", 2, 4)["num_gpus"]
    0
    """
    if device in ("auto", "cuda") and n_gpus:
        return {"num_gpus": 1 / math.ceil(n_workers / n_gpus)}
    if device in ("auto", "cuda", "cpu"):
        return {"num_gpus": 0}
    # The user has chosen: with this variable Ray hides no GPU from an actor.
    variables = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
    return {"num_gpus": 0, "runtime_env": {"env_vars": variables}}


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
