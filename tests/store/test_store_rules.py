"""Who may write a store when, who may read it meanwhile, and what older versions left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch

from kd_plugins.store import ShardBusy, StoreError
from kd_plugins.store._lmdb import ShardWriter, read_transaction
from kd_plugins.store._walk import payload_digest
from kd_plugins.store._written import SUFFIX, FileState, Total, WrittenLog, walk_shard
from kd_plugins.store.record import Record, pack
from kd_plugins.store.store import TargetStore
from tests.house import ROOT
from tests.store.test_damage import in_a_fork
from tests.store.test_store import MANIFEST, record, structure

OTHER = replace(MANIFEST, teacher="MACE", fingerprint="another one")


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    """A store of ten structures."""
    store = TargetStore.create(tmp_path / "store", MANIFEST)
    store.append(record(index) for index in range(10))
    return store


def files(folder: Path) -> dict[str, bytes]:
    """Return what each file holds, but for LMDB's lock, which readers write, too."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-lock")
    }


# A refused command touches nothing.


def test_a_refused_second_command_leaves_the_manifest_of_the_first(tmp_path: Path) -> None:
    """Also while the first one has not written a record yet."""
    first = TargetStore.create(tmp_path / "store", MANIFEST)
    with first.only_writer():
        before = files(first.folder)
        with pytest.raises(ShardBusy, match="is being written by another command; wait for it"):
            TargetStore.create(first.folder, OTHER)
        assert files(first.folder) == before
        with first.writer() as writer:
            writer.append(first.pack([record(0)]))
    assert TargetStore.open(first.folder).manifest == first.manifest
    with pytest.raises(StoreError, match="another teacher: 'EMT', not 'MACE'"):
        TargetStore.create(first.folder, OTHER)


def test_a_writer_looks_again_whose_store_it_is(tmp_path: Path) -> None:
    """An empty store may have been made anew since it was opened."""
    first = TargetStore.create(tmp_path / "store", MANIFEST)
    second = TargetStore.create(first.folder, OTHER)
    for write in (lambda: first.append([record(0)]), lambda: first.writer("other")):
        with pytest.raises(StoreError, match="another teacher: 'MACE', not 'EMT'"):
            write()
    second.append([record(0)])
    assert second.verify() == []


