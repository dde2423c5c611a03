"""Any number of processes read a store while another one writes it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from kd_plugins.store._lmdb import ShardWriter, read_transaction
from kd_plugins.store.record import pack
from kd_plugins.store.store import TargetStore
from tests.house import ROOT
from tests.store.fixtures import MANIFEST, in_a_fork, record


class Energies(Dataset):
    """Reads energies in a data loader's workers."""

    def __init__(self, store: TargetStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        return self.store[f"structure-{index}"].values["energy"].item()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_read_an_open_store(store: TargetStore, context: str) -> None:
    """An open store may be handed to forked and to spawned workers."""
    expected = [store[f"structure-{index}"].values["energy"].item() for index in range(10)]
    loader = DataLoader(Energies(store), num_workers=2, multiprocessing_context=context)
    assert [float(energy) for energy in loader] == expected


def test_a_reader_sees_what_another_process_appends(store: TargetStore) -> None:
    """Also when the file has outgrown the reader's map."""
    assert "structure-9" in store
    new = [record(index) for index in range(10, 20)]
    assert in_a_fork(lambda: TargetStore.open(store.folder).append(new)) is None
    assert "structure-19" in store


# Users who may only read, and so have no slot in LMDB's lock file.


NOBODY = 65534


def as_nobody(work: Callable[[], Any]) -> Any:
    """Return the result of a function that runs as a user who may read and not write."""
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
from tests.store.fixtures import record
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
def test_a_user_who_may_only_read_reads_right_while_another_writes(
    open_folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is written over while it is read; ``KD_READS=20000`` reads ten times as often."""
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


def test_a_user_who_may_only_read_cannot_write(open_folder: Path) -> None:
    store = TargetStore.create(open_folder / "store", MANIFEST)
    store.append([record(0)])
    store.folder.chmod(0o755)
    refused = as_nobody(lambda: TargetStore.open(store.folder).append([record(1)]))
    assert "cannot be written: Permission denied" in refused["raised"]
    read = as_nobody(lambda: TargetStore.open(store.folder)["structure-0"].values["energy"].item())
    assert read == record(0).values["energy"].item()


def test_a_slow_read_without_a_slot_sees_one_state(
    store: TargetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process commits again and again."""
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


def test_pages_are_used_again_after_the_grace_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_new_writer_waits_for_readers_without_a_slot(
    store: TargetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they have finished, or for the grace time."""
    monkeypatch.setattr("kd_plugins.store._lmdb.GRACE", 0.5)
    with store.writer() as writer, (store.folder / "main.lmdb").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        start = time.monotonic()
        writer.append(store.pack([record(20)]))
        assert time.monotonic() - start >= 0.5
        start = time.monotonic()
        writer.append(store.pack([record(21)]))
        assert time.monotonic() - start < 0.5
