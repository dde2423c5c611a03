"""A pool of sampled structures as a file that is there whole or not at all, and its resumption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kd_plugins.files import (
    FolderInUse,
    check_folder,
    file_hash,
    folder_lock,
    read_json,
    write_json,
)
from kd_plugins.numbers import shown
from kd_plugins.sampling.sampler import Progress, Sampler
from kd_plugins.sampling.settings import METHODS, Sampling
from kd_plugins.structures.export import check_suffix, to_extxyz
from kd_plugins.structures.readers import LabelledStructure

STRUCTURES, CALL, PROGRESS = "structures.extxyz", "call.json", "progress.json"
"""In the folder of a pool that is not finished: what was made, by which call, and how far it is."""
SECONDS_TO_LOSE = 0.5
"""Seconds of work that a killed call may lose; a note takes some milliseconds."""
RECORDS = ("sha256", "structures", "rejected", "versions")
"""Keys of a pool's record that are no part of the call."""


def write_pool(
    structures: Iterable[LabelledStructure],
    path: str | Path,
    settings: Sampling,
    seed: int,
    potential: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Mapping[str, Any]:
    """Sample structures into an extended xyz, and go on where an earlier call was stopped.

    Until all are made they stand in the folder ``<path>.partial``. The file then equals that of a
    call that never stopped, byte for byte. Beside it, ``<stem>.settings.json`` has the settings.

    Args:
        structures: the seed structures.
        path: of the pool, ending in ``.extxyz`` or ``.xyz``.
        settings: how many by which method, and the ranges.
        seed: of all random numbers.
        potential: as `sample` takes it, by name.
        device: as `sample`.
        progress: show a bar.

    Returns:
        The pool's record: ``structures`` (how many), ``rejected`` (guard to draws), and the call.

    Raises:
        ValueError: if a pool of another call, finished or not, or another file is at ``path``; and
            as `sample`.
        OSError: if nothing can be written there.
    """
    path = Path(path)
    _check_path(path)
    sampler = Sampler(structures, settings, seed, potential, device)
    call = _describe_call(sampler)

    if path.exists():
        return _read_finished(path, call)

    folder = path.with_name(f"{path.name}.partial")
    check_folder(folder)
    _check_same_call(folder, call)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(folder, "sample"):
            return _finish(sampler, path, folder, call, progress)
    except FolderInUse:
        raise FolderInUse(
            f"{path}: another command is making it; wait until it has ended"
        ) from None


def _finish(
    sampler: Sampler, path: Path, folder: Path, call: Mapping[str, Any], progress: bool
) -> Mapping[str, Any]:
    """Make what is missing, then give the pool its name and remove the folder."""
    if not (folder / CALL).exists():
        write_json(folder / CALL, call)
    last = _append_structures(sampler, folder, progress)

    versions = {name: metadata.version(name) for name in ("kd_plugins", "ase", "numpy")}
    record = {
        **call,
        "structures": last.structures,
        "rejected": dict(last.rejected),
        "versions": versions,
        "sha256": file_hash(folder / STRUCTURES),
    }
    # First the record: stopped between the two, the next call finds the folder and ends it.
    write_json(_record_path(path), record)
    os.replace(folder / STRUCTURES, path)
    shutil.rmtree(folder)
    return record


def _append_structures(sampler: Sampler, folder: Path, progress: bool) -> Progress:
    """Append what is missing to the folder's structures; return how far that is, which is all."""
    last, n_bytes = _read_progress(folder)
    noted = time.monotonic()
    bar = tqdm(
        total=sampler.total,
        initial=last.structures,
        desc="sample",
        unit=" structures",
        disable=None if progress else True,
    )

    with bar, (folder / STRUCTURES).open("ab") as file:
        # What a killed call has written after its last progress is made again.
        file.truncate(n_bytes)
        for structure, reached in sampler.draws(last):
            frame = to_extxyz(structure.structure_id, structure.atoms, {})
            file.write(frame)
            file.flush()

            n_bytes += len(frame)
            last = reached
            if time.monotonic() - noted >= SECONDS_TO_LOSE:
                write_json(folder / PROGRESS, {**asdict(last), "n_bytes": n_bytes})
                noted = time.monotonic()
            bar.update()
        os.fsync(file.fileno())
    return last


def _read_progress(folder: Path) -> tuple[Progress, int]:
    """Return how far the folder's sampling has come, and the bytes of its structures."""
    if not (folder / PROGRESS).exists():
        return Progress(), 0

    kept: dict[str, Any] = dict(read_json(folder / PROGRESS))
    n_bytes = kept.pop("n_bytes")
    structures = folder / STRUCTURES
    if not structures.exists() or structures.stat().st_size < n_bytes:
        raise ValueError(
            f"{structures} is shorter than the {n_bytes} bytes that were written; remove {folder}, "
            "and the same command makes it anew"
        )
    return Progress(**kept), n_bytes


# The call that a pool belongs to.


def _describe_call(sampler: Sampler) -> dict[str, Any]:
    """Return everything that decides what is made, in JSON's types."""
    # Methods that make nothing decide nothing.
    settings = asdict(sampler.settings)
    for method in METHODS:
        if not sampler.settings.count(method):
            del settings[method]

    teacher = sampler.teacher
    call = {
        "seed": sampler.seed,
        "settings": settings,
        "potential": None if teacher is None else sampler.potential_name,
        "potential_fingerprint": None if teacher is None else teacher.fingerprint,
        "seed_structures": {one.structure_id: _hash_structure(one) for one in sampler.seeds},
    }
    return json.loads(json.dumps(call))


def _hash_structure(structure: LabelledStructure) -> str:
    atoms = structure.atoms
    digest = hashlib.sha256()
    for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.settings.json")


def _check_path(path: Path) -> None:
    check_suffix(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected the name of a file to write")


def _read_finished(path: Path, call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of a pool that this call has made before."""
    record_path = _record_path(path)
    is_ours = record_path.is_file()
    record = read_json(record_path) if is_ours else {}
    if not is_ours or record.get("sha256") != file_hash(path):
        raise ValueError(
            f"{path} is there already and is no pool that {record_path.name} describes; remove it, "
            "or choose another --out"
        )

    difference = _difference(_call_of(record), call)
    if difference:
        raise ValueError(
            f"{path} is there already, made by another call: {difference}; remove it, or choose "
            "another --out"
        )
    return record


def _check_same_call(folder: Path, call: Mapping[str, Any]) -> None:
    """Refuse to go on with a pool of another call."""
    if not folder.exists():
        return
    if not (folder / CALL).exists():
        if any(one.name != "sample.writer" for one in folder.iterdir()):
            raise ValueError(f"{folder} holds no pool of ours; remove it, or choose another --out")
        return

    difference = _difference(read_json(folder / CALL), call)
    if difference:
        raise ValueError(
            f"{folder} holds a half-made pool of another call: {difference}; give the same command "
            "to go on with it, or remove the folder"
        )


def _call_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in RECORDS}


def _difference(there: object, here: object, path: str = "") -> str:
    """Return the first difference of two calls; empty if there is none.

    >>> _difference({"md": {"count": 3}}, {"md": {"count": 4}})
    'md.count was 3 and is 4 now'
    """
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return "" if there == here else f"{path} was {shown(there)} and is {shown(here)} now"
    return next(filter(None, _differences(there, here, path)), "")


def _differences(
    there: Mapping[str, object], here: Mapping[str, object], path: str
) -> Iterator[str]:
    for name in {**there, **here}:
        inner = f"{path}.{name}" if path else name
        yield _difference(there.get(name), here.get(name), inner)
