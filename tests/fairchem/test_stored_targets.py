"""Targets from a store teach as the teacher itself does, and nothing wrong gets past the start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpointing import read_checkpoint
from kd_plugins.fairchem.convert import structures
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.store.manifest import FORMAT, Manifest
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import read_structures
from kd_plugins.teachers import label, load_teacher
from tests.fairchem import tiny
from tests.fairchem.test_laws import equal, first_batch
from tests.fairchem.test_refusals import block

EQV2 = "kd_plugins.fairchem.EqV2DistillTrainer"
TERMS = {name: terms for name, terms in tiny.ALL_TERMS.items() if name != "hessian"}
QUANTITIES = tiny.QUANTITIES
SINGLE = dict.fromkeys(QUANTITIES, "float32")
Settings = dict[str, Any]


def stored(store: Path, terms: Settings | None = None, **changes: Any) -> Settings:
    """Return the block of a distillation without a teacher."""
    task = tiny.distill(store, TERMS if terms is None else terms)
    del task["distill"]["teacher"]
    task["distill"].update(targets=str(store), **changes)
    return task


def losses_of_first_batch(trainer: Any) -> tuple[float, dict[str, float], Any]:
    """Return the loss and the metrics of one training batch, and the teacher's targets."""
    trainer.model.train()
    trainer.step = 1
    batch = first_batch(trainer)
    torch.manual_seed(3)
    loss = trainer._compute_loss(trainer._forward(batch), batch)
    metrics = {
        name: float(metric["metric"]) for name, metric in trainer.distiller.take_metrics().items()
    }
    torch.manual_seed(3)
    with torch.no_grad():
        trainer._forward(batch)
    return float(loss), metrics, (trainer.distiller._targets(batch), structures(batch))


