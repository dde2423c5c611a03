"""A target store keeps each record to the bit, and gives it to the right structure only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_plugins.cli import main
from kd_plugins.store import StoreError
from kd_plugins.store._lmdb import ShardWriter
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from tests.store.fixtures import MANIFEST, content, file_contents, record, structure


def test_what_was_written_is_read(store: TargetStore) -> None:
    """To the bit of each quantity's own precision."""
    for index in range(10):
        expected, found = record(index).values, store[f"structure-{index}"].values
        assert found["energy"].item() == expected["energy"].item()
        assert torch.equal(found["forces"], expected["forces"])
        assert torch.equal(found["node_embeddings"], expected["node_embeddings"].half())
    assert store.verify() == []
    assert len(store) == 10
    assert "structure-3" in store
    assert "structure-10" not in store


def test_a_missing_quantity_stays_missing(store: TargetStore) -> None:
    """Nothing is made up for it."""
    energy_only = Record("bare", structure(0), {"energy": torch.tensor(1.0)})
    store.append([energy_only])
    assert set(store["bare"].values) == {"energy"}


@pytest.mark.parametrize("translation", [[1, 0, 0], [-2, 3, 1]])
def test_lattice_translations_are_the_same_structure(
    store: TargetStore, translation: list[int]
) -> None:
    """Wrapped or not, and in float32."""
    same = structure(3)
    moved = same.positions + np.array(translation) @ same.cell
    wrapped = Structure(same.atomic_numbers, moved.astype(np.float32), same.cell, same.pbc)
    assert store.read("structure-3", wrapped).structure_ids == ("structure-3",)


def edited(**changes: object) -> Structure:
    """Return structure 3 with something changed."""
    same = structure(3)
    fields = {name: getattr(same, name).copy() for name in ("atomic_numbers", "positions")}
    return Structure(**{**fields, "cell": same.cell, "pbc": same.pbc, **changes})


