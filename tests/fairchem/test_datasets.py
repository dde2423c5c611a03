"""What a training sees is labelled by the names that it has there, whatever the data set."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import lmdb
import numpy as np
import pytest
import torch
import yaml
from torch_geometric.data import Data

from kd_plugins.cli import main
from kd_plugins.config import ConfigError
from kd_plugins.fairchem import read_datasets
from kd_plugins.store.store import TargetStore
from tests.fairchem import tiny
from tests.fairchem.test_auto_targets import automatic
from tests.fairchem.test_laws import EQV2
from tests.fairchem.test_stored_targets import TERMS, stored

Settings = dict[str, Any]


def without_ids(path: Path, numbers: range) -> Path:
    """Write slabs without sid and fid in their rows."""
    slabs = [tiny.slab(number) for number in numbers]
    for slab in slabs:
        slab.info = {}
    return tiny.write_database(path, slabs)


def with_key_value_pairs(path: Path, numbers: range) -> Path:
    """Write slabs with sid and fid as key-value pairs, which fairchem does not read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ase.db.connect(path) as database:
        for number in numbers:
            database.write(tiny.slab(number), sid=f"slab{number}", fid=3)
    np.savez(path.parent / "metadata.npz", natoms=[5] * len(numbers))
    return path


def oc20(path: Path, numbers: range, **changes: Any) -> Path:
    """Write an LMDB as OC20's: pickled graphs, with sid and fid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), subdir=False, map_size=2**24) as file, file.begin(write=True) as put:
        for place, number in enumerate(numbers):
            slab = tiny.slab(number)
            forces = slab.get_forces(apply_constraint=False)
            values = {
                "pos": torch.tensor(slab.positions, dtype=torch.float32),
                "atomic_numbers": torch.tensor(slab.numbers, dtype=torch.float32),
                "cell": torch.tensor(slab.cell.array[None], dtype=torch.float32),
                "natoms": len(slab),
                "tags": torch.tensor(slab.get_tags()),
                "fixed": torch.tensor((slab.get_tags() == 0).astype(np.float32)),
                "energy": float(slab.get_potential_energy()),
                "forces": torch.tensor(forces, dtype=torch.float32),
                "sid": 7000 + number,
                "fid": 2,
            }
            put.put(f"{place}".encode(), pickle.dumps(Data(**{**values, **changes})))
        put.put(b"length", pickle.dumps(len(numbers)))
    return path


def yaml_of(folder: Path, settings: Settings) -> Path:
    """Write what `label --fairchem` reads of a run."""
    path = folder / "train.yml"
    path.write_text(yaml.safe_dump({"dataset": settings["dataset"], "task": {}}))
    return path


def label(source: Path, teacher: Path, store: Path, *words: str) -> int:
    """Label as the user types it."""
    chosen = ["--teacher", "eqv2", f"checkpoint={teacher}", "weights=raw", "--store", str(store)]
    kept = ["energy", "forces", "atomic_energies", "node_embeddings", "equivariant_embeddings"]
    return main(["label", "--fairchem", str(source), *words, *chosen, "--quantities", *kept])


def both(settings: Settings, train: Path, val: Path | None, **changes: Any) -> None:
    """Have a run read other data sets."""
    settings["dataset"]["train"].update(src=str(train), **changes)
    settings["dataset"].pop("val")
    if val is not None:
        settings["dataset"]["val"] = {"src": str(val)}


def run_on_targets(settings: Settings, teacher: Path, folder: Path, *words: str) -> list[str]:
    """Label by the YAML of a run, train on it, and return the ids in the store."""
    store = folder / "targets"
    assert label(yaml_of(folder, settings), teacher, store, *words) == 0
    settings.update(trainer=EQV2, task=stored(store))
    tiny.run(settings)
    return sorted(TargetStore.open(store).ids())


@pytest.mark.parametrize("write", [without_ids, with_key_value_pairs])
def test_a_database_of_which_fairchem_counts_the_rows(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    """Without sid and fid in the data of its rows; validated on slabs that have them."""
    (tmp_path / "bare").mkdir()
    settings = make_config()
    bare = write(tmp_path / "bare" / "train.db", range(6))
    settings["dataset"]["train"]["src"] = str(bare)
    ids = run_on_targets(settings, teacher, tmp_path)
    assert ids == sorted([f"{row}/0" for row in range(6)] + [f"slab{n}/0" for n in (6, 7, 8)])


def test_an_lmdb_of_pickled_graphs(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """A file to train on and a folder to validate on, as OC20 has them."""
    settings = make_config()
    train = oc20(tmp_path / "train" / "data.lmdb", range(6))
    val = oc20(tmp_path / "val" / "data.0000.lmdb", range(6, 9)).parent
    both(settings, train, val, format="lmdb")
    settings["dataset"]["train"].pop("a2g_args")
    ids = run_on_targets(settings, teacher, tmp_path, "--trust-pickle")
    assert ids == [f"{7000 + number}/2" for number in range(9)]


def test_pickles_are_opened_only_if_trusted(
    make_config: Callable[..., Settings],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither an LMDB nor sizes that hide one; the YAML can say that each is trusted."""
    settings = make_config()
    train = oc20(tmp_path / "train" / "data.lmdb", range(2))
    both(settings, train, oc20(tmp_path / "val" / "data.lmdb", range(2, 4)), format="lmdb")
    settings["dataset"]["train"]["trust_pickle"] = True
    assert label(yaml_of(tmp_path, settings), teacher, tmp_path / "store") == 2
    assert "dataset.val has format lmdb, whose structures are pickles" in capsys.readouterr().err
    settings["dataset"]["val"]["trust_pickle"] = True
    assert len(read_datasets(yaml_of(tmp_path, settings))) == 4
    assert not (tmp_path / "store").exists()

    (tmp_path / "plain").mkdir()
    database = without_ids(tmp_path / "plain" / "train.db", range(2))
    assert len(read_datasets(database)) == 2
    np.savez(database.parent / "metadata.npz", natoms=np.array([5, 5], dtype=object))
    with pytest.raises(ConfigError, match=r"metadata.npz is no npz of plain numbers.*trust_pickle"):
        read_datasets(database)


