"""Every structure is matched with the store once; then a sample at a start, and all in batches."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context
from fairchem.core.datasets.base_dataset import create_dataset
from torch_geometric.data import Batch, Data

from kd_plugins.config import ConfigError
from kd_plugins.fairchem import matching
from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.fairchem.data import StoredTargets
from kd_plugins.fairchem.matching import DatasetMatch, draw_places, read_ids, structure_id
from kd_plugins.store._integrity import FileState, WrittenLog, digest
from kd_plugins.store._lmdb import begin_transaction
from kd_plugins.store.check_note import CheckNote
from kd_plugins.store.record import Record, pack
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2, equal
from tests.fairchem.test_stored_targets import stored

Settings = dict[str, Any]
TERMS = {"n2n": {**tiny.ALL_TERMS["n2n"], "features": "l0"}}
CPU = torch.device("cpu")
MOVED = "structure 'slab1/0' is not the one that was labelled: atom 4"


@pytest.fixture
def data(tmp_path: Path, databases: tuple[Path, Path]) -> dict[str, Path]:
    """Copies of the databases that a test may change."""
    return {
        name: Path(shutil.copy(path, tmp_path / path.name))
        for name, path in zip(("train", "val"), databases, strict=True)
    }


@pytest.fixture
def targets(tmp_path: Path, labelled: Path) -> StoredTargets:
    """A copy of the store that a test may change."""
    folder = shutil.copytree(labelled, tmp_path / "targets")
    for note in folder.glob("checked-*"):
        note.unlink()
    return StoredTargets(TargetStore.open(folder), ("energy", "node_embeddings"), width=8)


def opened(data: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """Return the data sets as the trainer opens them."""
    common = {"format": "ase_db", "a2g_args": {"r_energy": True}, **changes}
    return {name: create_dataset({**common, "src": str(path)}, name) for name, path in data.items()}


def match(targets: StoredTargets, datasets: dict[str, Any], limit: int = 2) -> None:
    matching.match(targets, datasets, limit, 0, CPU)


def is_known(targets: StoredTargets, datasets: dict[str, Any]) -> bool:
    """Return whether a start would read a sample only."""
    return DatasetMatch(targets, datasets).find_note() is not None


def move(path: Path, row: int = 2) -> None:
    """Edit one structure of a database: its last atom by 0.5 Å."""
    with ase.db.connect(path) as database:
        atoms = database.get_atoms(row)
        atoms.positions[4, 0] += 0.5
        database.update(row, atoms=atoms)


def other_record(targets: StoredTargets, name: str) -> None:
    """Put another structure under an id, so that neither shard nor log shows it."""
    store = targets.store
    record = store.record(name)
    positions = record.structure.positions.copy()
    positions[4, 0] += 0.5
    known = record.structure
    moved = Structure(known.atomic_numbers, positions, known.cell, known.pbc)

    payload, key = pack(Record(name, moved, record.values), store.manifest), name.encode()
    path = (store.folder / "main.lmdb").resolve()
    with begin_transaction(path, write=True) as writing:
        writing.put(key, digest(key, payload) + payload)
    log = WrittenLog(path)
    log.end(log.read().after, FileState.of(path))


def test_a_second_start_reads_a_sample(
    targets: StoredTargets,
    data: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And a run with the same data in the same store, whichever its seed, order and length."""
    datasets, reads = opened(data), []
    caplog.set_level(logging.INFO)
    take = type(datasets["train"]).__getitem__
    monkeypatch.setattr(
        type(datasets["train"]), "__getitem__", lambda self, i: (reads.append(i), take(self, i))[1]
    )
    match(targets, datasets)
    n_first = len(reads)
    match(targets, opened(data))
    assert (n_first, len(reads) - n_first) == (9 + 4, 4)
    first, second = (line for line in caplog.messages if line.startswith("targets: "))
    assert "every structure of train, val is matched" in first
    assert "all 9 structures of train, val were matched" in second


def grow(data: dict[str, Path]) -> None:
    with ase.db.connect(data["train"]) as database:
        database.write(tiny.slab(0), data={"sid": "slab0", "fid": 0})


CHANGES: dict[str, Callable[[dict[str, Path], StoredTargets], Any]] = {
    "an edited structure": lambda data, targets: move(data["val"]),
    "another structure": lambda data, targets: grow(data),
    "other content of equal size and time": lambda data, targets: keep_time(data["train"]),
    "a store that has grown": lambda data, targets: targets.store.append(
        [Record("new", targets.store.record("slab1/0").structure, {"energy": torch.tensor(0.0)})]
    ),
    "another manifest": lambda data, targets: edit(
        targets.store.folder / "manifest.json", "fairchem-core", "fairchem-care"
    ),
    "a damaged note": lambda data, targets: edit(note_of(targets), '"train": 0', '"train": 1'),
    "a note cut short": lambda data, targets: note_of(targets).write_bytes(b'{"version": 1,'),
    "a note of another version": lambda data, targets: edit(
        note_of(targets), '"version": 1', '"version": 2'
    ),
    "no note": lambda data, targets: note_of(targets).unlink(),
}


