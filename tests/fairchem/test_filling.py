"""`targets: auto`: the teacher is asked once for each structure, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch.distributed.elastic.utils.distributed import get_free_port

from kd_plugins.config import ConfigError
from kd_plugins.store.store import TargetStore
from tests.fairchem import tiny
from tests.fairchem.stopping import Killed, StoppingTrainer
from tests.fairchem.test_cached import QUANTITIES, TERMS, another_database, cached, edited, move
from tests.fairchem.test_laws import DROPOUT, EQV2, assert_same, equal, first_batch, without_names
from tests.fairchem.test_ranks import collate
from tests.fairchem.test_refusals import block

Settings = dict[str, Any]
ALL = [f"slab{index}/0" for index in range(9)]


def filling(teacher: Path, folder: Path | None = None, **changes: Any) -> Settings:
    """Return the block of a distillation that fills a store, in its own folder or another."""
    targets = "auto" if folder is None else {"auto": str(folder)}
    return tiny.distill(teacher, TERMS, targets=targets, **changes)


def test_the_first_epoch_is_the_online_one(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """To the bit, the validation included; then the store is whole, and lies beside the run."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, TERMS), timestamp_id="online")
    online = tiny.run(settings, tiny.parameters)
    settings.update(task=filling(teacher), timestamp_id="auto")
    assert equal(tiny.run(settings, tiny.parameters), online)
    store = TargetStore.open(tmp_path / "run" / "checkpoints" / "auto" / "targets")
    assert sorted(store.ids()) == ALL
    assert store.verify() == []
    assert store.manifest.dtypes == dict.fromkeys(QUANTITIES, "float32")


