"""One worker: a teacher and a shard of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kd_plugins.store.record import BATCH_BYTES, Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure
from kd_plugins.teachers.teacher import Teacher, TeacherError


@dataclass(frozen=True)
class Outcome:
    """What became of a batch.

    Args:
        labelled: how many structures were committed.
        failed: structure id to reason.
        seconds: that it took.
    """

    labelled: int
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Worker:
    """Labels batches and commits each to its shard as a whole.

    Args:
        teacher: that labels.
        store: to write to; its manifest says which quantities.
        shard: name of the shard that only this worker writes.

    Raises:
        ShardBusy: if another process writes that shard.
    """

    def __init__(self, teacher: Teacher, store: TargetStore, shard: str) -> None:
        self.teacher, self.store = teacher, store
        self.quantities = tuple(store.manifest.dtypes)
        self.writer = store.writer(shard)

    def label(self, batch: Sequence[LabelledStructure]) -> Outcome:
        """Label and commit a batch; a structure that fails is left out with its reason.

        A batch of large records is committed in parts, so that memory does not grow with it.

        Raises:
            TeacherError: if the teacher as a whole does not work.
            StoreError: if the shard cannot be written.
        """
        start = time.monotonic()
        payloads: dict[str, bytes] = {}
        labelled, size = 0, 0
        failed: dict[str, str] = {}
        for frame in batch:
            try:
                packed = self.store.pack([self._record(frame)])
            except TeacherError:
                raise
            except Exception as error:  # each calculator fails in its own way
                failed[frame.structure_id] = f"{type(error).__name__}: {error}"
                continue
            payloads |= packed
            size += sum(map(len, packed.values()))
            if size >= BATCH_BYTES:
                self.writer.append(payloads)
                labelled, size, payloads = labelled + len(payloads), 0, {}
        self.writer.append(payloads)
        return Outcome(labelled + len(payloads), failed, time.monotonic() - start)

    def _record(self, frame: LabelledStructure) -> Record:
        values = self.teacher(frame.atoms, self.quantities)
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        return Record(frame.structure_id, to_structure(frame.atoms), tensors)
