"""Structures that only the teacher labels: no label reaches a weight, every target does."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from fairchem.core.trainers import OCPTrainer
from torch_geometric.data import Batch

from kd_plugins.cli import main
from kd_plugins.config import ConfigError
from kd_plugins.fairchem.unlabelled import note_labelled
from kd_plugins.store.store import TargetStore
from tests.fairchem import tiny
from tests.fairchem.stopping import Killed, StoppingTrainer
from tests.fairchem.test_laws import EQV2, assert_same, without_names
from tests.fairchem.test_stored_targets import stored

Settings = dict[str, Any]
TERMS = {name: tiny.ALL_TERMS[name] for name in ("energy", "forces", "n2n")}
LABELLED = 2
"""Slabs of the training's database that keep their labels; the others stand in the pool."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slabs whose labels were taken away."""
    slabs = [tiny.slab(index) for index in range(LABELLED, 6)]
    for slab in slabs:
        slab.calc = None
    return tiny.write_database(tmp_path_factory.mktemp("pool") / "pool.db", slabs)


@pytest.fixture
def mixed(
    make_config: Callable[..., Settings], labelled: Path, pool: Path
) -> Callable[..., Settings]:
    """Return a run on two slabs with labels and four without, with targets of all from a store."""

    def config(**changes: Any) -> Settings:
        settings = make_config(**{"trainer": EQV2, "task": stored(labelled, TERMS), **changes})
        settings["dataset"]["train"]["first_n"] = LABELLED
        settings["dataset"]["unlabelled"] = {"src": str(pool)}
        return settings

    return config


def chosen_batch(trainer: Any, indices: list[int]) -> Batch:
    """Return a batch of chosen structures, as the loader makes it."""
    return note_labelled(trainer.collater([trainer.train_dataset[index] for index in indices]))


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5], [4, 1, 3]])
def test_fairchems_loss_and_metrics_are_of_the_labelled_structures(
    mixed: Callable[..., Settings], indices: list[int]
) -> None:
    """As the plain trainer has them of a batch that never had others; nothing flows to others."""
    settings = mixed()
    settings["optim"]["max_epochs"] = 0

    def look(trainer: Any) -> None:
        # By these fairchem balances the batches of several ranks.
        assert trainer.train_dataset.metadata_hasattr("natoms")
        assert trainer.train_dataset.get_metadata("natoms", indices).tolist() == [5] * len(indices)

        batch = chosen_batch(trainer, indices)
        out = {name: o.detach().requires_grad_() for name, o in trainer._forward(batch).items()}
        loss = trainer._label_loss(out, batch)
        gradients = torch.autograd.grad(loss, [out["energy"], out["forces"]])

        # NaN, so that they cannot have been compared.
        rows, atoms = batch.kd_labelled, batch.kd_labelled[batch.batch]
        assert batch.energy[~rows].isnan().all() and batch.forces[~atoms].isnan().all()
        assert not gradients[0][~rows].any() and not gradients[1][~atoms].any()

        alone = [trainer.train_dataset.parts["train"][i] for i in indices if i < LABELLED]
        plain = {"energy": out["energy"][rows], "forces": out["forces"][atoms]}
        alone = Batch.from_data_list(alone)
        assert torch.equal(loss, OCPTrainer._compute_loss(trainer, plain, alone))

        trainer._compute_loss(out, batch)
        ours = trainer._compute_metrics(out, batch, trainer.evaluator, {})
        theirs = OCPTrainer._compute_metrics(trainer, plain, alone, trainer.evaluator, {})
        assert {name: ours[name] for name in theirs} == theirs
        assert ours["teacher_energy_mae"]["numel"] == len(alone.natoms)
        assert ours["kd_energy"]["numel"] == len(indices)
        assert all(np.isfinite(float(metric["metric"])) for metric in ours.values())

    tiny.run(settings, look)


def test_resumed_training_equals_uninterrupted(
    mixed: Callable[..., Settings], teacher: Path
) -> None:
    """With a teacher in memory; one batch or more of each epoch has no label."""
    settings = mixed(task=tiny.distill(teacher, TERMS, align=True))
    settings["optim"].update(checkpoint_every=2, max_epochs=2)
    steps, ids = tiny.run(settings, lambda t: (t.step, [s for b in t.train_loader for s in b.sid]))
    assert steps == 6
    assert sorted(ids) == [f"slab{index}" for index in range(6)]

    settings["timestamp_id"] = "stopped"
    StoppingTrainer.stop_at = 5
    with pytest.raises(Killed):
        tiny.run({**settings, "trainer": "tests.fairchem.stopping.StoppingTrainer"})
    tiny.run(settings)
    folder = Path(settings["run_dir"]) / "checkpoints"
    whole, resumed = (tiny.load(folder / run / "checkpoint.pt") for run in ("run", "stopped"))
    assert_same(without_names(whole), without_names(resumed), "checkpoint.pt")
    assert all(value.isfinite().all() for value in whole["state_dict"].values())


