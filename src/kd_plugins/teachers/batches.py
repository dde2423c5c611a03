"""Label a batch of structures: predict it, repeat what fails one by one, and commit it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from ase import Atoms

from kd_plugins.store.record import Record, pack, split_into_batches
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
        self.most_atoms = math.inf  # in a batch, once memory has run out
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
                # What the store has already was left out by `LabelRun`, which alone gives batches.
                packed = pack(_make_record(structure, predicted), self.store.manifest)
            except Exception as error:  # the teacher's, or a value that no store takes
                failed[structure.structure_id] = f"{type(error).__name__}: {error}"
                continue
            yield structure.structure_id, packed

    def _predict_all(
        self, structures: Sequence[LabelledStructure]
    ) -> Iterator[tuple[LabelledStructure, Prediction | Failure]]:
        """Yield each structure with its prediction or failure, batch by batch of the teacher."""
        atoms = [one.atoms for one in structures]
        done = 0
        while done < len(atoms):
            count = self._count_that_fit(atoms[done : done + self.batch_size])
            batch = slice(done, done + count)
            yield from zip(structures[batch], self._predict(atoms[batch]), strict=True)
            done += count

    def _count_that_fit(self, structures: Sequence[Atoms]) -> int:
        """Return how many of the first structures are a batch, at least one."""
        n_atoms = 0
        for count, atoms in enumerate(structures):
            n_atoms += len(atoms)
            if count and n_atoms > self.most_atoms:
                return count
        return len(structures)

    def _predict(self, batch: Sequence[Atoms]) -> list[Prediction | Failure]:
        """Predict a batch; if that fails, its structures one by one.

        Where a GPU lacks memory, half of the atoms at a time, and no later batch has more.

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

        if is_memory:
            self.most_atoms = sum(map(len, batch)) / 2
        predicted = []
        while len(predicted) < len(batch):
            rest = batch[len(predicted) :]
            predicted += self._predict(rest[: self._count_that_fit(rest) if is_memory else 1])
        return predicted

    def _check_length(self, predicted: Sequence[Prediction], expected: int) -> None:
        if len(predicted) != expected:
            raise TeacherError(
                f"teacher {type(self.teacher).__name__} returned {len(predicted)} predictions for "
                f"{expected} structures; expected one each, in the same order"
            )


def _make_record(structure: LabelledStructure, predicted: Prediction) -> Record:
    # Copied, since a teacher may use its arrays again; torch's own copy takes ten times as long.
    tensors = {
        name: torch.from_numpy(value.copy()) if _is_array(value) else torch.tensor(value)
        for name, value in predicted.items()
    }
    return Record(structure.structure_id, to_structure(structure.atoms), tensors)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.isnative
