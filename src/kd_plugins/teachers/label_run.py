"""One run of the labeller: what is new, who has which batch, what came back."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from tqdm import tqdm

from kd_plugins.store.record import encode_id
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import LabelledStructure, to_structure
from kd_plugins.teachers.engines import Engine
from kd_plugins.teachers.failures import FailureLog
from kd_plugins.teachers.teacher import TeacherError
from kd_plugins.teachers.worker import Outcome

SECONDS_A_BATCH = 1.0
LARGEST_BATCH = 1000
MOST_DEATHS = 20


@dataclass
class LabelReport:
    """What a run of the labeller did.

    Args:
        labelled: structures labelled in this run.
        skipped: structures that were in the store already.
        failed: structure id to reason, of this run.
        seconds: that it took.
        device: where the teacher computed.
    """

    labelled: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = ""


class LabelRun:
    """One run: which structures are new, who has which batch, what came back."""

    def __init__(
        self, engine: Engine, store: TargetStore, bar: tqdm[None], batch_size: int = 1
    ) -> None:
        self.engine, self.store, self.bar = engine, store, bar
        self.report = LabelReport()
        self.failures = FailureLog(store.folder)
        self.in_flight: dict[int, list[LabelledStructure]] = {}
        self.on_the_way: dict[str, LabelledStructure] = {}
        self.suspects: deque[LabelledStructure] = (
            deque()
        )  # a worker died with them, so one at a time
        self.deaths: Counter[str] = Counter()
        self.deaths_in_a_row = 0
        self.batch_size = batch_size
        self.devices: set[str] = set()
        self.size = max(4, batch_size)

    def all(self, frames: Iterable[LabelledStructure]) -> LabelReport:
        """Label everything."""
        start = time.monotonic()
        new = self._new(frames)
        idle = set(range(self.engine.n_workers))
        while True:
            while idle and (batch := self._batch(new)):
                worker = idle.pop()
                self.in_flight[worker] = batch
                self.engine.submit(worker, batch)
            if not self.in_flight:
                self.report.seconds = time.monotonic() - start
                # A cluster's workers may compute elsewhere than this process would.
                self.report.device = " and ".join(sorted(self.devices)) or self.report.device
                return self.report
            for worker, outcome in self.engine.wait():
                self._collect(self.in_flight.pop(worker, []), outcome)
                idle.add(worker)

    def _batch(self, new: Iterator[LabelledStructure]) -> list[LabelledStructure]:
        if self.suspects:
            return [self.suspects.popleft()]
        return list(islice(new, self.size))

    def _new(self, frames: Iterable[LabelledStructure]) -> Iterator[LabelledStructure]:
        """Yield what is neither in the store nor on its way, after a look that it is the same."""
        for frame in frames:
            name = frame.structure_id
            encode_id(name)  # an id that no store can hold is the user's error, not the structure's
            try:
                structure = to_structure(frame.atoms)
            except ValueError as error:
                self._fail({name: str(error)})
                continue
            if name in self.store:
                self.store.read(name, structure)
                self._skip()
            elif name in self.on_the_way:
                _check_same(name, structure, to_structure(self.on_the_way[name].atoms))
                self._skip()
            else:
                self.on_the_way[name] = frame
                yield frame

    def _skip(self) -> None:
        self.report.skipped += 1
        self.bar.update()

    def _collect(self, batch: list[LabelledStructure], outcome: Outcome | None) -> None:
        if outcome is None:
            return self._bury(batch)
        self._arrived(batch)
        self.deaths_in_a_row = 0
        self.report.labelled += outcome.labelled
        self.devices.add(outcome.device)
        self._fail(outcome.failed)
        self.bar.update(outcome.labelled)
        factor = min(2.0, max(0.5, SECONDS_A_BATCH / max(outcome.seconds, 1e-9)))
        # Whole batches of the teacher, or its last one would be smaller than is fast.
        batches = max(1, round(self.size * factor / self.batch_size))
        self.size = min(LARGEST_BATCH, batches * self.batch_size)

    def _bury(self, batch: list[LabelledStructure]) -> None:
        """Keep what a dead worker had committed; give the rest out again, one at a time."""
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row > MOST_DEATHS:
            raise TeacherError(
                f"workers died {self.deaths_in_a_row} times in a row: out of memory (try fewer), "
                "or a script that labels outside of `if __name__ == '__main__':`"
            )
        self.store.recover()
        lost = [frame for frame in batch if frame.structure_id not in self.store]
        kept = [frame for frame in batch if frame not in lost]
        self._arrived(kept)
        self.report.labelled += len(kept)
        self.bar.update(len(kept))
        if len(lost) > 1:
            self.suspects.extend(lost)
        for frame in lost if len(lost) == 1 else ():
            self._suspect(frame)

    def _suspect(self, frame: LabelledStructure) -> None:
        self.deaths[frame.structure_id] += 1
        if self.deaths[frame.structure_id] < 2:
            return self.suspects.append(frame)
        self._arrived([frame])
        self._fail({frame.structure_id: "its worker died, twice (out of memory?)"})

    def _arrived(self, frames: Iterable[LabelledStructure]) -> None:
        for frame in frames:
            del self.on_the_way[frame.structure_id]

    def _fail(self, reasons: dict[str, str]) -> None:
        self.failures.add(reasons)
        self.report.failed |= reasons
        self.bar.update(len(reasons))
        if self.report.failed:
            self.bar.set_postfix(failed=len(self.report.failed))


def _check_same(structure_id: str, structure: Structure, other: Structure) -> None:
    difference = structure.difference(other)
    if difference is not None:
        raise ValueError(
            f"structure id {structure_id!r} stands for two structures: {difference}; give each an "
            "id of its own (see `ids`)"
        )