def test_then_the_store_alone_speaks(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """A run on a full store equals one without a teacher, and never hears its own."""
    folder = tmp_path / "targets"
    settings = make_config(trainer=EQV2, task=filling(teacher, folder), timestamp_id="first")
    tiny.run(settings)
    before = content(folder)
    settings["optim"]["num_workers"] = 1
    settings.update(timestamp_id="second")

    def of_a_silent_teacher(trainer: Any) -> dict[str, torch.Tensor]:
        batch = first_batch(trainer)
        said = trainer.distiller.teacher(batch).values
        for parameter in trainer.distiller.teacher.online.model.parameters():
            parameter.fill_(float("nan"))
        again = trainer.distiller.teacher(batch).values
        assert equal(dict(again), dict(said))
        return tiny.parameters(trainer)

    second = tiny.run(settings, of_a_silent_teacher)
    settings.update(task=cached(folder), timestamp_id="third")
    assert equal(tiny.run(settings, tiny.parameters), second)
    assert content(folder) == before


def content(folder: Path) -> dict[str, list[float]]:
    """Return all numbers of a store."""
    store = TargetStore.open(folder)
    return {name: store[name].values["forces"].flatten().tolist() for name in store.ids()}


def test_only_what_is_missing_is_asked(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """Of a batch that the store holds in part, the rest alone; what comes twice, once."""
    settings = make_config(trainer=EQV2, task=filling(teacher, tmp_path / "targets"))
    settings["optim"]["max_epochs"] = 0

    def compare(trainer: Any) -> None:
        teaching = trainer.distiller.teacher
        known = teaching(collate(trainer, [0, 2])).values
        torch.manual_seed(5)
        alone = teaching.online(collate(trainer, [1])).values
        torch.manual_seed(5)
        mixed = teaching(collate(trainer, [0, 1, 2])).values
        assert torch.equal(mixed["energy"][[0, 2]], known["energy"])
        assert torch.equal(mixed["energy"][[1]], alone["energy"])
        assert torch.equal(mixed["node_embeddings"][5:10], alone["node_embeddings"])
        twice = teaching(collate(trainer, [3, 3])).values["energy"]
        assert twice[0] == twice[1]
        assert len(teaching.cached.store) == 4

    tiny.run(settings, compare)


@pytest.mark.parametrize(
    ("kind", "stop_at"), [("store", 3), ("auto", 2), ("auto", 4)], ids=["store", "first", "second"]
)
def test_resume_equals_uninterrupted(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path, kind: str, stop_at: int
) -> None:
    """Killed in the first epoch, ahead of the last checkpoint, or in the second: the same bits."""
    settings = make_config(
        task=filling(teacher), model=tiny.model(**DROPOUT), trainer=EQV2, timestamp_id="whole"
    )
    if kind == "store":
        tiny.run({**settings, "task": filling(teacher, tmp_path / "targets")})
        settings.update(task=cached(tmp_path / "targets"), timestamp_id="again")
    settings["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=2)
    settings["dataset"].pop("val")
    tiny.run(settings)
    whole, settings["timestamp_id"] = settings["timestamp_id"], "stopped"
    StoppingTrainer.stop_at = stop_at
    with pytest.raises(Killed):
        tiny.run({**settings, "trainer": "tests.fairchem.stopping.StoppingTrainer"})
    tiny.run(settings)
    folder = Path(settings["run_dir"]) / "checkpoints"
    for name in ("checkpoint.pt", "kd_checkpoint.pt"):
        ours, theirs = (tiny.load(folder / run / name) for run in ("stopped", whole))
        assert_same(without_names(ours), without_names(theirs), name)
    if kind == "auto":
        assert content(folder / "stopped" / "targets") == content(folder / whole / "targets")


BAD: dict[str, tuple[Callable[[Settings, Path], Any], str]] = {
    "no teacher": (
        lambda s, p: block(s).pop("teacher"),
        "targets: auto asks a teacher; give teacher.checkpoint as well",
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
        "task.distill.targets: .* was made with another fingerprint: 'EquiformerV2 ",
    ),
    "other quantities": (
        lambda s, p: block(s)["terms"].pop("atomic_energies"),
        "task.distill.targets: .* was made with another dtypes: ",
    ),
    "another precision": (
        lambda s, p: edited(s, p, **{'"energy": "float32"': '"energy": "float64"'}),
        "task.distill.targets: .* was made with another dtypes: ",
    ),
    "other edges": (
        lambda s, p: edited(s, p, **{"max_neighbors=12": "max_neighbors=20"}),
        "another fingerprint: .*max_neighbors=20.*, not .*max_neighbors=12",
    ),
    "a folder of something else": (
        lambda s, p: block(s).update(targets={"auto": str(p.parent)}),
        "task.distill.targets: .* is not empty and holds no manifest.json",
    ),
}


@pytest.fixture(scope="module")
def filled(teacher: Path, databases: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that a run has filled."""
    folder = tmp_path_factory.mktemp("filled")
    settings = tiny.config(folder, *databases, trainer=EQV2)
    tiny.run({**settings, "task": filling(teacher, folder / "targets")})
    return folder / "targets"


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_refused(
    make_config: Callable[..., Settings],
    teacher: Path,
    filled: Path,
    tmp_path: Path,
    change: Callable[[Settings, Path], Any],
    message: str,
) -> None:
    """One error that says what to do, before anything is trained or saved."""
    settings = make_config(trainer=EQV2, task=filling(teacher, filled))
    change(settings, tmp_path)
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)
    assert not list(Path(settings["run_dir"]).glob("checkpoints/*/*checkpoint*"))


def rank_main(rank: int, port: int, settings: Settings) -> None:
    """Run one of two ranks."""
    from kd_plugins.fairchem import compat

    compat.install()
    tiny.run_rank(rank, port, settings)


@pytest.mark.slow
def test_two_ranks_fill_one_store(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """Each structure is kept once, also those with which the sampler fills the last batch up."""
    folder = tmp_path / "targets"
    settings = make_config(trainer=EQV2, task=filling(teacher, folder), world_size=2)
    mp.spawn(rank_main, (get_free_port(), settings), nprocs=2)
    store = TargetStore.open(folder)
    assert sorted(store.ids()) == ALL
    assert store.verify() == []
