"""Stores of format 1, without checksums of ids and number of records, are read and added to."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from kd_plugins.store._integrity import StoreError, WrittenLog, payload_digest
from kd_plugins.store.manifest import Manifest, check_same_teacher
from kd_plugins.store.record import pack
from kd_plugins.store.store import TargetStore
from tests.store.fixtures import MANIFEST, in_a_fork, record


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


def test_a_store_of_format_1_is_read_and_added_to(tmp_path: Path) -> None:
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


def test_merging_copies_into_todays_format(tmp_path: Path) -> None:
    old = old_store(tmp_path / "old", 10)
    new = TargetStore.create(tmp_path / "new", old.manifest)
    new.merge([old])
    assert TargetStore.open(new.folder).manifest.format == 2
    assert new.verify() == []
    assert len(new) == 10


@pytest.mark.parametrize("size", [0, 100, 8191])
def test_a_cut_shard_of_format_1_is_not_made_anew(tmp_path: Path, size: int) -> None:
    old = old_store(tmp_path / "old", 10)
    os.truncate(old.folder / "main.lmdb", size)
    commands = (
        lambda: TargetStore.open(old.folder).verify(),
        lambda: TargetStore.open(old.folder).append([record(11)]),
    )
    for command in commands:
        assert f"main.lmdb is cut short: {size} bytes" in str(in_a_fork(command))
    assert (old.folder / "main.lmdb").stat().st_size == size


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('a.B({"device": "cpu"}, weights 1)', "a.B(weights 1)"),
        ('a.B({"device": "cuda:1"})', "a.B()"),
        ('a.B({"device": "cpu", "x": 1})', 'a.B({"x": 1})'),
        ('a.B({"a": 2, "device": "cpu"}, weights 1)', 'a.B({"a": 2}, weights 1)'),
    ],
)
def test_a_device_in_a_fingerprint_of_0_1_0_does_not_count(old: str, new: str) -> None:
    made, wanted = (Manifest("B", one, {"energy": "float64"}) for one in (old, new))
    check_same_teacher(made, wanted, Path("store"))
    with pytest.raises(StoreError, match="another fingerprint"):
        check_same_teacher(made, Manifest("B", "a.C()", {"energy": "float64"}), Path("store"))


@pytest.mark.usefixtures("unchecked")
def test_a_receptive_field_is_kept_where_it_is_known() -> None:
    """And is not in the file where it is not, so that earlier versions read it."""
    known = replace(MANIFEST, receptive_field=24.0)
    assert Manifest.from_json(known.to_json(), "store") == known
    assert Manifest.faults(known.to_json().encode()) == []
    assert "receptive_field" not in MANIFEST.to_json()
    check_same_teacher(MANIFEST, known, Path("store"))

    for wrong in (-1.0, float("nan"), "24", True):
        with pytest.raises(ValueError, match="receptive_field: expected a number above 0 Å"):
            replace(MANIFEST, receptive_field=wrong)