def test_data_sets_without_a_yaml(tmp_path: Path) -> None:
    """Are read as fairchem would, with its ids; what is no label is not needed."""
    (tmp_path / "bare").mkdir()
    slabs = [tiny.slab(number) for number in range(2)]
    for slab in slabs:
        slab.info, slab.calc = {}, None
    bare = tiny.write_database(tmp_path / "bare" / "train.db", slabs)
    graphs = oc20(tmp_path / "lmdb" / "data.lmdb", range(2, 4))
    found = read_datasets([bare, graphs], trust_pickle=True)
    assert [frame.structure_id for frame in found] == ["0/0", "1/0", "7002/2", "7003/2"]
    assert len(found) == 4


def test_settings_of_the_split_are_the_trainers(
    make_config: Callable[..., Settings], tmp_path: Path
) -> None:
    """`first_n`, which validation inherits, and `train_split_settings`, which it does not."""
    settings = make_config()
    settings["dataset"]["train"]["train_split_settings"] = {"first_n": 4}
    found = read_datasets(yaml_of(tmp_path, settings))
    assert sorted(frame.structure_id for frame in found) == sorted(
        f"slab{number}/0" for number in (0, 1, 2, 3, 6, 7, 8)
    )


def two_without_ids(settings: Settings, folder: Path) -> None:
    """Have fairchem count the rows of both data sets."""
    for name in ("train", "val"):
        (folder / name).mkdir()
    train = without_ids(folder / "train" / "a.db", range(6))
    both(settings, train, without_ids(folder / "val" / "b.db", range(6, 9)), format="ase_db")


SHARED = r"dataset.train\[0\] and dataset.val\[0\] are both called '\d/0' and are not the same: "


