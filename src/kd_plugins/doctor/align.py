"""A store with energies moved to the labels' zero: what `--fix` of the doctor writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from ase.data import chemical_symbols
from tqdm import tqdm

from kd_plugins.doctor.references import References
from kd_plugins.numbers import shown
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record, split_into_batches
from kd_plugins.store.store import TargetStore

ENERGIES = ("energy", "energy_per_atom", "atomic_energies")
"""Quantities that have a zero of energy."""


def align(
    store: TargetStore, references: References, folder: str | Path, *, progress: bool = True
) -> TargetStore:
    """Write a store with energies less the teacher's offset to the labels, element by element.

    Energies of structures, energies per atom and atomic energies are moved, each by the offsets of
    its own atoms; everything else is copied. Teacher and fingerprint stay, and the manifest's
    ``energy_offsets`` has what was added to each element, from which the original follows. If the
    process is killed, the same call continues where it stopped.

    A fit may not determine each element's offset: in a set of NaCl alone, only that of NaCl is
    known, and energies are moved by that. Atomic energies are refused there, and so is a structure
    with an offset that does not follow from the labelled ones, such as one with another element.

    Args:
        store: the teacher's targets; it stays as it is.
        references: teacher minus label, as `kd_plugins.doctor.references.fit_references` gives.
        folder: of the new store.
        progress: show a bar.

    Raises:
        ValueError: for the store's own folder, a store without energies, or offsets that are not
            known; nothing is then written.
        StoreError: if the folder holds something else or a record is damaged.
    """
    if not isinstance(references, References):
        raise ValueError(
            f"references: expected what fit_references returns, got {shown(references)}"
        )
    folder = Path(folder).expanduser()
    if folder.resolve() == store.folder.resolve():
        raise ValueError(f"{folder} is the store itself; choose another folder for the aligned one")
    if not set(ENERGIES) & set(store.manifest.dtypes):
        raise ValueError(f"{store.folder.name} holds no energies; there is nothing to align")
    _check_offsets(store, references, progress)

    aligned = TargetStore.create(folder, _move_manifest(store.manifest, references))
    missing = [structure_id for structure_id in store.ids() if structure_id not in aligned]
    records = (_move_energies(store.record(structure_id), references) for structure_id in missing)
    with aligned.only_writer(), aligned.writer() as writer:
        bar = tqdm(total=len(missing), desc="aligning", unit="", disable=not progress)
        for batch in split_into_batches(records, Record.n_bytes):
            writer.append(aligned.pack(batch))
            bar.update(len(batch))
        bar.close()
    return aligned


def _check_offsets(store: TargetStore, references: References, progress: bool) -> None:
    """Refuse, before anything is written, structures with an offset that is not known."""
    has_atomic_energies = "atomic_energies" in store.manifest.dtypes
    checked: set[bytes] = set()  # data sets have few compositions and many structures of each

    for structure_id, record in _read_records(store, progress):
        numbers = record.structure.atomic_numbers
        composition = numbers.tobytes()
        if composition in checked or len(numbers) == 0:
            continue

        symbols = ", ".join(chemical_symbols[z] for z in sorted(set(numbers.tolist())))
        if not references.covers(numbers):
            raise ValueError(
                f"structure {structure_id!r} ({symbols}): its energy offset does not follow from "
                "the labelled structures; label more that have these elements in other proportions"
            )
        if has_atomic_energies and not set(numbers.tolist()) <= references.determined:
            raise ValueError(
                f"structure {structure_id!r} ({symbols}): its atomic energies cannot be moved, "
                "because the labelled structures do not determine the offset of each of these "
                "elements; label some of other proportions, or make the store without "
                "atomic_energies"
            )
        checked.add(composition)


def _read_records(store: TargetStore, progress: bool) -> Iterator[tuple[str, Record]]:
    ids = list(store.ids())
    for structure_id in tqdm(ids, desc="checking elements", unit="", disable=not progress):
        yield structure_id, store.record(structure_id)


def _move_manifest(manifest: Manifest, references: References) -> Manifest:
    """Return the manifest with the offsets added to those that the store already had."""
    added = {chemical_symbols[z]: -offset for z, offset in references.offsets.items()}
    earlier = manifest.energy_offsets
    total = {
        symbol: added.get(symbol, 0.0) + earlier.get(symbol, 0.0)
        for symbol in sorted({*added, *earlier})
    }
    return replace(manifest, energy_offsets=total)


def _move_energies(record: Record, references: References) -> Record:
    offsets = torch.from_numpy(references.per_atom(record.structure.atomic_numbers))
    moves = {
        "energy": offsets.sum(),
        "energy_per_atom": offsets.mean() if len(offsets) else offsets.sum(),
        "atomic_energies": offsets,
    }

    # In double precision, whatever the store keeps: total energies are large and offsets small.
    values = {
        name: value.double() - moves[name] if name in moves else value
        for name, value in record.values.items()
    }
    return replace(record, values=values)
