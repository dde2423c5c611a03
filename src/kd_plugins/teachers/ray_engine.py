"""Workers that are actors on a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure
from kd_plugins.teachers.batches import Outcome, Worker
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import TeacherError

logger = logging.getLogger(__name__)

MOST_DEAD_STARTS = 20
"""Deaths of workers that had not begun, after which a run is given up, as `MOST_DEATHS`."""


class RayEngine:
    """Workers that are Ray actors; a dead one is replaced, here or on another machine.

    Uses the cluster of ``RAY_ADDRESS``, or starts one on this machine. The store's folder must be
    the same on all of them; GPUs are shared evenly, unless ``device`` names one by its number.

    A batch goes to an actor that runs: one for which the cluster has no CPU, because there are
    fewer than workers or because a node was lost, has no batch that would wait for it. It takes
    part as soon as a node is added.

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

        resources = ray.cluster_resources()
        n_cpus, n_gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        if n_cpus < n_workers:
            logger.warning(
                f"Ray's cluster has {n_cpus} CPUs for {n_workers} workers: the others wait until a "
                "node is added"
            )
        self._actor = ray.remote(num_cpus=1, **_gpu_options(device, n_workers, n_gpus))(_RayWorker)
        self._job = (teacher, device, folder.resolve(), sys.path)

        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}  # the actor of each answer that is awaited
        self._idle: list[int] = []
        self._labelling: dict[Any, tuple[int, int]] = {}  # worker and actor of each answer
        self._waiting: deque[tuple[int, Sequence[LabelledStructure]]] = deque()
        self._dead_starts = 0
        for actor in range(n_workers):
            self._start(actor)

    @property
    def pids(self) -> list[int]:
        """Process id of each actor."""
        return self._ray.get([actor.pid.remote() for actor in self._actors.values()])

    def submit(self, worker: int, batch: Sequence[LabelledStructure]) -> None:
        """Send a batch to an idle actor, as soon as there is one."""
        self._waiting.append((worker, batch))
        self._hand_out()

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return the outcomes that have come, at least one."""
        outcomes: list[tuple[int, Outcome | None]] = []
        while not outcomes:
            ready, _ = self._ray.wait([*self._starting, *self._labelling])
            for reference in ready:
                if reference in self._starting:
                    self._receive_start(reference)
                else:
                    outcomes.append(self._receive(reference))
            self._hand_out()
        return outcomes

    def close(self) -> None:
        """Kill the actors: a shard is never left with half a batch."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            worker, batch = self._waiting.popleft()
            actor = self._idle.pop()
            self._labelling[self._actors[actor].label.remote(batch)] = worker, actor

    def _receive_start(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._dead_starts += 1
            if self._dead_starts > MOST_DEAD_STARTS:
                raise TeacherError(
                    f"{self._dead_starts} of Ray's workers died before they had begun; is "
                    f"kd_plugins installed on every node? The last one: {error}"
                ) from None
            self._start(actor)
        else:
            self._idle.append(actor)

    def _receive(self, reference: Any) -> tuple[int, Outcome | None]:
        worker, actor = self._labelling.pop(reference)
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # the worker's exception, wrapped
            raise error.cause from None
        except self._ray.exceptions.RayActorError:
            self._start(actor)
            return worker, None

        self._idle.append(actor)
        self._dead_starts = 0
        return worker, outcome

    def _start(self, actor: int) -> None:
        if actor in self._actors:
            # One that is out of reach may be alive, and would keep its shard from the next.
            self._ray.kill(self._actors[actor])
        self._actors[actor] = self._actor.remote(*self._job, f"ray-{actor}")
        self._starting[self._actors[actor].pid.remote()] = actor


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