def test_what_is_fitted_to_labels_is_fitted_to_the_labelled(
    mixed: Callable[..., Settings],
) -> None:
    """Normalizers and element references are those of the plain host."""
    settings = mixed()
    settings["optim"]["max_epochs"] = 0
    settings["optim"]["scheduler_params"]["warmup_epochs"] = 1.0
    fit = {"targets": ["energy"], "batch_size": 2, "num_batches": 1}
    settings["dataset"]["train"]["transforms"] = {"element_references": {"fit": fit}}
    references = [
        tiny.run(one, lambda trainer: trainer.elementrefs["energy"].element_references)
        for one in (settings, plain(settings))
    ]
    assert references[0].any() and torch.equal(*references)


def plain(settings: Settings) -> Settings:
    """Return the run of the plain host, in another folder."""
    return {**settings, "trainer": "equiformerv2_forces", "task": {}, "timestamp_id": "plain"}


def copied(store: Path, folder: Path, edit: Callable[[Any], Any]) -> Path:
    """Write the records of a store into another, edited or left out."""
    old = TargetStore.open(store)
    new = TargetStore.create(folder, old.manifest)
    records = [edit(old.record(name)) for name in old.ids()]
    new.append([record for record in records if record is not None])
    return folder


def test_structures_may_have_labels_only(
    mixed: Callable[..., Settings], labelled: Path, tmp_path: Path
) -> None:
    """Where it is allowed by name: the soft terms are then of those with targets alone."""
    names = [f"slab{index}/0" for index in range(LABELLED)]
    store = copied(labelled, tmp_path / "pool", lambda r: None if r.structure_id in names else r)
    with pytest.raises(ConfigError, match=r"dataset.train: 2 of 2 .* allow: \[missing\]"):
        tiny.run(mixed(task=stored(store, TERMS)))

    def look(trainer: Any) -> list[dict[str, Any]]:
        found = []
        for indices in ([0, 1, 2, 3], [2, 3], [0, 1]):
            trainer.model.eval()
            batch = chosen_batch(trainer, indices)
            torch.manual_seed(0)
            trainer._compute_loss(trainer._forward(batch), batch)
            found.append(trainer.distiller.take_metrics())
        return found

    settings = mixed(task=stored(store, TERMS, allow=["missing"]), timestamp_id="allowed")
    settings["optim"]["max_epochs"] = 1
    both, pool, none = tiny.run(settings, look)
    assert both["kd_energy"]["numel"] == pool["kd_energy"]["numel"] == 2
    assert both["kd_n2n"]["numel"] == pool["kd_n2n"]["numel"] == 10
    assert none["kd_energy"]["numel"] == none["kd_forces"]["total"] == 0
    for name in ("kd_energy", "kd_forces", "kd_n2n", "embedding_mae"):
        assert float(both[name]["metric"]) == pytest.approx(float(pool[name]["metric"]), rel=1e-2)


OFFSETS = {8: 0.7, 29: 1500.0, 78: -20.0}
"""eV an atom."""