OTHERS = {
    "shuffled id": (structure(7), "is not the one that was labelled: atom 0 is element"),
    "another size": (structure(4), "it has 2 atoms here and 5 there"),
    "moved atom": (edited(positions=structure(3).positions + 0.1), "0.1732 Å away"),
    "other cell": (edited(cell=structure(3).cell * 1.01), "its cell differs by"),
    "other element": (edited(atomic_numbers=[1, 1, 1, 1, 1]), "atom 0 is element 1 here"),
    "molecule": (edited(pbc=[False] * 3), "it is periodic along"),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_another_structure_is_refused(store: TargetStore, other: Structure, message: str) -> None:
    """Shuffled or edited data cannot be trained on."""
    with pytest.raises(ValueError, match=message):
        store.read("structure-3", other)


# Records that no store can hold.


def test_bad_records_are_refused(store: TargetStore) -> None:
    """And nothing of their batch is kept."""
    nan = {"energy": torch.tensor(float("nan"))}
    flat = {"forces": torch.zeros(6)}
    cases = [
        (Record("new", structure(0), nan), ValueError, "'new' is not finite"),
        (Record("new", structure(0), flat), ValueError, r"forces: expected \(N=2, 3\), got \(6,\)"),
        (Record("structure-1", structure(1), {}), ValueError, "is in the store already"),
        (Record("", structure(1), {}), ValueError, "must have 1 to 500 bytes"),
        (Record("new", structure(0), {"stress": torch.zeros(6)}), KeyError, "holds no 'stress'"),
    ]
    before = content(store)
    for bad, error, message in cases:
        with pytest.raises(error, match=message):
            store.append([record(50), bad])
    assert content(store) == before


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
def test_values_that_the_store_cannot_hold_are_refused(
    store: TargetStore, values: dict[str, Any], message: str, unchecked: None
) -> None:
    before = file_contents(store.folder)["main.lmdb"]
    with pytest.raises(ValueError, match=message):
        store.append([record(50), Record("x", structure(0), values)])
    assert file_contents(store.folder)["main.lmdb"] == before


def test_positions_beyond_float32_are_refused(store: TargetStore) -> None:
    far = structure(0)
    far.positions[1, 2] = 1e9 + 0.3
    with pytest.raises(ValueError, match=r"'x': positions\[1, 2\] is 1e\+09 Å, more than can be"):
        store.append([Record("x", far, {"energy": torch.tensor(1.0)})])


def test_append_refuses_what_is_no_record(store: TargetStore, unchecked: None) -> None:
    with pytest.raises(ValueError, match="expected a Record, got float 3.0"):
        store.append([3.0])


def test_a_shard_refuses_an_id_that_it_has(store: TargetStore) -> None:
    """Also by who asks the shard itself."""
    with store.writer() as writer, pytest.raises(ValueError, match="'structure-3' is in main.lmdb"):
        writer.append({"new": b"", "structure-3": b"other"})
    assert "new" not in store
    assert store.verify() == []


# Other stores, and folders of something else.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "MACE"}, "another teacher: 'EMT', not 'MACE'"),
        ({"fingerprint": "other"}, "another fingerprint"),
        ({"dtypes": {"energy": "float64"}}, "another dtypes"),
    ],
)
def test_a_store_of_another_teacher_is_refused(
    store: TargetStore, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """One store holds one teacher's targets, on creating and on merging."""
    wanted = Manifest(**{**vars(MANIFEST), **changes})
    with pytest.raises(StoreError, match=message):
        TargetStore.create(store.folder, wanted)
    with pytest.raises(StoreError, match="was made with another"):
        store.merge([TargetStore.create(tmp_path / "other", wanted)])


def test_a_folder_without_a_readable_store_is_refused(store: TargetStore, tmp_path: Path) -> None:
    """A newer format, a folder of something else, a folder that is not there."""
    path = store.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(StoreError, match="has format 3, this version reads up to 2; update"):
        TargetStore.open(store.folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(StoreError, match="is not empty and holds no manifest"):
        TargetStore.create(tmp_path / "photos", MANIFEST)
    with pytest.raises(StoreError, match="holds no target store"):
        TargetStore.open(tmp_path / "nowhere")
    path.write_text("{")
    with pytest.raises(StoreError, match="not JSON"):
        TargetStore.open(store.folder)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    with pytest.raises(StoreError, match="is not empty"):
        TargetStore.create(tmp_path, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


def test_a_lost_manifest_is_named(store: TargetStore) -> None:
    (store.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"has lost its manifest.json, .* restore it"):
        TargetStore.open(store.folder)
    with pytest.raises(StoreError, match=r"has lost its manifest.json, .* main.lmdb"):
        TargetStore.create(store.folder, MANIFEST)


def test_verify_names_a_changed_manifest(store: TargetStore) -> None:
    """Though it can be read."""
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace("ase.calculators.emt", "ase.calculators.emx"))
    again = TargetStore.open(store.folder)
    assert again.manifest.fingerprint == "ase.calculators.emx.EMT()"
    assert "manifest.json is not what was written" in again.verify()[0]


def test_a_store_made_anew_is_not_read_from_the_old_file(store: TargetStore) -> None:
    """LMDB's handle of the removed file may still be open in this process."""
    assert "structure-3" in store
    shutil.rmtree(store.folder)
    again = TargetStore.create(store.folder, MANIFEST)
    again.append([record(20)])
    assert list(again.ids()) == ["structure-20"]


# Merging.


def test_merging_keeps_every_record_once(store: TargetStore, tmp_path: Path) -> None:
    """Shards of one store and other stores of the same teacher read as one."""
    store.append([record(10)], shard="second")
    other = TargetStore.create(tmp_path / "other", MANIFEST)
    other.append(record(index) for index in range(8, 14))
    store.merge([other])
    assert sorted(store.ids()) == sorted(f"structure-{index}" for index in range(14))
    assert store.verify() == []


def test_merging_refuses_one_id_for_two_records(store: TargetStore, tmp_path: Path) -> None:
    """Rather than keep whichever came first."""
    other = TargetStore.create(tmp_path / "other", MANIFEST)
    other.append([Record("structure-3", structure(4), record(4).values)])
    with pytest.raises(StoreError, match="'structure-3' stands for another record in"):
        store.merge([other])
    assert store.read("structure-3", structure(3)).structure_ids == ("structure-3",)


def two_stores(folder: Path) -> list[TargetStore]:
    """Return two stores, of the teachers ada and bob."""
    return [
        TargetStore.create(folder / name, Manifest(name, "f", {"energy": "float64"}))
        for name in ("ada", "bob")
    ]


def test_merging_another_teachers_store_names_its_folder(tmp_path: Path) -> None:
    ada, bob = two_stores(tmp_path)
    with pytest.raises(StoreError, match="bob was made with another teacher: 'bob', not 'ada'"):
        ada.merge([bob])


def test_the_merge_command_names_it_and_makes_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_stores(tmp_path)
    words = ["merge", str(tmp_path / "ada"), str(tmp_path / "bob"), "--into", str(tmp_path / "c")]
    assert main(words) == 2
    assert "bob was made with another teacher: 'bob', not 'ada'" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_shard_grows_beyond_its_first_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full map is doubled and the batch written again."""
    monkeypatch.setattr("kd_plugins.store._lmdb.FIRST_MAP_SIZE", 1 << 16)
    with ShardWriter(tmp_path / "small.lmdb") as writer:
        for index in range(40):
            writer.append({f"id-{index}": bytes(8000)})
    assert (tmp_path / "small.lmdb").stat().st_size > 1 << 18
