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

from kd_plugins.names import renamed_argument
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
from kd_plugins.teachers.batches import Outcome
from kd_plugins.teachers.calculator import as_teacher, check_quantities
from kd_plugins.teachers.failure_log import FailureLog
from kd_plugins.teachers.ray_engine import RayEngine
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher, TeacherError, check_device
from kd_plugins.teachers.workers import Engine, ProcessEngine, SerialEngine

logger = logging.getLogger(__name__)

EngineName = Literal["serial", "process", "ray"]

DEFAULT_QUANTITIES = ("energy", "forces", "stress", "atomic_energies")
"""Quantities of a new store if none are named, as far as the teacher predicts them."""

SECONDS_A_BATCH = 1.0
"""Time that a batch should take: little is lost by a kill, and commits cost little."""

FIRST_BATCH, LARGEST_BATCH = 4, 1000
"""Structures of the first batch, whose time is unknown, and of any."""

MOST_DEATHS = 20
"""Deaths of workers without a labelled batch in between, after which a run is given up."""

PATIENCE = 30.0
"""Seconds that the workers of a killed command have to notice it and let go of the store."""


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


@renamed_argument("frames", "structures")
def label(
    structures: Iterable[LabelledStructure],
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

    Killed at any moment, the same call resumes where it stopped: batches of about a second are
    committed as a whole. A structure that the teacher fails on is written to ``failures.jsonl``
    with the reason, does not stop the run, and is tried again by the next one.

    Args:
        structures: with their ids, as `read_structures` yields them.
        teacher: a name that `load_teacher` takes, or a teacher (then ``engine`` is ``serial``).
        store: folder of the store; made if it is not there.
        quantities: what to keep, perhaps with precision ``{"node_embeddings": "float16"}``. Left
            out: what the store has, or for a new one energy, forces, stress and atomic energies as
            far as the teacher predicts them.
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
        ValueError: if one id stands for two different structures, there is no structure, or an
            argument has another type.
    """
    _check_arguments(teacher, quantities, engine, workers)
    folder = Path(store).expanduser()
    if isinstance(teacher, str):
        name, loaded = teacher, load_teacher(teacher, device)
    else:
        # A native teacher may bring the name with which `kd-plugins label` finds it again.
        name = getattr(teacher, "name", type(teacher).__name__)
        loaded = as_teacher(teacher)
        check_device(loaded, device, f"teacher {name!r}")
    manifest = _make_manifest(name, loaded, folder, quantities)

    # The first structure is read before the store is made, so that a file that cannot be read
    # leaves no empty store.
    remaining = check_structures(structures)
    first = list(islice(remaining, 1))
    if not first:
        raise ValueError("there is no structure to label; expected one LabelledStructure or more")
    encode_id(first[0].structure_id)

    opened = TargetStore.create(folder, manifest)
    _warn_of_versions(opened.manifest, manifest)
    with opened.only_writer(PATIENCE):
        running = _start_engine(engine, loaded, name, opened, workers, device)
        title = f"labelling with {name} on {loaded.device}"
        bar = tqdm(total=total, desc=title, disable=not progress, unit="")
        try:
            run = LabelRun(running, opened, bar, loaded.batch_size)
            report = run.all(chain(first, remaining))
        finally:
            running.close()
            bar.close()

    report.device = report.device or loaded.device
    return report


class LabelRun:
    """One run of the labeller: hands batches of new structures to workers and counts the results.

    A worker that dies takes its batch with it. The structures of that batch are then tried one at
    a time, so that the one which kills its worker is found; it fails after its second death.

    Args:
        engine: the workers.
        store: that they write to.
        bar: shows progress.
        batch_size: of the teacher; batches have a multiple of it.
    """

    def __init__(
        self, engine: Engine, store: TargetStore, bar: tqdm[None], batch_size: int = 1
    ) -> None:
        self.engine, self.store, self.bar = engine, store, bar
        self.report = LabelReport()
        self.failure_log = FailureLog(store.folder)

        self.in_flight: dict[int, list[LabelledStructure]] = {}  # by worker
        self.pending: dict[str, LabelledStructure] = {}  # by structure id
        self.retry_alone: deque[LabelledStructure] = deque()
        self.deaths: Counter[str] = Counter()  # by structure id
        self.deaths_in_a_row = 0

        self.teacher_batch = min(batch_size, LARGEST_BATCH)
        self.size = max(FIRST_BATCH, self.teacher_batch)
        self.devices: set[str] = set()

    def all(self, structures: Iterable[LabelledStructure]) -> LabelReport:
        """Label everything that is new, and return the report."""
        start = time.monotonic()
        new = self._new(structures)
        idle = set(range(self.engine.n_workers))

        while True:
            while idle and (batch := self._next_batch(new)):
                worker = idle.pop()
                self.in_flight[worker] = batch
                self.engine.submit(worker, batch)

            if not self.in_flight:
                break

            for worker, outcome in self.engine.wait():
                batch = self.in_flight.pop(worker, [])
                if outcome is None:
                    self._handle_dead_worker(batch)
                else:
                    self._collect(batch, outcome)
                idle.add(worker)

        self.report.seconds = time.monotonic() - start
        self.report.device = " and ".join(sorted(self.devices))
        return self.report

    def _next_batch(self, new: Iterator[LabelledStructure]) -> list[LabelledStructure]:
        if self.retry_alone:
            return [self.retry_alone.popleft()]
        return list(islice(new, self.size))

    def _new(self, structures: Iterable[LabelledStructure]) -> Iterator[LabelledStructure]:
        """Yield the structures that are neither in the store nor with a worker.

        Raises:
            ValueError: if an id stands for another structure there.
        """
        for labelled in structures:
            name = labelled.structure_id
            # An id that no store can hold is an error of the call, not of the structure.
            encode_id(name)
            try:
                structure = to_structure(labelled.atoms)
            except ValueError as error:
                self._fail({name: str(error)})
                continue

            if name in self.store:
                self.store.read(name, structure)  # raises for another structure
                self._skip()
            elif name in self.pending:
                _check_same(name, structure, to_structure(self.pending[name].atoms))
                self._skip()
            else:
                self.pending[name] = labelled
                yield labelled

    def _collect(self, batch: list[LabelledStructure], outcome: Outcome) -> None:
        """Count the outcome of a batch, and choose the size of the next from its time."""
        self._forget(batch)
        self.deaths_in_a_row = 0
        self.devices.add(outcome.device)
        self._count_labelled(outcome.labelled)
        self._fail(outcome.failed)

        # At most four times as large or half as large at once: one slow structure says little, but
        # a fast teacher's first batches take less time than their commits.
        factor = min(4.0, max(0.5, SECONDS_A_BATCH / max(outcome.seconds, 1e-9)))
        # A multiple of the teacher's batch size, or its last batch would be a small, slow one.
        n_batches = max(1, round(self.size * factor / self.teacher_batch))
        self.size = min(LARGEST_BATCH, n_batches * self.teacher_batch)

    def _handle_dead_worker(self, batch: list[LabelledStructure]) -> None:
        """Keep what a dead worker had committed, and try the rest again, one at a time.

        Raises:
            TeacherError: if workers do nothing but die.
        """
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row > MOST_DEATHS:
            raise TeacherError(
                f"workers died {self.deaths_in_a_row} times in a row: out of memory (try fewer), "
                "or a script that labels outside of `if __name__ == '__main__':`"
            )

        self.store.recover()
        lost = [one for one in batch if one.structure_id not in self.store]
        kept = [one for one in batch if one.structure_id in self.store]
        self._forget(kept)
        self._count_labelled(len(kept))

        # Only a structure that was alone with its worker is known to have killed it.
        if len(lost) == 1:
            self._blame(lost[0])
        else:
            self.retry_alone.extend(lost)

    def _blame(self, structure: LabelledStructure) -> None:
        """Try a structure that killed its worker once more; the second time it has failed."""
        name = structure.structure_id
        self.deaths[name] += 1
        if self.deaths[name] < 2:
            # The worker may have died of something else, such as a kill for another's memory.
            self.retry_alone.append(structure)
            return

        self._forget([structure])
        self._fail({name: "its worker died, twice (out of memory?)"})

    def _forget(self, structures: Iterable[LabelledStructure]) -> None:
        for structure in structures:
            del self.pending[structure.structure_id]

    def _skip(self) -> None:
        self.report.skipped += 1
        self.bar.update()

    def _count_labelled(self, number: int) -> None:
        self.report.labelled += number
        self.bar.update(number)

    def _fail(self, reasons: dict[str, str]) -> None:
        self.failure_log.add(reasons)
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


def _check_arguments(teacher: object, quantities: object, engine: object, workers: int) -> None:
    """Refuse arguments of another type, and engines that cannot have this teacher or number."""
    if not isinstance(teacher, str) and not hasattr(teacher, "quantities"):
        raise ValueError(
            "teacher: expected its name, as for kd-plugins label, or a Teacher, got "
            f"{shown(teacher)}; wrap an ASE calculator as CalculatorTeacher(calculator)"
        )
    check_names("quantities", quantities)

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


def _make_manifest(
    name: str, teacher: Teacher, folder: Path, quantities: Sequence[str] | Mapping[str, str] | None
) -> Manifest:
    """Return the manifest of a teacher and the quantities to keep.

    Raises:
        KeyError: for a quantity that does not exist.
        TeacherError: for one that the teacher does not predict.
    """
    if quantities is None and (folder / MANIFEST).exists():
        quantities = TargetStore.open(folder).manifest.dtypes
    if quantities is None:
        usual = [*DEFAULT_QUANTITIES, *(f"{quantity}_std" for quantity in DEFAULT_QUANTITIES)]
        quantities = [quantity for quantity in usual if quantity in teacher.quantities]
    check_quantities(list(quantities), teacher.quantities, f"teacher {name!r}")

    chosen = quantities if isinstance(quantities, Mapping) else {}
    dtypes = {quantity: chosen.get(quantity, DEFAULT_DTYPES[quantity]) for quantity in quantities}
    return Manifest(
        name,
        teacher.fingerprint,
        dtypes,
        versions=teacher.versions,
        receptive_field=getattr(teacher, "receptive_field", None),
    )


def _warn_of_versions(before: Manifest, now: Manifest) -> None:
    """Warn if a store was made with other versions, which may give other numbers."""
    changed = [
        f"{name} {before.versions[name]}, now {version}"
        for name, version in now.versions.items()
        if before.versions.get(name, version) != version
    ]
    if changed:
        logger.warning(f"the store was made with {'; '.join(changed)}: numbers may differ")


def _start_engine(
    engine: EngineName, teacher: Teacher, name: str, store: TargetStore, workers: int, device: str
) -> Engine:
    if engine == "serial":
        return SerialEngine(teacher, store)
    kind = {"process": ProcessEngine, "ray": RayEngine}[engine]
    return kind(name, store.folder, workers, device)
