"""What an engine is to the labeller, and the one that works in this very process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure
from kd_plugins.teachers.teacher import Teacher
from kd_plugins.teachers.worker import Outcome, Worker


class Engine(Protocol):
    """Workers, numbered from 0, that take one batch at a time."""

    n_workers: int

    def submit(self, worker: int, batch: Sequence[LabelledStructure]) -> None:
        """Give a batch to an idle worker."""

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return what became of a batch or more; None if the worker died and was replaced.

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
        """Label a batch here and now."""
        self._outcomes.append((worker, self._worker.label(batch)))

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Return what `submit` has computed."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Let another process write."""
        self._worker.writer.close()
