"""Labelling: structures through a teacher into a store, resumable and in parallel."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from kd_plugins.numbers import check_whole, shown
from kd_plugins.store.manifest import DEFAULT_DTYPES, Manifest
from kd_plugins.store.record import encode_id
from kd_plugins.store.store import MANIFEST, TargetStore
from kd_plugins.structures.readers import LabelledStructure, check_names, check_structures
from kd_plugins.teachers.calculator import as_teacher, check_quantities
from kd_plugins.teachers.engines import Engine, SerialEngine
from kd_plugins.teachers.label_run import LabelReport, LabelRun
from kd_plugins.teachers.process_engine import ProcessEngine
from kd_plugins.teachers.ray_engine import RayEngine
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import Teacher, TeacherError, check_device

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