def test_many_make_one_store_at_once(tmp_path: Path) -> None:
    """One of the teachers has it; the others are refused or wait, and none is mixed in."""

    def work(teacher: str) -> str:
        try:
            made = TargetStore.create(tmp_path / "store", replace(MANIFEST, teacher=teacher))
            made.append([record(int(teacher))])
        except StoreError:
            return "refused"
        return teacher

    for _ in range(5):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        children = []
        for number in range(6):
            child = os.fork()
            if child == 0:
                os._exit(0 if work(str(number)) == str(number) else 1)
            children.append(child)
        wrote = [n for n, pid in enumerate(children) if os.waitpid(pid, 0)[1] == 0]
        made = TargetStore.open(tmp_path / "store")
        assert wrote == [int(made.manifest.teacher)]
        assert list(made.ids()) == [f"structure-{wrote[0]}"]


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    with pytest.raises(StoreError, match="is not empty"):
        TargetStore.create(tmp_path, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


def test_a_lost_manifest_is_missed(store: TargetStore) -> None:
    (store.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"has lost its manifest.json, .* restore it"):
        TargetStore.open(store.folder)
    with pytest.raises(StoreError, match=r"has lost its manifest.json, .* main.lmdb"):
        TargetStore.create(store.folder, MANIFEST)


# What a shard should hold stands beside it.


def test_the_digest_holds_for_the_id(store: TargetStore) -> None:
    """One record's bytes under another's id are damaged."""
    path = store.folder / "main.lmdb"
    swapped = path.read_bytes().replace(b"structure-9", b"structure-:")
    path.write_bytes(swapped)
    found = in_a_fork(lambda: TargetStore.open(store.folder).verify())
    assert any("structure-:: main.lmdb: the record of" in fault for fault in found), found


def test_a_kill_before_or_after_the_commit_is_no_loss(store: TargetStore) -> None:
    """The shard may hold the batch that was announced, or not."""
    log = WrittenLog(store.folder / "main.lmdb")
    held = log.read().after
    log.begin(held, Total(held.records + 5, 7))
    assert store.verify() == []
    store.append([record(10)])
    assert store.verify() == []
    assert log.read().after.records == 11


@pytest.mark.parametrize("torn", ["writing 11 0", "written", "\n", "x" * 300, "\0" * 40])
def test_a_torn_line_does_no_harm(store: TargetStore, torn: str) -> None:
    """It is passed over, and the next one is whole."""
    path = store.folder / f"main.lmdb{SUFFIX}"
    with path.open("a") as file:
        file.write(torn)
    assert store.verify() == []
    store.append([record(10)])
    assert WrittenLog(store.folder / "main.lmdb").read().after.records == 11
    assert store.verify() == []


def test_the_file_beside_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins anew, since only its last line counts."""
    monkeypatch.setattr("kd_plugins.store._written.LOG_BYTES", 500)
    store = TargetStore.create(tmp_path / "store", MANIFEST)
    with store.writer() as writer:
        for index in range(30):
            writer.append(store.pack([record(index)]))
    assert (store.folder / f"main.lmdb{SUFFIX}").stat().st_size < 1000
    assert store.verify() == []


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
    for work in (
        lambda: TargetStore.open(store.folder).verify(),
        lambda: TargetStore.open(store.folder)["structure-1"],
        lambda: TargetStore.open(store.folder).append([record(11)]),
        lambda: TargetStore.create(store.folder, OTHER).append([record(11)]),
    ):
        assert message in str(in_a_fork(work))
    assert sorted(entry.name for entry in store.folder.iterdir()) == before


def test_what_is_left_can_be_kept(store: TargetStore, tmp_path: Path) -> None:
    """As the message says: without the number, in another store."""
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


def test_damage_that_ends_a_process_ends_the_childs(store: TargetStore) -> None:
    """And is named with the signal."""
    path = store.folder / "main.lmdb"
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[4096 * page : 4096 * page + 16] = bytes(16)
    path.write_bytes(content)
    found = walk_shard(path)
    assert found.fault is not None
    said = in_a_fork(lambda: TargetStore.open(store.folder).verify())
    assert said[0].startswith("main.lmdb is damaged: "), said
    assert "restore it from a copy" in said[0]


def test_a_manifest_that_was_changed_is_named(store: TargetStore) -> None:
    """Though it can be read."""
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace("ase.calculators.emt", "ase.calculators.emx"))
    again = TargetStore.open(store.folder)
    assert again.manifest.fingerprint == "ase.calculators.emx.EMT()"
    assert "manifest.json is not what was written" in again.verify()[0]


def test_one_id_is_written_once(store: TargetStore) -> None:
    """Also by who asks the shard itself."""
    with store.writer() as writer, pytest.raises(ValueError, match="'structure-3' is in main.lmdb"):
        writer.append({"new": b"", "structure-3": b"other"})
    assert "new" not in store
    assert store.verify() == []


def test_a_copy_is_examined_once(store: TargetStore, tmp_path: Path) -> None:
    """The reader who did so writes down what it looks like; who may not write need not."""
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    os.utime(copy / "main.lmdb", ns=(1, 1))
    log = WrittenLog(copy / "main.lmdb")
    assert log.read().state != FileState.of(copy / "main.lmdb")
    assert len(TargetStore.open(copy)) == 10
    assert log.read().state == FileState.of(copy / "main.lmdb")
    assert TargetStore.open(copy).verify() == []


# Stores of format 1, in which checksums did not cover ids, and nobody counted.


def old_store(folder: Path, count: int) -> TargetStore:
    """Write a store as version 0.1.0's first format has it."""
    folder.mkdir()
    manifest = json.loads(replace(MANIFEST, format=1).to_json())
    del manifest["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with lmdb.open(str(folder / "main.lmdb"), subdir=False) as shard, shard.begin(write=True) as to:
        for index in range(count):
            payload = pack(record(index), MANIFEST)
            to.put(f"structure-{index}".encode(), payload_digest(payload) + payload)
    return TargetStore.open(folder)


def test_a_store_of_format_1_goes_on(tmp_path: Path) -> None:
    """It is read and appended to in its own format; from its next writer on it is counted."""
    old = old_store(tmp_path / "old", 10)
    assert old.uncounted() == ["main.lmdb"]
    assert old.verify() == []
    assert pack(old.record("structure-3"), MANIFEST) == pack(record(3), MANIFEST)
    again = TargetStore.create(old.folder, MANIFEST)
    assert again.manifest.format == 1
    again.append([record(10)])
    again.append([record(11)], shard="second")
    assert again.uncounted() == []
    assert again.verify() == []
    assert len(again) == 12
    assert WrittenLog(old.folder / "main.lmdb").read().after.records == 11


def test_merging_makes_a_store_of_todays_format(tmp_path: Path) -> None:
    old = old_store(tmp_path / "old", 10)
    new = TargetStore.create(tmp_path / "new", old.manifest)
    new.merge([old])
    assert TargetStore.open(new.folder).manifest.format == 2
    assert new.verify() == []
    assert len(new) == 10


@pytest.mark.parametrize("size", [0, 100, 8191])
def test_an_uncounted_shard_that_was_cut_is_not_made_anew(tmp_path: Path, size: int) -> None:
    old = old_store(tmp_path / "old", 10)
    os.truncate(old.folder / "main.lmdb", size)
    work = (
        lambda: TargetStore.open(old.folder).verify(),
        lambda: TargetStore.open(old.folder).append([record(11)]),
    )
    for ask in work:
        assert f"main.lmdb is cut short: {size} bytes" in str(in_a_fork(ask))
    assert (old.folder / "main.lmdb").stat().st_size == size


# Readers that may not write.

NOBODY = 65534


def as_nobody(work: Callable[[], Any]) -> Any:
    """Return what work gives to a user who may read and not write."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")

    def become() -> Any:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    return in_a_fork(become)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's may not be."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


WRITE = r"""
import itertools, sys, time
from kd_plugins.store.store import TargetStore
from tests.store.test_store import record
store, together = TargetStore.open(sys.argv[1]), sys.argv[2] == "one-writer"
new = itertools.count(int(sys.argv[3]))
while True:
    if together:
        with store.writer() as writer:
            for _ in range(200):
                writer.append(store.pack([record(next(new))]))
    else:
        store.append([record(next(new))])
"""


def reads(folder: Path, count: int) -> dict[str, int]:
    """Read known records and all ids in turn, and count what was right."""
    store, right = TargetStore.open(folder), 0
    expected = {index: pack(record(index), MANIFEST) for index in range(10)}
    for turn in range(count):
        if turn % 1000 == 0:
            right += len(list(store.ids())) >= 10
        else:
            right += pack(store.record(f"structure-{turn % 10}"), MANIFEST) == expected[turn % 10]
    return {"right": right}


@pytest.mark.parametrize("how", ["one-writer", "many-writers"])
def test_another_users_reads_while_somebody_writes(
    open_folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 reads, and nothing is written over under them."""
    store = TargetStore.create(open_folder / "store", MANIFEST)
    store.append(record(index) for index in range(10))
    store.folder.chmod(0o755)
    count = int(os.environ.get("KD_READS", "2000"))
    words = [sys.executable, "-c", WRITE, str(store.folder), how, "10"]
    writer = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(store) < 30:
            assert writer.poll() is None, writer.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = len(store)
        found = as_nobody(lambda: reads(store.folder, count))
        written = len(store) - before
    finally:
        writer.kill()
        writer.communicate()
    assert found == {"right": count}
    assert written > 0
    assert store.verify() == []


def test_another_user_is_told_that_he_may_not_write(open_folder: Path) -> None:
    store = TargetStore.create(open_folder / "store", MANIFEST)
    store.append([record(0)])
    store.folder.chmod(0o755)
    said = as_nobody(lambda: TargetStore.open(store.folder).append([record(1)]))
    assert "cannot be written: Permission denied" in said["raised"]
    read = as_nobody(lambda: TargetStore.open(store.folder)["structure-0"].values["energy"].item())
    assert read == record(0).values["energy"].item()


def test_a_snapshot_is_kept_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then LMDB may use its pages again, so that the file does not grow for ever."""
    sizes = {}
    for grace in (0.0, 100.0):
        monkeypatch.setattr("kd_plugins.store._lmdb.GRACE", grace)
        path = tmp_path / f"{grace}.lmdb"
        with ShardWriter(path) as writer:
            for index in range(60):
                writer.append({f"id-{index}": bytes(2000)})
        sizes[grace] = path.stat().st_size
    assert sizes[0.0] < 0.6 * sizes[100.0]


def test_a_new_writer_waits_for_who_reads_without_a_slot(
    store: TargetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until he is done, or too slow."""
    import fcntl

    monkeypatch.setattr("kd_plugins.store._lmdb.GRACE", 0.5)
    with store.writer() as writer, (store.folder / "main.lmdb").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        start = time.monotonic()
        writer.append(store.pack([record(20)]))
        assert time.monotonic() - start >= 0.5
        start = time.monotonic()
        writer.append(store.pack([record(21)]))
        assert time.monotonic() - start < 0.5


# Records that no store can keep.


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"energy": 3.5}, "'x': energy: expected a tensor, got float 3.5"),
    "a list": ({"energy": [3.5]}, "'x': energy: expected a tensor, got list"),
    "complex": ({"energy": torch.tensor(1j)}, "'x': energy: expected real numbers, got torch.com"),
    "booleans": ({"energy": torch.tensor(True)}, "'x': energy: expected real numbers"),
    "nothing": ({}, "'x' has no value of any quantity; the store holds energy"),
    "float32": (
        {"forces": torch.tensor([[0.0, 0.0, 0.0], [0.0, 1e300, 0.0]], dtype=torch.float64)},
        r"'x': forces\[1, 1\] is 1e\+300, beyond float32's 3.40282e\+38; keep it as float64",
    ),
    "float16": (
        {"node_embeddings": torch.full((2, 4), 1e5)},
        r"'x': node_embeddings\[0, 0\] is 100000, beyond float16's 65504",
    ),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_values_that_would_be_kept_as_something_else(
    store: TargetStore, values: dict[str, Any], message: str, unchecked: None
) -> None:
    before = files(store.folder)["main.lmdb"]
    with pytest.raises(ValueError, match=message):
        store.append([record(50), Record("x", structure(0), values)])
    assert files(store.folder)["main.lmdb"] == before


