"""One worker: a teacher that predicts in batches, and the shard that it writes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from ase import Atoms

from kd_plugins.store.record import BATCH_BYTES, Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure
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

        for structure, predicted in self._predictions(batch):
            try:
                packed = self.store.pack([_record(structure, predicted)])
            except Exception as error:  # a calculator's failure, or values that no store takes
                failed[structure.structure_id] = f"{type(error).__name__}: {error}"
                continue

            payloads |= packed
            size += sum(map(len, packed.values()))
            if size >= BATCH_BYTES:
                self.writer.append(payloads)
                labelled, size, payloads = labelled + len(payloads), 0, {}

        self.writer.append(payloads)
        labelled += len(payloads)
        return Outcome(labelled, failed, time.monotonic() - start, self.teacher.device)

    def _predictions(
        self, structures: Sequence[LabelledStructure]
    ) -> Iterator[tuple[LabelledStructure, Prediction | Failure]]:
        """Yield each structure with its prediction or failure, one batch of the teacher a time."""
        done = 0
        while done < len(structures):
            # The batch size is read each time, because running out of memory halves it.
            batch = structures[done : done + self.batch_size]
            predicted = self._predict([one.atoms for one in batch])
            yield from zip(batch, predicted, strict=True)
            done += len(batch)

    def _predict(self, batch: Sequence[Atoms]) -> list[Prediction | Failure]:
        """Predict a batch; if that fails, its structures in smaller ones, down to one by one."""
        try:
            predicted = self.teacher.predict(batch, self.quantities)
        except TeacherError:
            raise
        except Exception as error:  # each host fails in its own way
            failure = error
        else:
            self._check_length(predicted, len(batch))
            return list(predicted)

        # Outside of the `except`, or the traceback would keep the tensors of the failed batch.
        is_memory = isinstance(failure, torch.cuda.OutOfMemoryError)
        failure.__traceback__ = None
        if is_memory:
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [failure]

        smaller = (len(batch) + 1) // 2 if is_memory else 1
        if is_memory:
            self.batch_size = smaller
        parts = [batch[start : start + smaller] for start in range(0, len(batch), smaller)]
        return [one for part in parts for one in self._predict(part)]

    def _check_length(self, predicted: Sequence[Prediction], expected: int) -> None:
        if len(predicted) != expected:
            raise TeacherError(
                f"teacher {type(self.teacher).__name__} returned {len(predicted)} predictions for "
                f"{expected} structures; expected one each, in the same order"
            )


def _record(structure: LabelledStructure, predicted: Prediction | Failure) -> Record:
    """Return what the store keeps of a structure.

    Raises:
        Exception: the failure, if there is no prediction.
    """
    if isinstance(predicted, Exception):
        raise predicted
    tensors = {name: torch.tensor(value) for name, value in predicted.items()}
    return Record(structure.structure_id, to_structure(structure.atoms), tensors)
