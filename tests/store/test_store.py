"""A target store keeps what was committed, and gives it to the right structure only."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from kd_plugins.store import StoreError
from kd_plugins.store._lmdb import ShardWriter
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record, pack
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure

MANIFEST = Manifest(
    "EMT",
    "ase.calculators.emt.EMT()",
    {"energy": "float64", "forces": "float32", "node_embeddings": "float16"},
    versions={"ase": "3.29.0"},
)


def structure(index: int) -> Structure:
    """Return a random structure of 2 to 5 atoms in a tilted cell."""
    generator = np.random.default_rng(index)
    cell = 5.0 * np.eye(3) + generator.normal(size=(3, 3)) * 0.3
    n_atoms = 2 + index % 4
    positions = generator.uniform(size=(n_atoms, 3)) @ cell
    return Structure(generator.integers(1, 90, n_atoms), positions, cell, [True, True, True])


def record(index: int) -> Record:
    """Return a record that is a pure function of its index."""
    generator = torch.Generator().manual_seed(index)
    shape = structure(index)
    values = {
        "energy": torch.randn((), generator=generator, dtype=torch.float64),
        "forces": torch.randn(shape.n_atoms, 3, generator=generator),
        "node_embeddings": torch.randn(shape.n_atoms, 4, generator=generator),
    }
    return Record(f"structure-{index}", shape, values)


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    """A store of ten structures."""
    store = TargetStore.create(tmp_path / "store", MANIFEST)
    store.append(record(index) for index in range(10))
    return store


def content(store: TargetStore) -> dict[str, bytes]:
    """Return id to the packed record."""
    return {name: pack(store.record(name), store.manifest) for name in store.ids()}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "MACE"}, "another teacher: 'EMT', not 'MACE'"),
        ({"fingerprint": "other"}, "another fingerprint"),
        ({"dtypes": {"energy": "float64"}}, "another dtypes"),
    ],
)
def test_another_store_is_refused(
    store: TargetStore, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """One store holds one teacher's targets, on creating and on merging."""
    wanted = Manifest(**{**vars(MANIFEST), **changes})
    with pytest.raises(StoreError, match=message):
        TargetStore.create(store.folder, wanted)
    with pytest.raises(StoreError, match="was made with another"):
        store.merge([TargetStore.create(tmp_path / "other", wanted)])


def test_what_is_no_store_is_refused(store: TargetStore, tmp_path: Path) -> None:
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


def test_merging_keeps_every_record_once(store: TargetStore, tmp_path: Path) -> None:
    """Shards of one store and other stores of the same teacher read as one."""
    store.append([record(10)], shard="second")
    other = TargetStore.create(tmp_path / "other", MANIFEST)
    other.append(record(index) for index in range(8, 14))
    store.merge([other])
    assert sorted(store.ids()) == sorted(f"structure-{index}" for index in range(14))
    assert store.verify() == []


def in_another_process(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python code on a store elsewhere, where nothing of this process is open."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )


VERIFY = r"""
import sys
from kd_plugins.store.store import TargetStore
print(*TargetStore.open(sys.argv[1]).verify(), sep="\n")
"""


def test_a_flipped_byte_is_found(store: TargetStore) -> None:
    """The record is named, the others stay readable."""
    path = store.folder / "main.lmdb"
    forces = record(4).values["forces"].numpy().tobytes()
    flipped = bytes([forces[0] ^ 1]) + forces[1:]
    path.write_bytes(path.read_bytes().replace(forces, flipped))  # stale pages hold copies, too
    found = in_another_process(VERIFY, store.folder)
    assert "structure-4: main.lmdb: the record of 'structure-4' is damaged" in found.stdout
    assert found.stdout.count("damaged") == 1


def test_a_truncated_shard_is_refused(store: TargetStore) -> None:
    """With a sentence instead of a crash."""
    path = store.folder / "main.lmdb"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    found = in_another_process(VERIFY, store.folder)
    assert "main.lmdb is damaged: it is cut short" in found.stdout.splitlines()[-1]


def test_two_writers_on_one_shard(store: TargetStore) -> None:
    """The second is refused; another shard is fine."""
    code = """
import sys
from pathlib import Path
from kd_plugins.store._lmdb import ShardWriter
ShardWriter(Path(sys.argv[1]))
"""
    with store.writer():
        refused = in_another_process(code, store.folder / "main.lmdb")
        assert "being written by another process" in refused.stderr.splitlines()[-1]
        assert in_another_process(code, store.folder / "second.lmdb").returncode == 0
    assert in_another_process(code, store.folder / "main.lmdb").returncode == 0


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """What was committed before the disk filled up is read afterwards."""
    code = """
import resource, signal, sys
from tests.store.test_store import MANIFEST, record
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
    """Append what is missing, a batch at a time, and tell which batches are committed."""
    store = TargetStore.create(folder, MANIFEST)
    missing = [index for index in range(TOTAL) if f"structure-{index}" not in store]
    with store.writer() as writer:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            writer.append(store.pack(record(index) for index in batch))
            os.write(pipe, bytes(batch))


def killed_after(seconds: float, folder: Path) -> set[str]:
    """Fork a writer, kill it after some time, and return the ids that it said it had committed."""
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
    """Tell how long a writer takes here, now, for its first batch."""
    start = time.monotonic()
    store = TargetStore.create(folder, MANIFEST)
    store.append(record(index) for index in range(BATCH))
    return time.monotonic() - start


@pytest.mark.parametrize("seed", range(int(os.environ.get("KD_KILLS", "200")) // 20))
def test_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
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


class Energies(Dataset):
    """Reads energies in a data loader's workers."""

    def __init__(self, store: TargetStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        return self.store[f"structure-{index}"].values["energy"].item()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_reading_in_many_workers(store: TargetStore, context: str) -> None:
    """An open store may be handed to forked and to spawned workers."""
    expected = [store[f"structure-{index}"].values["energy"].item() for index in range(10)]
    loader = DataLoader(Energies(store), num_workers=2, multiprocessing_context=context)
    assert [float(energy) for energy in loader] == expected


def test_a_reader_sees_what_another_process_appends(store: TargetStore) -> None:
    """Also when the file has outgrown the reader's map."""
    code = """
import sys
from tests.store.test_store import record
from kd_plugins.store.store import TargetStore
TargetStore.open(sys.argv[1]).append(record(index) for index in range(10, 20))
"""
    done = in_another_process(code, store.folder)
    assert done.returncode == 0, done.stderr
    assert "structure-19" in store


def test_a_shard_grows_beyond_its_first_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full map is doubled and the batch written again."""
    monkeypatch.setattr("kd_plugins.store._lmdb.FIRST_MAP_SIZE", 1 << 16)
    with ShardWriter(tmp_path / "small.lmdb") as writer:
        for index in range(40):
            writer.append({f"id-{index}": bytes(8000)})
    assert (tmp_path / "small.lmdb").stat().st_size > 1 << 18


def test_merging_refuses_one_id_for_two_records(store: TargetStore, tmp_path: Path) -> None:
    """Rather than keep whichever came first."""
    other = TargetStore.create(tmp_path / "other", MANIFEST)
    other.append([Record("structure-3", structure(4), record(4).values)])
    with pytest.raises(StoreError, match="'structure-3' stands for another record in"):
        store.merge([other])
    assert store.read("structure-3", structure(3)).structure_ids == ("structure-3",)
