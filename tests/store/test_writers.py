"""One command writes a store at a time, and loses nothing when it is killed or the disk is full."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kd_plugins.store import ShardBusy, StoreError
from kd_plugins.store._lmdb import ShardWriter
from kd_plugins.store.store import TargetStore
from tests.hosts import in_the_other_environment
from tests.store.fixtures import (
    MANIFEST,
    OTHER_MANIFEST,
    content,
    file_contents,
    in_a_fork,
    in_another_process,
    record,
)

pytestmark = in_the_other_environment


def test_a_refused_second_command_leaves_the_manifest_of_the_first(tmp_path: Path) -> None:
    """Also while the first one has not written a record yet."""
    first = TargetStore.create(tmp_path / "store", MANIFEST)
    with first.only_writer():
        before = file_contents(first.folder)
        with pytest.raises(ShardBusy, match="is being written by another command; wait for it"):
            TargetStore.create(first.folder, OTHER_MANIFEST)
        assert file_contents(first.folder) == before
        with first.writer() as writer:
            writer.append(first.pack([record(0)]))
    assert TargetStore.open(first.folder).manifest == first.manifest
    with pytest.raises(StoreError, match="another teacher: 'EMT', not 'MACE'"):
        TargetStore.create(first.folder, OTHER_MANIFEST)


def test_a_writer_is_refused_if_the_store_was_made_anew_for_another_teacher(tmp_path: Path) -> None:
    """An empty store may have been made anew since it was opened."""
    first = TargetStore.create(tmp_path / "store", MANIFEST)
    second = TargetStore.create(first.folder, OTHER_MANIFEST)
    for write in (lambda: first.append([record(0)]), lambda: first.writer("other")):
        with pytest.raises(StoreError, match="another teacher: 'MACE', not 'EMT'"):
            write()
    second.append([record(0)])
    assert second.verify() == []


def test_one_of_many_processes_makes_the_store(tmp_path: Path) -> None:
    """For one teacher; the others are refused, and none of their records is in it."""

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


def test_a_second_writer_of_a_shard_is_refused(store: TargetStore) -> None:
    """Another shard may be written."""

    def write_in_another_process(shard: str) -> Any:
        return in_a_fork(lambda: ShardWriter(store.folder / shard).close())

    with store.writer():
        refused = write_in_another_process("main.lmdb")
        assert "main.lmdb is being written by another process" in refused["raised"]
        assert write_in_another_process("second.lmdb") is None
    assert write_in_another_process("main.lmdb") is None


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """What was committed before the disk filled up is read afterwards."""
    code = """
import resource, signal, sys
from tests.store.fixtures import MANIFEST, record
from kd_plugins.store.store import TargetStore
store = TargetStore.create(sys.argv[1], MANIFEST)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))
for index in range(1000):
    store.append([record(index)])
    print(index, flush=True)
"""
    done = in_another_process(code, tmp_path / "store")
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert "make room and go on" in done.stderr
    committed = [f"structure-{index}" for index in done.stdout.split()]
    store = TargetStore.open(tmp_path / "store")
    assert committed
    assert sorted(store.ids()) == sorted(committed)
    assert store.verify() == []


BATCH, TOTAL = 5, 60


def label_until_killed(folder: Path, pipe: int) -> None:
    """Append what is missing, a batch at a time, and send the committed batches into a pipe."""
    store = TargetStore.create(folder, MANIFEST)
    missing = [index for index in range(TOTAL) if f"structure-{index}" not in store]
    with store.writer() as writer:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            writer.append(store.pack(record(index) for index in batch))
            os.write(pipe, bytes(batch))


def killed_after(seconds: float, folder: Path) -> set[str]:
    """Fork a writer, kill it after some time, and return the ids that it had committed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            label_until_killed(folder, write)
        finally:
            os._exit(0)
    os.close(write)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return {f"structure-{index}" for index in pipe.read()}


def seconds_to_begin(folder: Path) -> float:
    """Return how long a writer takes on this machine for its first batch."""
    start = time.monotonic()
    store = TargetStore.create(folder, MANIFEST)
    store.append(record(index) for index in range(BATCH))
    return time.monotonic() - start


@pytest.mark.parametrize("seed", range(int(os.environ.get("KD_KILLS", "200")) // 20))
def test_kills_at_random_moments_lose_nothing(tmp_path: Path, seed: int) -> None:
    """20 kills a seed: what was committed is there, the store is clean and can be completed."""
    whole = TargetStore.create(tmp_path / "whole", MANIFEST)
    whole.append(record(index) for index in range(TOTAL))
    longest = max(0.15, 3 * seconds_to_begin(tmp_path / "clock"))
    moments, committed = random.Random(seed), set()
    for _ in range(20):
        committed |= killed_after(moments.uniform(0.0, longest), tmp_path / "store")
        if (tmp_path / "store" / "manifest.json").exists():
            store = TargetStore.open(tmp_path / "store")
            assert committed <= set(store.ids())
            assert store.verify() == []
    assert committed  # the kills did not all come before the first batch
    store.append(record(i) for i in range(TOTAL) if f"structure-{i}" not in store)
    assert content(store) == content(whole)
