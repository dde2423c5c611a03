"""`targets: auto`: what a run lacks is labelled before its first step, and nothing else changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch.multiprocessing as mp
from ase.calculators.singlepoint import SinglePointCalculator
from torch.distributed.elastic.utils.distributed import get_free_port

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.batch_teacher import EqV2Teacher
from kd_plugins.fairchem.teacher import GRAPH_SETTINGS
from kd_plugins.store.store import TargetStore
from kd_plugins.teachers import load_teacher
from tests.fairchem import tiny
from tests.fairchem.stopping import Killed, StoppingTrainer
from tests.fairchem.test_laws import DROPOUT, EQV2, assert_same, equal, without_names
from tests.fairchem.test_refusals import block
from tests.fairchem.test_stored_targets import (
    QUANTITIES,
    TERMS,
    another_database,
    edited,
    move,
    stored,
)

Settings = dict[str, Any]
ALL = [f"slab{index}/0" for index in range(9)]


def automatic(teacher: Path, folder: Path | None = None, **changes: Any) -> Settings:
    """Return the block of a distillation that labels a store, in its own folder or another."""
    targets = "auto" if folder is None else {"auto": str(folder)}
    return tiny.distill(teacher, TERMS, targets=targets, **changes)


def untrained(settings: Settings) -> Settings:
    """Return a run that only sets up."""
    settings["optim"]["max_epochs"] = 0
    return settings


def content(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return all numbers of a store."""
    store = TargetStore.open(folder)
    return {
        its_id: {name: value.flatten().tolist() for name, value in store[its_id].values.items()}
        for its_id in sorted(store.ids())
    }