def test_positions_beyond_float32(store: TargetStore) -> None:
    far = structure(0)
    far.positions[1, 2] = 1e9 + 0.3
    with pytest.raises(ValueError, match=r"'x': positions\[1, 2\] is 1e\+09 Å, more than can be"):
        store.append([Record("x", far, {"energy": torch.tensor(1.0)})])


def test_what_is_no_record(store: TargetStore, unchecked: None) -> None:
    with pytest.raises(ValueError, match="expected a Record, got float 3.0"):
        store.append([3.0])


def test_a_slow_read_without_a_slot_sees_one_state(
    store: TargetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process commits again and again, by one writer and by many."""
    path = store.folder / "main.lmdb"
    monkeypatch.setattr("kd_plugins.store._lmdb.make_lock_file", lambda *_, **__: False)
    words = [sys.executable, "-c", WRITE, str(store.folder), "one-writer", "10"]

    def work() -> dict[str, Any]:
        begun = TargetStore.open(store.folder)
        writer = subprocess.Popen(words, cwd=ROOT)
        try:
            while len(begun) < 20:
                time.sleep(0.01)
            with read_transaction(path) as transaction:
                entries, size = transaction.stat()["entries"], path.stat().st_size
                deadline = time.monotonic() + 20
                while path.stat().st_size < size + 40 * 4096 and time.monotonic() < deadline:
                    time.sleep(0.01)
                seen = [bytes(item[0]) for item in transaction.cursor()]
            return {"entries": entries, "seen": len(seen), "written": len(begun) - entries}
        finally:
            writer.kill()
            writer.wait()

    found = in_a_fork(work)
    assert found["seen"] == found["entries"]
    assert found["written"] >= 5