def test_an_aligned_teacher_has_the_labels_zero(
    mixed: Callable[..., Settings],
    labelled: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever its own zero is; and what is subtracted is said."""

    def shift(record: Any) -> Any:
        offset = sum(OFFSETS[z] for z in record.structure.atomic_numbers.tolist())
        values = {**record.values, "energy": record.values["energy"] + offset}
        return replace(record, values=values)

    task = stored(labelled, {"energy": TERMS["energy"]})
    task["distill"]["align"] = True
    shifted = stored(copied(labelled, tmp_path / "s", shift), {"energy": TERMS["energy"]})
    shifted["distill"]["align"] = True

    def look(trainer: Any) -> tuple[float, float]:
        batch = chosen_batch(trainer, [0, 1, 2])
        torch.manual_seed(0)
        trainer._compute_loss(trainer._forward(batch), batch)
        metrics = trainer.distiller.take_metrics()
        return tuple(float(metrics[n]["metric"]) for n in ("kd_energy", "teacher_energy_mae"))

    ours = tiny.run(mixed(task=task), look)
    theirs = tiny.run(mixed(task=shifted, timestamp_id="shifted"), look)
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert ours[1] < 1.0
    assert "fitted on 2 structures: O " in caplog.text


def test_oc20_frames_whose_labels_were_taken_away(
    make_config: Callable[..., Settings],
    teacher: Path,
    shared_file: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """From the command that labels to the last step: two frames keep their labels, four do not."""
    with lzma.open(shared_file("oc20/s2ef_Ostar_all.extxyz.xz"), "rt") as file:
        frames = ase.io.read(file, ":6", format="extxyz")
    for number, frame in enumerate(frames):
        frame.info = {"sid": str(frame.info["sid"]), "fid": int(frame.info["fid"])}
        frame.calc = frame.calc if number < LABELLED else None
    settings = make_config(trainer=EQV2)
    databases = {}
    for name, part in {"train": frames[:LABELLED], "unlabelled": frames[LABELLED:]}.items():
        (tmp_path / name).mkdir()
        databases[name] = str(tiny.write_database(tmp_path / name / "frames.db", part))
    settings["dataset"]["train"]["src"] = databases["train"]
    settings["dataset"]["unlabelled"] = {"src": databases["unlabelled"]}
    settings["dataset"].pop("val")

    (tmp_path / "train.yml").write_text(yaml.safe_dump({"dataset": settings["dataset"]}))
    words = ["--quantities", "energy", "forces", "node_embeddings", "--store", str(tmp_path / "s")]
    source = ["label", "--fairchem", str(tmp_path / "train.yml")]
    named = ["--teacher", *tiny.teacher_name(teacher).split()]
    assert main([*source, *named, *words]) == 0

    terms = {"energy": TERMS["energy"], "forces": TERMS["forces"], "crack": {"weight": 1.0}}
    settings["task"] = stored(tmp_path / "s", terms, align=True, allow=["energy_unrelated"])
    steps, weights = tiny.run(settings, lambda t: (t.step, t.model.state_dict()))
    assert steps == 3
    assert all(value.isfinite().all() for value in weights.values())


def test_targets_without_labels_are_examined(
    mixed: Callable[..., Settings],
    labelled: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By themselves, such as for placeholders."""

    def spoil(record: Any) -> Any:
        if record.structure_id not in ("slab2/0", "slab3/0"):
            return record
        return replace(record, values={**record.values, "energy": torch.zeros(())})

    settings = mixed(task=stored(copied(labelled, tmp_path / "s", spoil), TERMS))
    settings["optim"]["max_epochs"] = 0
    tiny.run(settings)
    text = "the teacher's targets without labels: teacher energy of 2 of 4 structures"
    assert text in caplog.text


REFUSED: dict[str, tuple[Callable[[Settings], Any], str]] = {
    "no src": (lambda s: s["dataset"]["unlabelled"].pop("src"), r"dataset.unlabelled.src: missing"),
    "misspelt": (
        lambda s: s["dataset"].update(unlabeled=s["dataset"].pop("unlabelled")),
        r"dataset.unlabeled: unknown; did you mean 'unlabelled'",
    ),
    "no terms": (lambda s: s["task"]["distill"]["terms"].clear(), r"terms is empty, so nothing"),
    "no file": (
        lambda s: s["dataset"]["unlabelled"].update(src="none.db"),
        r"dataset.unlabelled.src: there is no 'none.db'",
    ),
    "no fixed": (
        lambda s: s["dataset"]["unlabelled"].update(a2g_args={"r_fixed": False}),
        r"dataset.unlabelled\[0\] has no 'fixed', which dataset.train\[0\] has",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(
    mixed: Callable[..., Settings], change: Callable[[Settings], Any], message: str
) -> None:
    settings = mixed()
    change(settings)
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)


def test_an_unlabelled_structure_without_a_target_is_refused(
    mixed: Callable[..., Settings], labelled: Path, tmp_path: Path
) -> None:
    """Also where structures may have labels only."""
    name = f"slab{LABELLED}/0"
    store = copied(labelled, tmp_path / "s", lambda r: None if r.structure_id == name else r)
    with pytest.raises(ConfigError, match=rf"dataset.unlabelled: 1 of 4 .*: {name}"):
        tiny.run(mixed(task=stored(store, TERMS, allow=["missing"])))