def keep_time(path: Path) -> None:
    before = path.stat()
    move(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def note_of(targets: StoredTargets) -> Path:
    (path,) = targets.store.folder.glob("checked-*.json")
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_is_checked_whole_again(
    targets: StoredTargets, data: dict[str, Path], change: Callable[..., Any]
) -> None:
    """Whatever it is that changes."""
    match(targets, opened(data))
    assert is_known(targets, opened(data))
    change(data, targets)
    again = StoredTargets(TargetStore.open(targets.store.folder), targets.quantities, width=8)
    assert not is_known(again, opened(data))


def test_settings_that_choose_structures_count_and_others_do_not(
    targets: StoredTargets, data: dict[str, Path]
) -> None:
    match(targets, opened(data))
    units = {"normalizer": {"energy": {"mean": 1.0, "rmsd": 2.0}}}
    assert is_known(targets, opened(data, transforms=units))
    assert not is_known(targets, opened(data, first_n=3))
    match(targets, opened(data, first_n=3))
    assert is_known(targets, opened(data)) and is_known(targets, opened(data, first_n=3))


def test_nothing_is_noted_of_a_check_that_fails(
    targets: StoredTargets, data: dict[str, Path]
) -> None:
    """Nor where the store may not be written, which is no error."""
    with ase.db.connect(data["val"]) as database:
        database.write(tiny.slab(1), data={"sid": "unknown", "fid": 0})
    with pytest.raises(ConfigError, match="1 of 4 structures have no target in .*: unknown/0"):
        match(targets, opened(data))
    assert not list(targets.store.folder.glob("checked-*"))

    targets.allows_missing = True
    match(targets, opened(data))
    assert is_known(targets, opened(data))
    targets.allows_missing = False
    assert not is_known(targets, opened(data))


def test_a_store_that_may_not_be_written_is_checked_each_time(
    targets: StoredTargets, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: CheckNote, folder: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(CheckNote, "write", refuse)
    match(targets, opened(data))
    assert not is_known(targets, opened(data))


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_wrong_structure_behind_a_note_never_reaches_the_weights(
    make_config: Callable[..., Settings], targets: StoredTargets, n_workers: int
) -> None:
    """The store is edited after the note, at a place that the sample leaves out."""
    settings = make_config(trainer=EQV2, task=stored(targets.store.folder, TERMS, preflight=1))
    settings["optim"].update(batch_size=6, num_workers=n_workers)
    settings["optim"]["scheduler_params"]["warmup_epochs"] = 1.0
    tiny.run(settings)

    other_record(targets, "slab1/0")
    settings["timestamp_id"] = "again"
    try:
        with new_trainer_context(config=settings) as context:
            before = tiny.parameters(context.trainer)
            with pytest.raises(ConfigError, match=MOVED) as raised:
                context.trainer.train()
            assert equal(tiny.parameters(context.trainer), before)
    finally:
        distutils.cleanup()
    assert "Traceback" not in str(raised.value)
    assert not list(Path(settings["run_dir"]).glob("checkpoints/again/checkpoint*"))


@pytest.mark.parametrize(
    "fields",
    [
        {"sid": "slab", "fid": 3},
        {"sid": 7000, "fid": torch.tensor([2])},
        {"sid": torch.tensor(5)},
        {"sid": 0.1, "fid": np.int64(3)},
        {"sid": ["a"], "fid": 0},
        {},
    ],
)
def test_an_id_is_that_of_a_batch(fields: dict[str, Any]) -> None:
    """Whatever a data set gives as sid and fid."""
    data = Data(pos=torch.zeros(2, 3), natoms=2, **fields)
    assert structure_id(data) == structure_ids(Batch.from_data_list([data]))[0]


def test_ids_are_read_in_several_processes(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one, in order, without a random number of the run's; an unreadable one is named."""
    monkeypatch.setattr(matching, "FEWEST_TO_SHARE", 2)
    train = opened(data)["train"]
    state = torch.get_rng_state()
    alone = list(read_ids(train, "train", range(1, 6)))
    assert list(read_ids(train, "train", range(1, 6), n_workers=2)) == alone
    assert torch.equal(torch.get_rng_state(), state)

    with ase.db.connect(data["train"]) as database:
        database.delete([4])
    with pytest.raises(ConfigError, match=r"^dataset.train\[\d\] cannot be read: [^\n]*$"):
        list(read_ids(train, "train", range(6), n_workers=1))


def test_a_sample_is_drawn_from_equal_parts() -> None:
    for size, limit in ((9, 4), (4, 9), (1, 1), (0, 3), (1000, 7)):
        places = draw_places(size, limit, seed=1)
        assert len(places) == min(size, limit) == len(set(places))
        parts = [place * len(places) // size for place in places]
        assert parts == sorted(parts)
    assert draw_places(1000, 7, seed=1) != draw_places(1000, 7, seed=2)
