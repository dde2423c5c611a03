"""Label structures into a store, resumable and in parallel."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from kd_plugins.numbers import check_whole, shown
from kd_plugins.store.manifest import DEFAULT_DTYPES, Manifest
from kd_plugins.store.record import encode_id
from kd_plugins.store.store import MANIFEST, TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import (
    LabelledStructure,
    check_names,
    check_structures,
    to_structure,
)
from kd_plugins.teachers.calculator import as_teacher, check_quantities
from kd_plugins.teachers.failure_log import FailureLog
from kd_plugins.teachers.ray_engine import RayEngine
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher, TeacherError, check_device
from kd_plugins.teachers.workers import Engine, Outcome, ProcessEngine, SerialEngine

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


logger = logging.getLogger(__name__)
EngineName = Literal["serial", "process", "ray"]
USUAL = ("energy", "forces", "stress", "atomic_energies")
"""Quantities that are kept if nobody says which, as far as the teacher gives them."""
PATIENCE = 30.0
"""Seconds that the workers of a killed command are given to notice."""


def label(
    frames: Iterable[LabelledStructure],
    teacher: str | Teacher,
    store: str | Path,
    quantities: Sequence[str] | Mapping[str, str] | None = None,
    *,
    device: str = "auto",
    engine: EngineName = "serial",
    workers: int = 1,
    total: int | None = None,
    progress: bool = True,
) -> LabelReport:
    """Label structures into a store; those that are there already are skipped.

    Killed at any moment, the same call goes on where it stopped: batches of about a second are
    committed as a whole. A structure that the teacher fails on is written to ``failures.jsonl``
    with the reason, does not stop the run, and is tried again by the next one.

    Args:
        frames: structures with their ids, such as `read_structures` yields.
        teacher: a name that `load_teacher` knows, or a teacher (then ``engine`` is ``serial``).
        store: folder of the store; made if it is not there.
        quantities: what to keep, perhaps with precision ``{"node_embeddings": "float16"}``. Left
            out: what the store has, or for a new one energy, forces, stress and atomic energies as
            far as the teacher gives them.
        device: where the teacher computes: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``
            or ``cuda:1``. A teacher that was made already must compute there.
        engine: ``serial``, ``process`` (workers on this machine) or ``ray`` (a Ray cluster).
        workers: how many processes or actors.
        total: how many structures there are, for the time left.
        progress: show a bar.

    Raises:
        TeacherError: if the teacher cannot be made or lacks a quantity, or if workers keep dying.
        StoreError: if the store has another teacher or other quantities, cannot be written, or is
            being written.
        ValueError: if one id stands for two different structures, there is no structure, or what
            was given is something else.
    """
    _check_given(teacher, quantities)
    if engine not in get_args(EngineName):
        raise ValueError(
            f"engine: expected {' or '.join(get_args(EngineName))}, got {shown(engine)}"
        )
    check_whole("workers", workers)
    if engine != "serial" and not isinstance(teacher, str):
        raise TeacherError(
            f"engine {engine!r}: give the teacher by name, each worker makes its own"
        )
    if workers < 1 or (engine == "serial" and workers != 1):
        raise ValueError(
            f"workers: engine {engine!r} cannot have {workers}; for several take engine 'process'"
        )
    store = Path(store).expanduser()
    made = load_teacher(teacher, device) if isinstance(teacher, str) else as_teacher(teacher)
    check_device(made, device, f"teacher {teacher if isinstance(teacher, str) else 'given'!r}")
    name = teacher if isinstance(teacher, str) else type(teacher).__name__
    manifest = _manifest(name, made, store, quantities)

    # Before there is a store, so that none is left of a file that cannot be read.
    found = check_structures(frames)
    first = list(islice(found, 1))
    if not first:
        raise ValueError("there is no structure to label; expected one LabelledStructure or more")
    encode_id(first[0].structure_id)

    opened = TargetStore.create(store, manifest)
    _warn_of_versions(opened.manifest, manifest)
    with opened.only_writer(PATIENCE):
        running = _engine(engine, made, name, opened, workers, device)
        title = f"labelling with {name} on {made.device}"
        bar = tqdm(total=total, desc=title, disable=not progress, unit="")
        try:
            run = LabelRun(running, opened, bar, made.batch_size)
            run.report.device = made.device
            return run.all(chain(first, found))
        finally:
            running.close()
            bar.close()


def _check_given(teacher: object, quantities: object) -> None:
    """Refuse what is no teacher, and one text in the place of a list of quantities."""
    if not isinstance(teacher, str) and not hasattr(teacher, "quantities"):
        raise ValueError(
            "teacher: expected its name, as for kd-plugins label, or a Teacher, got "
            f"{shown(teacher)}; wrap an ASE calculator as CalculatorTeacher(calculator)"
        )
    check_names("quantities", quantities)


def _manifest(
    name: str, teacher: Teacher, folder: Path, quantities: Sequence[str] | Mapping[str, str] | None
) -> Manifest:
    if quantities is None and (folder / MANIFEST).exists():
        quantities = TargetStore.open(folder).manifest.dtypes
    if quantities is None:
        usual = [*USUAL, *(f"{quantity}_std" for quantity in USUAL)]
        quantities = [quantity for quantity in usual if quantity in teacher.quantities]
    check_quantities(list(quantities), teacher.quantities, f"teacher {name!r}")
    chosen = quantities if isinstance(quantities, Mapping) else {}
    dtypes = {quantity: chosen.get(quantity, DEFAULT_DTYPES[quantity]) for quantity in quantities}
    return Manifest(name, teacher.fingerprint, dtypes, versions=teacher.versions)


def _warn_of_versions(before: Manifest, now: Manifest) -> None:
    changed = [
        f"{name} {before.versions[name]}, now {version}"
        for name, version in now.versions.items()
        if before.versions.get(name, version) != version
    ]
    if changed:
        logger.warning(f"the store was made with {'; '.join(changed)}: numbers may differ")


def _engine(
    engine: EngineName, teacher: Teacher, name: str, store: TargetStore, workers: int, device: str
) -> Engine:
    if engine == "serial":
        return SerialEngine(teacher, store)
    kind = {"process": ProcessEngine, "ray": RayEngine}[engine]
    return kind(name, store.folder, workers, device)
