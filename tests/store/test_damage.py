"""Damage is named, or the store reads right: bytes, pages, cuts, files that are gone or too old.

``KD_DAMAGES=400 pytest tests/store/test_damage.py`` tries as many.
"""

from __future__ import annotations

import os
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kd_plugins.store import StoreError
from kd_plugins.store.record import pack
from kd_plugins.store.store import TargetStore
from tests.store.fixtures import MANIFEST, in_a_fork, record

DAMAGES = int(os.environ.get("KD_DAMAGES", "60"))
PAGE = 4096
MAIN, SECOND = 220, 60
"""Records of either shard."""


def fill(folder: Path) -> TargetStore:
    """Make a store of two shards in batches of different sizes."""
    store = TargetStore.create(folder, MANIFEST)
    with store.only_writer():
        with store.writer("main") as writer:
            for start, end in ((0, 4), (4, 55), (55, 150), (150, 190), (190, MAIN)):
                writer.append(store.pack(record(index) for index in range(start, end)))
        with store.writer("worker-0") as writer:
            for start in range(MAIN, MAIN + SECOND, 20):
                writer.append(store.pack(record(index) for index in range(start, start + 20)))
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without damage, and beside it a copy from one batch earlier."""
    folder = tmp_path_factory.mktemp("whole")
    fill(folder / "store")
    for index in range(MAIN + SECOND):
        expected(index)
    store = TargetStore.create(folder / "earlier", MANIFEST)
    with store.writer() as writer:
        for start, end in ((0, 4), (4, 55), (55, 150), (150, 190)):
            writer.append(store.pack(record(index) for index in range(start, end)))
    return folder


@cache
def expected(index: int) -> bytes:
    """Return the bytes of a record."""
    return pack(record(index), MANIFEST)


def verify(folder: Path) -> Any:
    """Return what `TargetStore.verify` gives in a process of its own."""

    return in_a_fork(lambda: TargetStore.open(folder).verify())


def readings(folder: Path) -> Any:
    """Return how many records read right, how many wrong, and how many are refused."""

    def work() -> Any:
        store, counts = TargetStore.open(folder), {"right": 0, "wrong": 0, "refused": 0}
        counts["more"] = len(set(store.ids()) - {f"structure-{i}" for i in range(MAIN + SECOND)})
        for index in range(MAIN + SECOND):
            try:
                found = pack(store.record(f"structure-{index}"), MANIFEST)
            except (StoreError, KeyError, ValueError):
                counts["refused"] += 1
                continue
            counts["right" if found == expected(index) else "wrong"] += 1
        return counts

    return in_a_fork(work)


def appended(folder: Path) -> Any:
    """Write one more record, as the next command would."""

    def work() -> Any:
        TargetStore.open(folder).append([record(MAIN + SECOND)])
        return "written"

    return in_a_fork(work)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int, chance: random.Random) -> None:
    old = path.read_bytes()[offset]
    overwrite(path, offset, bytes([old ^ (1 << chance.randrange(8))]))


def some_file(folder: Path, chance: random.Random) -> Path:
    files = [path for path in sorted(folder.iterdir()) if path.stat().st_size]
    return chance.choice(files)


def some_shard(folder: Path, chance: random.Random) -> Path:
    return folder / chance.choice(["main.lmdb", "worker-0.lmdb"])


def some_page(path: Path, chance: random.Random) -> int:
    return PAGE * chance.randrange(path.stat().st_size // PAGE)


def byte_of_a_file(folder: Path, chance: random.Random) -> None:
    path = some_file(folder, chance)
    flip(path, chance.randrange(path.stat().st_size), chance)


def byte_of_a_shard(folder: Path, chance: random.Random) -> None:
    path = some_shard(folder, chance)
    for _ in range(chance.choice([1, 1, 5, 50])):
        flip(path, chance.randrange(path.stat().st_size), chance)


def byte_of_the_first_pages(folder: Path, chance: random.Random) -> None:
    flip(some_shard(folder, chance), chance.choice([0, PAGE]) + chance.randrange(152), chance)


def byte_of_a_key(folder: Path, chance: random.Random) -> None:
    path = some_shard(folder, chance)
    content = path.read_bytes()
    places = [i for i in range(len(content)) if content.startswith(b"structure-", i)]
    flip(path, chance.choice(places) + chance.randrange(13), chance)


def byte_of_a_pages_head(folder: Path, chance: random.Random) -> None:
    path = some_shard(folder, chance)
    flip(path, some_page(path, chance) + chance.randrange(64), chance)


def zeroed_page(folder: Path, chance: random.Random) -> None:
    path = some_shard(folder, chance)
    overwrite(path, some_page(path, chance), bytes(PAGE))


def random_page(folder: Path, chance: random.Random) -> None:
    path = some_shard(folder, chance)
    overwrite(path, some_page(path, chance), chance.randbytes(PAGE))


def page_of_another_place(folder: Path, chance: random.Random) -> None:
    path = some_shard(folder, chance)
    start = some_page(path, chance)
    overwrite(path, some_page(path, chance), path.read_bytes()[start : start + PAGE])


def cut(folder: Path, chance: random.Random) -> None:
    path = some_file(folder, chance)
    os.truncate(path, chance.randrange(path.stat().st_size))


def short_cut(folder: Path, chance: random.Random) -> None:
    os.truncate(some_shard(folder, chance), chance.choice([0, 1, 4096, 8191, 8192, 12288]))


def removed(folder: Path, chance: random.Random) -> None:
    some_file(folder, chance).unlink()


def folder_in_its_place(folder: Path, chance: random.Random) -> None:
    path = some_file(folder, chance)
    path.unlink()
    path.mkdir()


def earlier_copy(folder: Path, chance: random.Random) -> None:
    shutil.copy(folder.parent / "earlier" / "main.lmdb", folder / "main.lmdb")


def other_shard(folder: Path, chance: random.Random) -> None:
    shutil.copy(folder / "worker-0.lmdb", folder / "main.lmdb")


KINDS = (
    byte_of_a_file,
    byte_of_a_shard,
    byte_of_the_first_pages,
    byte_of_a_key,
    byte_of_a_pages_head,
    zeroed_page,
    random_page,
    page_of_another_place,
    cut,
    short_cut,
    removed,
    folder_in_its_place,
    earlier_copy,
    other_shard,
)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged, and one of its shard a batch earlier."""
    for name in ("store", "earlier"):
        shutil.copytree(whole / name, tmp_path / name)
    return tmp_path / "store"


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_damage_is_named_or_the_store_reads_right(store: Path, seed: int) -> None:
    """No wrong value is read, no lost record goes unnoticed, and no process is ended."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    kind(store, chance)

    faults, found = verify(store), readings(store)
    assert "signal" not in faults, (kind.__name__, faults)
    assert "signal" not in found, (kind.__name__, found)
    assert found.get("wrong", 0) == 0, (kind.__name__, found)
    is_named = isinstance(faults, dict) or bool(faults)
    is_right = found.get("right") == MAIN + SECOND and not found["more"]
    assert is_named or is_right, (kind.__name__, faults, found)
    for message in faults if isinstance(faults, list) else [faults["raised"]]:
        assert not message.startswith(("TypeError", "AttributeError", "IndexError")), message

    # The next command continues with what is whole, or is refused; it makes nothing worse.
    before = {path.name: path.stat().st_size for path in store.glob("*.lmdb")}
    outcome = appended(store)
    assert "signal" not in outcome, (kind.__name__, outcome)
    if outcome != "written":
        after = {path.name: path.stat().st_size for path in store.glob("*.lmdb")}
        assert after == before, (kind.__name__, outcome)
        return
    later = readings(store)
    assert later.get("wrong", 0) == 0, (kind.__name__, later)
    assert later.get("right", 0) >= found.get("right", 0), (kind.__name__, found, later)


def test_a_whole_copy_has_no_fault(store: Path) -> None:
    """Its times differ, so its ids are read once, in a process of their own."""
    assert verify(store) == []
    assert readings(store)["right"] == MAIN + SECOND
    assert appended(store) == "written"
    assert verify(store) == []
