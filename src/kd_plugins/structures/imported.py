"""Labels that a teacher made elsewhere, such as a closed service, into a target store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd_plugins.numbers import shown
from kd_plugins.store.manifest import DTYPES, Manifest, default_dtypes
from kd_plugins.store.record import BATCH_RECORDS, Record, pack, split_into_batches
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.given import check_names
from kd_plugins.structures.readers import LabelledStructure, read_structures, to_structure
from kd_plugins.structures.table import read_table

BATCH = BATCH_RECORDS
"""Structures that are written at once, so the most that a killed import has to read again."""


def import_labels(
    paths: Sequence[str | Path],
    store_folder: str | Path,
    teacher: str,
    quantities: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    ids: str = "auto",
) -> TargetStore:
    """Fill a store with labels from files, in the units of `kd_plugins.core.quantities`.

    Importing again adds what is missing, so a killed import goes on where it stopped. All of a
    batch of structures is written, or nothing.

    Args:
        paths: what `kd_plugins.structures.readers.read_structures` reads, whose labels are then
            the teacher's; or one ``.csv`` and one ``.npz``, see
            `kd_plugins.structures.table.read_table`.
        store_folder: of the store, which is made if it is not there.
        teacher: its name, version and mode, such as "PFP v5.0.0 CRYSTAL_PLUS_D3"; a store with
            another one is refused.
        quantities: what every structure must have; by default what the first one has, and then
            no structure may have others.
        optional: what is also imported, from those structures that have it.
        ids: how structures are named, see `read_structures`; a table does so itself.

    Raises:
        KeyError: for a quantity that is not in the table of them.
        ValueError: naming the structure, if it lacks a quantity, if a value is not finite or has a
            wrong shape, or if its id was already given to another structure or other labels.
        StoreError: if the folder holds another teacher's targets.
    """
    if not isinstance(teacher, str) or not teacher.strip():
        raise ValueError(
            f"teacher is empty or no text, {shown(teacher)}; name it, with its version and mode"
        )
    check_names("quantities", quantities)
    check_names("optional", optional)
    frames = _frames(paths, ids)
    first = next(frames)
    required = [name for name in quantities or first.labels if name not in optional]
    dtypes = default_dtypes([*required, *optional])
    if not dtypes:
        raise ValueError(f"structure {first.structure_id!r} has no labels; nothing to import")
    records = (
        _record(frame, required, optional, exact=quantities is None)
        for frame in tqdm(chain([first], frames), desc="import", unit=" structures", disable=None)
    )
    manifest = Manifest(teacher, f"labels made elsewhere: {teacher}", dtypes)
    parts = split_into_batches(records, Record.n_bytes, BATCH)

    # The first ones before there is a store, so that none is left of a slip.
    batch = list(_new(next(parts), None, manifest))
    for record in batch:
        pack(record, manifest)
    store = TargetStore.create(store_folder, manifest)
    with store.only_writer(), store.writer() as writer:
        for part in chain([batch], parts):
            writer.append(store.pack(_new(part, store, store.manifest)))
    return store


def _frames(paths: Sequence[str | Path], ids: str) -> Iterator[LabelledStructure]:
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    tables = {path.suffix: path for path in given if path.suffix in (".csv", ".npz")}
    if not given:
        raise ValueError("no paths; name the files with the labels")
    if not tables:
        return read_structures(paths, ids)
    if len(tables) < 2 or len(given) > 2:
        raise ValueError(
            f"expected one .csv with one .npz and nothing else, got {', '.join(map(str, given))}; "
            "import several tables one after another into the same store"
        )
    return read_table(tables[".csv"], tables[".npz"])


def _record(
    frame: LabelledStructure, required: list[str], optional: Sequence[str], *, exact: bool
) -> Record:
    """Return the labels that are asked for, checked."""
    who = f"structure {frame.structure_id!r}"
    wanted = [*required, *(name for name in optional if name in frame.labels)]
    missing = [name for name in required if name not in frame.labels]
    if missing:
        raise ValueError(
            f"{who} has no {missing[0]}; it has {', '.join(frame.labels) or 'no labels'}: leave "
            "that out of the quantities, or name it among the optional ones"
        )
    others = [name for name in frame.labels if name not in wanted] if exact else []
    if others:
        raise ValueError(f"{who} has {others[0]} and the first one has not; name the quantities")
    for name in wanted:
        if not np.isfinite(frame.labels[name]).all():
            raise ValueError(f"{who}: its {name} holds NaN or inf; take it out of the file")
    try:
        values = {name: torch.tensor(frame.labels[name]) for name in wanted}
        record = Record(frame.structure_id, to_structure(frame.atoms), values)
        record.targets()
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error
    return record


def _new(
    batch: Iterable[Record], store: TargetStore | None, manifest: Manifest
) -> Iterable[Record]:
    """Return the records that the store has not, once each."""
    new: dict[str, Record] = {}
    for record in batch:
        name = record.structure_id
        known = new.get(name)
        if known is None and store is not None and name in store:
            known = store.record(name)
        if known is None:
            new[name] = record
        else:
            _check_same(record, known, manifest)
    return new.values()


def _check_same(record: Record, known: Record, manifest: Manifest) -> None:
    difference = record.structure.difference(known.structure)
    if difference is None and record.values.keys() != known.values.keys():
        difference = f"it has {', '.join(record.values)} here and {', '.join(known.values)} there"
    for name, value in record.values.items() if difference is None else ():
        dtype = DTYPES[manifest.dtypes[name]]
        if not torch.equal(value.to(dtype), known.values[name].to(dtype)):
            difference = f"its {name} is not the same"
    if difference is not None:
        raise ValueError(
            f"structure id {record.structure_id!r} was imported already, and differently: "
            f"{difference}; give each structure its own id (see ids)"
        )
