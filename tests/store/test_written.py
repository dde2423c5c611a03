"""A shard that has lost records, or holds others than were written, is named and left alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_plugins.store import StoreError, _integrity
from kd_plugins.store._integrity import SUFFIX, FileState, Total, WrittenLog, walk_shard
from kd_plugins.store._lmdb import ShardReader
from kd_plugins.store.store import TargetStore
from tests.store.fixtures import MANIFEST, OTHER_MANIFEST, in_a_fork, record


def test_a_flipped_byte_is_found(store: TargetStore) -> None:
    """The record is named, the others stay readable."""
    path = store.folder / "main.lmdb"
    forces = record(4).values["forces"].numpy().tobytes()
    flipped = bytes([forces[0] ^ 1]) + forces[1:]
    path.write_bytes(path.read_bytes().replace(forces, flipped))  # stale pages hold copies, too
    (fault,) = in_a_fork(lambda: TargetStore.open(store.folder).verify())
    assert "structure-4: main.lmdb: the record of 'structure-4' is damaged" in fault


def test_a_truncated_shard_is_refused(store: TargetStore) -> None:
    """With a sentence instead of a crash."""
    path = store.folder / "main.lmdb"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    (fault,) = in_a_fork(lambda: TargetStore.open(store.folder).verify())
    assert "main.lmdb is damaged: it is cut short" in fault


def test_a_record_under_another_id_is_damaged(store: TargetStore) -> None:
    """A record's checksum covers its id."""
    path = store.folder / "main.lmdb"
    swapped = path.read_bytes().replace(b"structure-9", b"structure-:")
    path.write_bytes(swapped)
    found = in_a_fork(lambda: TargetStore.open(store.folder).verify())
    assert any("structure-:: main.lmdb: the record of" in fault for fault in found), found


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (lambda path: path.unlink(), "main.lmdb is missing and its 10 records are lost"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "main.lmdb is no file, and its 10"),
    "cut": (lambda path: os.truncate(path, 100), "main.lmdb is cut short: 100 bytes"),
    "empty": (lambda path: os.truncate(path, 0), "main.lmdb is cut short: 0 bytes"),
}


@pytest.mark.parametrize(("damage", "message"), LOSSES.values(), ids=LOSSES.keys())
def test_a_lost_shard_is_named_and_left_alone(
    store: TargetStore, damage: Callable[[Path], object], message: str
) -> None:
    """By verify, by readers, and by the next writer, which neither removes nor replaces it."""
    path = store.folder / "main.lmdb"
    damage(path)
    before = sorted(entry.name for entry in store.folder.iterdir())
    for command in (
        lambda: TargetStore.open(store.folder).verify(),
        lambda: TargetStore.open(store.folder)["structure-1"],
        lambda: TargetStore.open(store.folder).append([record(11)]),
        lambda: TargetStore.create(store.folder, OTHER_MANIFEST).append([record(11)]),
    ):
        assert message in str(in_a_fork(command))
    assert sorted(entry.name for entry in store.folder.iterdir()) == before


def test_what_is_left_of_a_damaged_store_can_be_copied(store: TargetStore, tmp_path: Path) -> None:
    """Into another store, after the log was removed, as the message advises."""
    early = tmp_path / "early.lmdb"
    shutil.copy(store.folder / "main.lmdb", early)
    store.append([record(10)])
    shutil.copytree(store.folder, tmp_path / "copy")
    shutil.copy(early, tmp_path / "copy" / "main.lmdb")

    lost = TargetStore.open(tmp_path / "copy")
    (fault,) = lost.verify()
    assert "has lost records: it holds 10 of 11 that were written, 1 missing; restore it" in fault
    assert "remove main.lmdb.written" in fault
    with pytest.raises(StoreError, match="has lost records"):
        next(lost.ids())
    (lost.folder / f"main.lmdb{SUFFIX}").unlink()
    assert "main.lmdb.written is missing" in lost.verify()[0]
    with pytest.raises(StoreError, match="main.lmdb.written is missing"):
        lost.append([record(12)])
    kept = TargetStore.create(tmp_path / "kept", MANIFEST)
    kept.merge([lost])
    assert len(kept) == 10
    assert kept.verify() == []


def test_damage_ends_only_the_child_process_that_reads(store: TargetStore) -> None:
    """And is named with the signal."""
    path = store.folder / "main.lmdb"
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[4096 * page : 4096 * page + 16] = bytes(16)
    path.write_bytes(content)
    found = walk_shard(path)
    assert found.fault is not None
    faults = in_a_fork(lambda: TargetStore.open(store.folder).verify())
    assert faults[0].startswith("main.lmdb is damaged: "), faults
    assert "restore it from a copy" in faults[0]


def test_verify_names_other_records_than_those_that_were_written(store: TargetStore) -> None:
    """As many, and each of them whole."""
    WrittenLog(store.folder / "main.lmdb").begin(Total(10, 1), Total(10, 2))
    (fault,) = store.verify()
    assert "main.lmdb holds other records than those that were written; restore it" in fault


def test_verify_reads_each_record_once(store: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that damage may end reads ids only."""
    walks: list[bool] = []
    reads: list[str] = []
    get = ShardReader.get

    def counted_walk(path: Path, *, payloads: bool = False) -> _integrity.WalkResult:
        walks.append(payloads)
        return walk_shard(path, payloads=payloads)

    def counted_get(self: ShardReader, structure_id: str) -> bytes | None:
        reads.append(structure_id)
        return get(self, structure_id)

    monkeypatch.setattr(_integrity, "walk_shard", counted_walk)
    monkeypatch.setattr(ShardReader, "get", counted_get)
    assert store.verify() == []
    assert walks == [False]
    assert sorted(reads) == sorted(store.ids())


def test_the_ids_of_a_copy_are_read_once(store: TargetStore, tmp_path: Path) -> None:
    """The first reader notes the state of the file for the next one."""
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    os.utime(copy / "main.lmdb", ns=(1, 1))
    log = WrittenLog(copy / "main.lmdb")
    assert log.read().state != FileState.of(copy / "main.lmdb")
    assert len(TargetStore.open(copy)) == 10
    assert log.read().state == FileState.of(copy / "main.lmdb")
    assert TargetStore.open(copy).verify() == []


# The log beside a shard.


def test_a_kill_before_or_after_the_commit_is_no_loss(store: TargetStore) -> None:
    """The log has a batch as begun; the shard may hold it or not."""
    log = WrittenLog(store.folder / "main.lmdb")
    held = log.read().after
    log.begin(held, Total(held.records + 5, 7))
    assert store.verify() == []
    store.append([record(10)])
    assert store.verify() == []
    assert log.read().after.records == 11


@pytest.mark.parametrize("line", ["writing 11 0", "written", "\n", "x" * 300, "\0" * 40])
def test_an_incomplete_line_of_the_log_is_skipped(store: TargetStore, line: str) -> None:
    """The one before it counts, and the next one is whole."""
    path = store.folder / f"main.lmdb{SUFFIX}"
    with path.open("a") as file:
        file.write(line)
    assert store.verify() == []
    store.append([record(10)])
    assert WrittenLog(store.folder / "main.lmdb").read().after.records == 11
    assert store.verify() == []


def test_the_log_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins anew, since only its last line counts."""
    monkeypatch.setattr("kd_plugins.store._integrity.LOG_BYTES", 500)
    store = TargetStore.create(tmp_path / "store", MANIFEST)
    with store.writer() as writer:
        for index in range(30):
            writer.append(store.pack([record(index)]))
    assert (store.folder / f"main.lmdb{SUFFIX}").stat().st_size < 1000
    assert store.verify() == []
