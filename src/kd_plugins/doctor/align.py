"""A store whose energies have the labels' zero: what `--fix` of the doctor writes."""

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
from kd_plugins.store.record import BATCH_RECORDS, Record, batches
from kd_plugins.store.store import TargetStore

ENERGIES = ("energy", "energy_per_atom", "atomic_energies")
BATCH = BATCH_RECORDS


def align(
    store: TargetStore, references: References, folder: str | Path, *, progress: bool = True
) -> TargetStore:
    """Write a store whose energies lack the teacher's offset to the labels, element by element.

    Energies of structures, energies per atom and atomic energies are moved, each by the offsets of
    its own atoms; everything else is copied. Teacher and fingerprint stay, and the manifest's
    ``energy_offsets`` says what was added to each element, so that the original can be had back.
    Killed, the same call goes on where it stopped.

    Elements need not be told apart: in a set of NaCl alone, the offset of NaCl is known, and
    energies are moved by that. Atomic energies are refused there, and so is a structure whose
    offset does not follow from the labelled ones, such as one with an element that they lack.

    Args:
        store: what the teacher said; it stays as it is.
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
    _check(store, references, progress)
    aligned = TargetStore.create(folder, _manifest(store.manifest, references))
    missing = [name for name in store.ids() if name not in aligned]
    records = (_moved(store.record(name), references) for name in missing)
    with aligned.only_writer(), aligned.writer() as writer:
        bar = tqdm(total=len(missing), desc="aligning", unit="", disable=not progress)
        for batch in batches(records, BATCH):
            writer.append(aligned.pack(batch))
            bar.update(len(batch))
        bar.close()
    return aligned


def _check(store: TargetStore, references: References, progress: bool) -> None:
    """Refuse, before anything is written, structures whose offset is not known."""
    told_apart, known = "atomic_energies" in store.manifest.dtypes, set[bytes]()
    for name, record in _records(store, progress):
        numbers = record.structure.atomic_numbers
        composition = numbers.tobytes()
        if composition in known or len(numbers) == 0:
            continue
        symbols = ", ".join(chemical_symbols[z] for z in sorted(set(numbers.tolist())))
        if not references.covers(numbers):
            raise ValueError(
                f"structure {name!r} ({symbols}): its energy offset does not follow from the "
                "labelled structures; label more that have these elements in other proportions"
            )
        if told_apart and not set(numbers.tolist()) <= references.determined:
            raise ValueError(
                f"structure {name!r} ({symbols}): its atomic energies cannot be moved, because the "
                "labelled structures do not tell these elements apart; label some of other "
                "proportions, or make the store without atomic_energies"
            )
        known.add(composition)


def _records(store: TargetStore, progress: bool) -> Iterator[tuple[str, Record]]:
    for name in tqdm(list(store.ids()), desc="checking elements", unit="", disable=not progress):
        yield name, store.record(name)


def _manifest(manifest: Manifest, references: References) -> Manifest:
    added = {chemical_symbols[z]: -offset for z, offset in references.offsets.items()}
    earlier = manifest.energy_offsets
    symbols = sorted({*added, *earlier})
    total = {symbol: added.get(symbol, 0.0) + earlier.get(symbol, 0.0) for symbol in symbols}
    return replace(manifest, energy_offsets=total)


def _moved(record: Record, references: References) -> Record:
    offsets = torch.from_numpy(references.per_atom(record.structure.atomic_numbers))
    moves = {
        "energy": offsets.sum(),
        "energy_per_atom": offsets.mean() if len(offsets) else offsets.sum(),
        "atomic_energies": offsets,
    }
    values = {
        name: value.double() - moves[name] if name in moves else value
        for name, value in record.values.items()
    }
    return replace(record, values=values)
