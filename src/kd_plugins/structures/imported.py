"""Fill a target store with labels that a teacher made elsewhere, such as a closed service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd_plugins.numbers import shown
from kd_plugins.store.manifest import DTYPES, Manifest, default_dtypes
from kd_plugins.store.record import BATCH_RECORDS, Record, pack, split_into_batches
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import (
    LabelledStructure,
    check_names,
    read_structures,
    to_structure,
)

BATCH = BATCH_RECORDS
"""Structures that are written at once, so the most that a killed import has to read again."""
TABLE_SUFFIXES = (".csv", ".npz")
"""Of tables, which version 0.1.0 took in."""


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
        paths: files that `kd_plugins.structures.readers.read_structures` reads; their labels are
            the teacher's.
        store_folder: of the store, which is made if it is not there.
        teacher: its name, version and mode, such as "PFP v5.0.0 CRYSTAL_PLUS_D3"; a store with
            another one is refused.
        quantities: what every structure must have; by default what the first one has, and then
            no structure may have others.
        optional: what is also imported, from those structures that have it.
        ids: how structures are named, see `read_structures`.

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
    _check_no_tables(paths)

    structures = read_structures(paths, ids)
    first = next(structures)
    required = [name for name in quantities or first.labels if name not in optional]
    dtypes = default_dtypes([*required, *optional])
    if len(dtypes) == 0:
        raise ValueError(f"structure {first.structure_id!r} has no labels; nothing to import")

    bar = tqdm(chain([first], structures), desc="import", unit=" structures", disable=None)
    records = (
        _to_record(structure, required, optional, exact=quantities is None) for structure in bar
    )
    manifest = Manifest(teacher, f"labels made elsewhere: {teacher}", dtypes)
    batches = split_into_batches(records, Record.n_bytes, BATCH)

    # The first batch is packed before there is a store, so that a slip leaves none behind.
    first_batch = list(_drop_known(next(batches), None, manifest))
    for record in first_batch:
        pack(record, manifest)

    store = TargetStore.create(store_folder, manifest)
    with store.only_writer(), store.writer() as writer:
        for batch in chain([first_batch], batches):
            writer.append(store.pack(_drop_known(batch, store, store.manifest)))
    return store


def _check_no_tables(paths: Sequence[str | Path]) -> None:
    files = [paths] if isinstance(paths, str | Path) else paths

    for path in files:
        if isinstance(path, str | Path) and Path(path).suffix in TABLE_SUFFIXES:
            raise ValueError(
                f"{path}: tables (.csv with .npz) are no longer imported; write the structures "
                "with their labels as extended xyz (ase.io.write) or into an ASE database"
            )


def _to_record(
    structure: LabelledStructure, required: list[str], optional: Sequence[str], *, exact: bool
) -> Record:
    """Return the chosen labels of a structure as a record, checked.

    Args:
        structure: with its labels.
        required: quantities that it must have.
        optional: quantities that it may have.
        exact: refuse it if it has further quantities.
    """
    who, labels = f"structure {structure.structure_id!r}", structure.labels
    missing = [name for name in required if name not in labels]
    if missing:
        raise ValueError(
            f"{who} has no {missing[0]}; it has {', '.join(labels) or 'no labels'}: leave "
            "that out of the quantities, or name it among the optional ones"
        )

    chosen = [*required, *(name for name in optional if name in labels)]
    further = [name for name in labels if name not in chosen]
    if exact and further:
        raise ValueError(f"{who} has {further[0]} and the first one has not; name the quantities")

    for name in chosen:
        if not np.isfinite(labels[name]).all():
            raise ValueError(f"{who}: its {name} holds NaN or inf; take it out of the file")

    try:
        values = {name: torch.tensor(labels[name]) for name in chosen}
        record = Record(structure.structure_id, to_structure(structure.atoms), values)
        record.targets()  # validates the shapes
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error
    return record


def _drop_known(
    batch: Iterable[Record], store: TargetStore | None, manifest: Manifest
) -> Iterable[Record]:
    """Return the records that are not in the store yet, each once.

    Raises:
        ValueError: if an id that is known has another structure or other labels.
    """
    new: dict[str, Record] = {}
    for record in batch:
        name = record.structure_id
        known = new.get(name)
        if known is None and store is not None and name in store:
            known = store.record(name)

        # The same structure with the same labels may come twice, as after a killed import.
        if known is None:
            new[name] = record
            continue
        difference = _find_difference(record, known, manifest)
        if difference is not None:
            raise ValueError(
                f"structure id {name!r} was imported already, and differently: {difference}; give "
                "each structure its own id (see ids)"
            )
    return new.values()


def _find_difference(record: Record, known: Record, manifest: Manifest) -> str | None:
    """Describe the first difference between two records in the store's dtypes, or return None."""
    difference = record.structure.difference(known.structure)
    if difference is not None:
        return difference

    if record.values.keys() != known.values.keys():
        return f"it has {', '.join(record.values)} here and {', '.join(known.values)} there"

    # Rounded to the store's dtypes: a label that was imported before has lost the further digits.
    for name, value in record.values.items():
        dtype = DTYPES[manifest.dtypes[name]]
        if not torch.equal(value.to(dtype), known.values[name].to(dtype)):
            return f"its {name} is not the same"
    return None