def test_losses_of_stored_targets_equal_those_of_the_model(
    make_config: Callable[..., Settings],
    teacher: Path,
    databases: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """With the very targets of the online teacher in the store: loss, terms and measures."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, TERMS))
    settings["optim"]["max_epochs"] = 0
    settings["model"] = tiny.model(sphere_channels=4)
    loss, metrics, (targets, found) = tiny.run(settings, losses_of_first_batch)
    name, folder = tiny.teacher_name(teacher), tmp_path / "targets"
    made = load_teacher(name)
    store = TargetStore.create(folder, Manifest(name, made.fingerprint, SINGLE))
    atoms = targets.n_atoms.cumsum(0).tolist()
    for place, (structure_id, structure) in enumerate(
        zip(targets.structure_ids, found, strict=True)
    ):
        rows = slice(atoms[place] - structure.n_atoms, atoms[place])
        values = {
            name: value[place] if name == "energy" else value[rows]
            for name, value in targets.values.items()
        }
        store.append([Record(structure_id, structure, values)])
    label(read_structures(databases), name, folder, progress=False)
    settings.update(task=stored(folder), timestamp_id="stored")
    again, remeasured, _ = tiny.run(settings, losses_of_first_batch)
    assert again == pytest.approx(loss, rel=1e-6)
    assert remeasured == pytest.approx(metrics, rel=1e-6, nan_ok=True)


def test_labelled_targets_differ_by_the_rolls_of_edges_only(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path
) -> None:
    """The online teacher draws new rolls in each step, which a tiny model's numbers depend on."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, TERMS))
    settings["optim"]["max_epochs"] = 0
    loss, _, _ = tiny.run(settings, losses_of_first_batch)
    settings.update(task=stored(labelled), timestamp_id="stored")
    again, _, _ = tiny.run(settings, losses_of_first_batch)
    assert again == pytest.approx(loss, rel=2e-2)


def test_no_teacher_is_read_or_built(make_config: Callable[..., Settings], labelled: Path) -> None:
    """A whole run without a checkpoint, validations included, in the loader's workers."""
    settings = make_config(trainer=EQV2, task=stored(labelled))
    settings["optim"]["num_workers"] = 1
    moved = tiny.run(settings, tiny.parameters)
    settings.update(timestamp_id="zero", task=stored(labelled, tiny.without_weights(TERMS)))
    assert not equal(tiny.run(settings, tiny.parameters), moved)


def test_zero_weights_are_the_plain_host(
    make_config: Callable[..., Settings], labelled: Path
) -> None:
    """Reading targets changes nothing else."""
    settings = make_config()
    plain = tiny.run(settings, tiny.parameters)
    settings.update(
        trainer=EQV2, task=stored(labelled, tiny.without_weights(TERMS)), timestamp_id="stored"
    )
    assert equal(tiny.run(settings, tiny.parameters), plain)


def test_a_checkpoint_beside_the_store_starts_the_student(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path
) -> None:
    """It is let go afterwards; its units are the student's."""
    beside = {"checkpoint": str(teacher), "weights": "raw"}
    task = stored(labelled, student={"initialize": "teacher"}, teacher=beside)
    settings = make_config(trainer=EQV2, task=task)
    settings["optim"]["max_epochs"] = 0
    started = tiny.run(settings, tiny.parameters)
    source = read_checkpoint(TeacherSettings(str(teacher), "raw")).state
    assert all(torch.equal(value, source[name]) for name, value in started.items())


def test_invariant_embeddings_in_half_precision_are_enough(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path, databases, tmp_path: Path
) -> None:
    """For CRACK and n2n over l = 0: their losses move by no more than the rounding."""
    terms = {"crack": {"weight": 1.0}, "n2n": {**TERMS["n2n"], "features": "l0"}}
    folder = tmp_path / "half"
    half = {"node_embeddings": "float16"}
    label(read_structures(databases), tiny.teacher_name(teacher), folder, half, progress=False)
    settings = make_config(trainer=EQV2)
    settings["optim"]["max_epochs"] = 0
    found = []
    for store in (labelled, folder):
        settings.update(task=stored(store, terms), timestamp_id=store.name)
        found.append(tiny.run(settings, losses_of_first_batch))
    (whole, metrics, _), (rounded, fewer, _) = found
    assert rounded == pytest.approx(whole, rel=1e-2)
    absent = {"embedding_mae", "embedding_cosine", "teacher_energy_mae", "teacher_forces_mae"}
    assert set(metrics) - set(fewer) == absent & set(metrics)


def test_molecules_without_a_cell(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """fairchem gives them lattice vectors, and they are still the structures that were labelled."""
    molecules = [molecule(name) for name in ("H2O", "CH4", "NH3")]
    for index, atoms in enumerate(molecules):
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info = {"sid": f"molecule{index}", "fid": 0}
    path = tiny.write_database(tmp_path / "molecules.db", molecules)
    folder = tmp_path / "targets"
    label(read_structures([path]), tiny.teacher_name(teacher), folder, SINGLE, progress=False)
    assert not TargetStore.open(folder).record("molecule0/0").structure.cell.any()
    settings = make_config(trainer=EQV2, task=stored(folder))
    settings["dataset"]["train"]["src"] = str(path)
    settings["dataset"].pop("val")

    def energies(trainer: Any) -> dict[str, float]:
        targets = trainer.distiller.teacher(first_batch(trainer))
        return dict(zip(targets.structure_ids, targets.values["energy"].tolist(), strict=True))

    for name, energy in tiny.run(settings, energies).items():
        assert TargetStore.open(folder)[name].values["energy"].item() == energy


def edited(settings: Settings, tmp_path: Path, **changes: Any) -> None:
    """Have the run read a copy of the store with another manifest."""
    targets, copy = block(settings)["targets"], tmp_path / "edited"
    filled = isinstance(targets, dict)
    shutil.copytree(targets["auto"] if filled else targets, copy)
    block(settings)["targets"] = {"auto": str(copy)} if filled else str(copy)
    text = (copy / "manifest.json").read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    (copy / "manifest.json").write_text(text)


def without(name: str) -> Callable[[Settings, Path], None]:
    """Return a change to a store that lacks a quantity."""

    def change(settings: Settings, tmp_path: Path) -> None:
        source = TargetStore.open(block(settings)["targets"])
        dtypes = {key: dtype for key, dtype in source.manifest.dtypes.items() if key != name}
        manifest = Manifest(source.manifest.teacher, source.manifest.fingerprint, dtypes)
        store = TargetStore.create(tmp_path / "fewer", manifest)
        for key in source.ids():
            record = source.record(key)
            values = {kept: value for kept, value in record.values.items() if kept != name}
            store.append([Record(key, record.structure, values)])
        block(settings)["targets"] = str(store.folder)

    return change


def another_database(index: int, edit: Callable[[Any], Any]) -> Callable[[Settings, Path], None]:
    """Return a change to the structures that are trained on."""

    def change(settings: Settings, tmp_path: Path) -> None:
        slabs = [tiny.slab(number) for number in range(6)]
        edit(slabs[index])
        path = tiny.write_database(tmp_path / "other.db", slabs)
        settings["dataset"]["train"]["src"] = str(path)

    return change


def move(slab: Any) -> None:
    """Move an atom and keep the labels."""
    labels = {"energy": slab.get_potential_energy(), "forces": slab.get_forces()}
    slab.positions[4] += 0.1
    slab.calc = SinglePointCalculator(slab, **labels)


def damage(settings: Settings, tmp_path: Path) -> None:
    """Cut the store's file short."""
    edited(settings, tmp_path)
    (shard,) = Path(block(settings)["targets"]).glob("*.lmdb")
    shard.write_bytes(shard.read_bytes()[:9000])


BAD: dict[str, tuple[Callable[[Settings, Path], Any], str]] = {
    "no store": (
        lambda s, p: block(s).update(targets=str(p / "none")),
        "task.distill.targets: .* holds no target store",
    ),
    "no text": (
        lambda s, p: block(s).update(targets=3),
        "targets: expected a folder, auto or {auto: FOLDER}, got 3",
    ),
    "neither": (lambda s, p: block(s).pop("targets"), "teacher: missing; .* or targets: a folder"),
    "an empty store": (
        lambda s, p: block(s).update(
            targets=str(TargetStore.create(p / "e", Manifest("t", "f", SINGLE)).folder)
        ),
        "holds no structure",
    ),
    "a damaged store": (damage, "task.distill.targets: .* cut short"),
    "a store of the future": (
        lambda s, p: edited(s, p, **{f'"format": {FORMAT}': '"format": 9'}),
        "has format 9",
    ),
    "no embeddings": (
        without("node_embeddings"),
        "terms.crack needs node_embeddings, .* --quantities .*node_embeddings",
    ),
    "no degrees": (
        without("equivariant_embeddings"),
        "terms.instance needs equivariant_embeddings, .*or set its features: l0",
    ),
    "no forces": (without("forces"), "terms.forces needs forces, and the store"),
    "hessian": (
        lambda s, p: block(s)["terms"].update(hessian=tiny.ALL_TERMS["hessian"]),
        "terms.hessian compares force derivatives .* which no store can hold",
    ),
    "start without a checkpoint": (
        lambda s, p: block(s)["student"].update(initialize="teacher"),
        "copies the teacher's weights, which targets do not hold",
    ),
    "a structure without a target": (
        another_database(2, lambda slab: slab.info.update(sid="new")),
        "dataset.train: 1 of 6 structures have no target in .*: new/0",
    ),
    "a structure that was moved": (
        another_database(1, move),
        "structure 'slab1/0' is not the one that was labelled: atom 4",
    ),
    "a transform": (
        lambda s, p: s["dataset"]["train"]["transforms"].update(random_rotation={}),
        "dataset.train.transforms.random_rotation may change the structures",
    ),
    "widths without projection": (
        lambda s, p: (
            block(s).update(projection="none"),
            s["model"]["backbone"].update(sphere_channels=4),
        ),
        "the student has 4 channels, the teacher 8; use projection: linear",
    ),
    "other lmax": (
        lambda s, p: s["model"]["backbone"].update(lmax_list=[1]),
        "the student has 1, the teacher 2; use features: l0",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_refusals(
    make_config: Callable[..., Settings],
    labelled: Path,
    tmp_path: Path,
    change: Callable[[Settings, Path], Any],
    message: str,
) -> None:
    """One error with its remedy, before anything is trained or saved."""
    settings = make_config(trainer=EQV2, task=stored(labelled))
    change(settings, tmp_path)
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)
    assert not list(Path(settings["run_dir"]).glob("checkpoints/*/*checkpoint*"))


def test_a_start_from_another_teacher_is_refused(
    make_config: Callable[..., Settings], teacher: Path, labelled: Path
) -> None:
    """The averaged weights are not those that filled the store."""
    beside = {"checkpoint": str(teacher), "weights": "ema"}
    task = stored(labelled, student={"initialize": "teacher"}, teacher=beside)
    with pytest.raises(ConfigError, match="is not the teacher that filled the store"):
        tiny.run(make_config(trainer=EQV2, task=task))