@pytest.fixture(scope="module")
def labelled_by_a_run(
    teacher: Path, databases: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store that a run has labelled beside its checkpoints."""
    folder = tmp_path_factory.mktemp("auto")
    settings = tiny.config(folder, *databases, trainer=EQV2, timestamp_id="auto")
    tiny.run(untrained({**settings, "task": automatic(teacher)}))
    return folder / "checkpoints" / "auto" / "targets"


def test_labelled_targets_equal_the_teachers_predictions(
    teacher: Path, labelled_by_a_run: Path
) -> None:
    """Of every structure to train and validate on, bit for bit."""
    store = TargetStore.open(labelled_by_a_run)
    assert sorted(store.ids()) == ALL
    assert store.verify() == []
    assert store.manifest.dtypes == dict.fromkeys(QUANTITIES, "float32")

    named = load_teacher(store.manifest.teacher)
    assert named.fingerprint == store.manifest.fingerprint
    for index in range(9):
        (expected,) = named.predict([tiny.slab(index)], QUANTITIES)
        for name, value in store[f"slab{index}/0"].values.items():
            same = value.reshape(expected[name].shape).numpy() == np.float32(expected[name])
            assert same.all(), name


def test_two_starts_give_the_same_store(
    make_config: Callable[..., Settings], teacher: Path, labelled_by_a_run: Path, tmp_path: Path
) -> None:
    """Also one that was killed when it had labelled a part."""
    parts = TargetStore.open(labelled_by_a_run)
    begun = TargetStore.create(tmp_path / "begun", parts.manifest)
    begun.append([parts.record(its_id) for its_id in ALL[2:5]])

    settings = untrained(make_config(trainer=EQV2))
    for folder in (tmp_path / "new", tmp_path / "begun"):
        settings.update(task=automatic(teacher, folder), timestamp_id=folder.name)
        tiny.run(settings)
        assert content(folder) == content(labelled_by_a_run)


def test_a_second_start_labels_nothing(
    make_config: Callable[..., Settings],
    teacher: Path,
    labelled_by_a_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the teacher predicts again")

    monkeypatch.setattr(EqV2Teacher, "predict", fail)
    before = content(labelled_by_a_run)
    tiny.run(untrained(make_config(trainer=EQV2, task=automatic(teacher, labelled_by_a_run))))
    assert content(labelled_by_a_run) == before


def test_training_equals_that_on_a_labelled_store(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path, tmp_path: Path
) -> None:
    """Which `kd-plugins label` made of the same teacher."""
    settings = make_config(trainer=EQV2, task=stored(labelled), timestamp_id="stored")
    expected = tiny.run(settings, tiny.parameters)
    settings.update(task=automatic(teacher, tmp_path / "targets"), timestamp_id="auto")
    assert equal(tiny.run(settings, tiny.parameters), expected)


def test_zero_weights_are_the_plain_host(
    make_config: Callable[..., Settings], teacher: Path
) -> None:
    """Labelling takes no random number of the run's."""
    settings = make_config(model=tiny.model(**DROPOUT))
    plain = tiny.run(settings, tiny.parameters)
    task = tiny.distill(teacher, tiny.without_weights(TERMS), targets="auto")
    settings.update(trainer=EQV2, task=task, timestamp_id="auto")
    assert equal(tiny.run(settings, tiny.parameters), plain)


@pytest.mark.parametrize(("kind", "stop_at"), [("stored", 3), ("auto", 4)])
def test_resumed_training_equals_uninterrupted(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path, kind: str, stop_at: int
) -> None:
    """Killed ahead of the last checkpoint in the first epoch, or in the second: the same bits."""
    task = stored(labelled) if kind == "stored" else automatic(teacher)
    settings = make_config(
        task=task, model=tiny.model(**DROPOUT), trainer=EQV2, timestamp_id="whole"
    )
    settings["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=2)
    settings["dataset"].pop("val")
    tiny.run(settings)

    settings["timestamp_id"] = "stopped"
    StoppingTrainer.stop_at = stop_at
    with pytest.raises(Killed):
        tiny.run({**settings, "trainer": "tests.fairchem.stopping.StoppingTrainer"})
    tiny.run(settings)

    folder = Path(settings["run_dir"]) / "checkpoints"
    for name in ("checkpoint.pt", "kd_checkpoint.pt"):
        ours, theirs = (tiny.load(folder / run / name) for run in ("stopped", "whole"))
        assert_same(without_names(ours), without_names(theirs), name)
    if kind == "auto":
        assert content(folder / "stopped" / "targets") == content(folder / "whole" / "targets")


def of_version_0_1_0(source: Path, folder: Path, teacher: Path, **edges: Any) -> None:
    """Write a part of a store as version 0.1.0 did while it trained."""
    model = load_teacher(tiny.teacher_name(teacher)).model
    settings = {name: getattr(model.backbone, name) for name in GRAPH_SETTINGS} | edges
    text = " ".join(f"{name}={value}" for name, value in settings.items())
    held = TargetStore.open(source)
    manifest = replace(
        held.manifest, teacher="eqv2", fingerprint=f"EquiformerV2 {model.fingerprint} {text}"
    )
    TargetStore.create(folder, manifest).append([held.record(its_id) for its_id in ALL[:4]])


def test_a_store_of_version_0_1_0_is_continued(
    make_config: Callable[..., Settings], teacher: Path, labelled_by_a_run: Path, tmp_path: Path
) -> None:
    of_version_0_1_0(labelled_by_a_run, tmp_path / "old", teacher)
    tiny.run(untrained(make_config(trainer=EQV2, task=automatic(teacher, tmp_path / "old"))))
    assert content(tmp_path / "old") == content(labelled_by_a_run)
    assert TargetStore.open(tmp_path / "old").manifest.teacher == "eqv2"


BAD: dict[str, tuple[Callable[[Settings, Path], Any], str]] = {
    "no teacher": (
        lambda s, p: block(s).pop("teacher"),
        "targets: auto needs a teacher; give teacher.checkpoint as well",
    ),
    "another key": (
        lambda s, p: block(s).update(targets={"automatic": "x"}),
        r"targets: expected a folder, auto or \{auto: FOLDER\}, got \{'automatic': 'x'\}",
    ),
    "hessian": (
        lambda s, p: block(s)["terms"].update(hessian=tiny.ALL_TERMS["hessian"]),
        "terms.hessian compares force derivatives .* which no store can hold",
    ),
    "a transform": (
        lambda s, p: s["dataset"]["train"]["transforms"].update(random_rotation={}),
        "dataset.train.transforms.random_rotation may change the structures",
    ),
    "one id for two structures": (
        another_database(2, lambda slab: slab.info.update(sid="slab1")),
        r"dataset.train\[\d\] and dataset.train\[\d\] are both called 'slab1/0' and are not the "
        r"same: atom",
    ),
    "a structure that was moved": (
        another_database(1, move),
        "structure 'slab1/0' is not the one that was labelled: atom 4",
    ),
    "other weights": (
        lambda s, p: block(s)["teacher"].update(weights="ema"),
        "task.distill.targets: .* was made with another teacher: .*weights=raw.*weights=ema",
    ),
    "other quantities": (
        lambda s, p: block(s)["terms"].pop("atomic_energies"),
        "task.distill.targets: .* was made with another dtypes: ",
    ),
    "another precision": (
        lambda s, p: edited(s, p, **{'"energy": "float32"': '"energy": "float64"'}),
        "task.distill.targets: .* was made with another dtypes: ",
    ),
    "a folder of something else": (
        lambda s, p: block(s).update(targets={"auto": str(p.parent)}),
        "task.distill.targets: .* is not empty and holds no manifest.json",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_refusals(
    make_config: Callable[..., Settings],
    teacher: Path,
    labelled_by_a_run: Path,
    tmp_path: Path,
    change: Callable[[Settings, Path], Any],
    message: str,
) -> None:
    """One error with its remedy, before anything is trained or saved."""
    folder = tmp_path / "targets"
    shutil.copytree(labelled_by_a_run, folder)
    settings = make_config(trainer=EQV2, task=automatic(teacher, folder))
    change(settings, tmp_path)
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)
    assert not list(Path(settings["run_dir"]).glob("checkpoints/*/*checkpoint*"))


def test_other_edges_are_refused(
    make_config: Callable[..., Settings], teacher: Path, labelled_by_a_run: Path, tmp_path: Path
) -> None:
    """Of a store of version 0.1.0, which has the settings of its edges in its fingerprint."""
    of_version_0_1_0(labelled_by_a_run, tmp_path / "old", teacher, max_neighbors=20)
    settings = make_config(trainer=EQV2, task=automatic(teacher, tmp_path / "old"))
    with pytest.raises(ConfigError, match="task.distill.targets: .* was made with another teacher"):
        tiny.run(settings)


def test_a_structure_that_cannot_be_labelled_is_named(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    alone = ase.Atoms("Cu", cell=[12.0] * 3, pbc=True)
    alone.calc = SinglePointCalculator(alone, energy=1.0, forces=np.zeros((1, 3)))
    alone.info, slabs = {"sid": "alone", "fid": 0}, [tiny.slab(index) for index in range(3)]
    settings = make_config(trainer=EQV2, task=automatic(teacher))
    (tmp_path / "data").mkdir()
    path = tiny.write_database(tmp_path / "data" / "train.db", [*slabs, alone])
    settings["dataset"]["train"]["src"] = str(path)
    settings["dataset"].pop("val")
    with pytest.raises(ConfigError, match=r"cannot label 1 structures: alone/0 \(.*no atom of"):
        tiny.run(settings)


def rank_main(rank: int, port: int, settings: Settings) -> None:
    """Run one of two ranks."""
    from kd_plugins.fairchem import compat

    compat.install()
    tiny.run_rank(rank, port, settings)


@pytest.mark.slow
def test_two_ranks_share_one_store(
    make_config: Callable[..., Settings], teacher: Path, labelled_by_a_run: Path, tmp_path: Path
) -> None:
    """The first labels while the second waits, and both train."""
    folder = tmp_path / "targets"
    settings = make_config(trainer=EQV2, task=automatic(teacher, folder), world_size=2)
    mp.spawn(rank_main, (get_free_port(), settings), nprocs=2)
    assert content(folder) == content(labelled_by_a_run)