@pytest.mark.parametrize("kind", ["auto", "store"])
def test_ids_are_checked_across_data_sets_before_the_first_step(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path, tmp_path: Path, kind: str
) -> None:
    """A training that would stop at its first validation, after hours, does not begin."""
    settings = make_config(trainer=EQV2)
    two_without_ids(settings, tmp_path)
    settings["task"] = automatic(teacher) if kind == "auto" else stored(labelled, TERMS)
    for name in ("train", "val"):
        settings["dataset"][name]["no_shuffle"] = True
    with pytest.raises(ConfigError, match=SHARED + r".*db.update\(id, data=\{'sid': "):
        tiny.run(settings)
    assert not list(Path(settings["run_dir"]).glob("checkpoints/*/*checkpoint*"))


def test_ids_are_checked_before_labelling(
    make_config: Callable[..., Settings],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not after all of the first data set was labelled."""
    settings = make_config()
    two_without_ids(settings, tmp_path)
    assert label(yaml_of(tmp_path, settings), teacher, tmp_path / "store") == 2
    assert "are both called '0/0' and are not the same" in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("*.lmdb"))


def test_structures_that_a_store_lacks_are_named_with_the_command(
    make_config: Callable[..., Settings], labelled: Path, tmp_path: Path
) -> None:
    """Which is another than the one that named them otherwise."""
    settings = make_config(trainer=EQV2, task=stored(labelled))
    with_key_value_pairs(tmp_path / "pairs" / "train.db", range(6))
    settings["dataset"]["train"]["src"] = str(tmp_path / "pairs" / "train.db")
    with pytest.raises(ConfigError, match=r"kd-plugins label --fairchem X.yml --teacher eqv2 chec"):
        tiny.run(settings)


REFUSED: dict[str, tuple[Callable[[Settings, Path], Any], str]] = {
    "no data set": (lambda s, p: s["dataset"].clear(), "neither dataset.train nor dataset.val has"),
    "no mapping": (lambda s, p: s.update(dataset=3), "dataset: expected a mapping with train"),
    "no such file": (
        lambda s, p: s["dataset"]["val"].update(src="nowhere.db"),
        r"dataset.val.src: there is no 'nowhere.db' \(paths count from ",
    ),
    "a src that is no path": (
        lambda s, p: s["dataset"]["train"].update(src=3),
        "dataset.train.src: expected a path or a list of paths, got 3",
    ),
    "an unknown format": (
        lambda s, p: s["dataset"]["train"].update(format="ase_bd", trust_pickle=True),
        "dataset.train cannot be opened: .*ase_bd",
    ),
    "a file that is no database": (
        lambda s, p: s["dataset"]["train"].update(src=str((p / "a.db", (p / "a.db").touch())[0])),
        "dataset.train cannot be opened",
    ),
    "more than there is": (
        lambda s, p: s["dataset"]["train"].update(first_n=99),
        "dataset.train cannot be opened: ValueError: Cannot take 99",
    ),
    "a transform": (
        lambda s, p: s["dataset"]["train"]["transforms"].update(random_rotation={}),
        "dataset.train.transforms.random_rotation may change the structures",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(
    make_config: Callable[..., Settings],
    tmp_path: Path,
    change: Callable[[Settings, Path], Any],
    message: str,
) -> None:
    """One error that names the key, before a teacher predicts."""
    settings = make_config()
    change(settings, tmp_path)
    with pytest.raises(ConfigError, match=message):
        read_datasets(yaml_of(tmp_path, settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no YAML"),
        ("- 1", "expected a mapping"),
        ("includes: [nowhere.yml]", "what it includes cannot be read: Cannot find .* nowhere.yml"),
    ],
)
def test_a_yaml_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    """Is named."""
    (tmp_path / "a.yml").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yml.*({message})"):
        read_datasets(tmp_path / "a.yml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no structures to label"),
        (["a.xyz", "--fairchem", "b.yml"], "leave out 'a.xyz'"),
        (["--fairchem", "b.yml", "--ids", "path"], "leave out --ids"),
        (["a.xyz", "--trust-pickle"], "--trust-pickle is for data sets of fairchem"),
        (["--fairchem", "nowhere.yml"], "nowhere.yml: no such file"),
    ],
)
def test_the_command_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Says what does not go together."""
    store = tmp_path / "store"
    assert main(["label", *words, "--teacher", "emt", "--store", str(store)]) == 2
    assert message in capsys.readouterr().err
    assert not store.exists()
