"""Train one HIPNN on labels, and perhaps a teacher's atomic energies (Matin et al. 2025).

    python recipes/hippynn_metals/train.py SETTINGS.yml

`kd-plugins compare` calls it for every arm, size and seed; copper.yml says what its settings mean.
It is hippynn's own way to train, and what is added is called by ``kd.``. Stopped, it goes on.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from hippynn.databases import Database
from hippynn.experiment import SetupParams, assemble_for_training, setup_training, train_model
from hippynn.experiment.controllers import PatienceController
from hippynn.graphs import inputs, networks, physics, targets
from hippynn.tools import active_directory
from torch.optim.lr_scheduler import ReduceLROnPlateau

import kd_plugins.hippynn as kd
from kd_plugins.core.schedules import Piecewise
from kd_plugins.sampling import nested_subset
from kd_plugins.structures import LabelledStructure, read_structures

SETTINGS = {"structures", "validation", "share", "pool", "teacher", "seed", "seed_shift", "model"}
SETTINGS |= {"loss", "learning_rate", "batch_size", "epochs", "train_evaluated", "out"}
EPOCHS = {"max", "halve_after", "stop_after", "scale"}
TEACHER_TERMS = ("atomic_energies", "teacher_energy", "teacher_forces")


def hipnn(model: dict[str, Any], elements: list[int]) -> tuple[Any, Any]:
    """Return the energy and force nodes of a model with one interaction layer and l_max 1."""
    positions = inputs.PositionsNode(db_name="positions")
    nodes = (inputs.SpeciesNode(db_name="numbers"), positions, inputs.CellNode(db_name="cell"))
    sizes = {"possible_species": [0, *elements], "n_interaction_layers": 1, **model}
    network = networks.HipnnVec("hipnn", nodes, periodic=True, module_kwargs=sizes)
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    return energy, physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")


def split(settings: dict[str, Any]) -> dict[str, list[LabelledStructure]]:
    """Return validation structures, this seed's share of the others, and the pool, unlabelled."""
    structures = {one.structure_id: one for one in read_structures(settings["structures"])}
    valid = nested_subset(structures, **settings["validation"])
    others = [name for name in structures if name not in set(valid)]
    train = nested_subset(others, max(1, round(settings["share"] * len(others))), settings["seed"])
    pool = read_structures([settings["pool"]]) if settings["pool"] else ()
    return {
        "valid": [structures[name] for name in sorted(valid)],
        "train": [structures[name] for name in sorted(train)],
        "pool": [replace(one, labels={}) for one in pool],
    }


def make_database(parts: dict[str, list[LabelledStructure]]) -> Any:
    """Return a database that is split; the pool is a part of the training split."""
    rows = [*parts["valid"], *parts["train"], *parts["pool"]]
    arrays = kd.to_arrays(rows, allow_missing=bool(parts["pool"]))
    database = Database(arrays, None, None, seed=0, quiet=True)
    database.make_explicit_split("valid", torch.arange(len(parts["valid"])))
    database.split_the_rest("train")
    return database


def loss_weights(settings: dict[str, Any], labelled: int, pool: int) -> dict[str, Any]:
    """Return the weights of the loss, with schedules in scaled epochs from 0.

    With a pool, labels and targets share a weight, so that every structure counts the same.
    """
    scale, weights = settings["epochs"]["scale"], {}
    for name, weight in settings["loss"].items():
        if isinstance(weight, dict):  # the paper counts epochs from 1
            epochs = [round(scale * (epoch - 1)) for epoch in weight["epochs"]]
            weight = Piecewise(tuple(epochs), tuple(map(float, weight["weights"])))
        weights[name] = weight

    if pool:
        by_label = labelled / (labelled + pool)
        for name in ("energy", "forces"):
            weights[f"teacher_{name}"] = (1 - by_label) * weights[name]
            weights[name] = by_label * weights[name]
    return weights


def set_up(settings: dict[str, Any], loss: Any, modules: Any) -> Any:
    """Return modules, controller and metrics: Adam, halved and stopped for want of a gain."""
    scale, names = settings["epochs"]["scale"], ("halve_after", "stop_after", "max")
    halve, stop, most = (max(1, round(scale * settings["epochs"][name])) for name in names)
    optimizer = torch.optim.Adam(modules.model.parameters(), lr=settings["learning_rate"])
    schedules = [kd.LossSchedule(loss, hold_patience=True)] if loss.schedules else []
    controller = PatienceController(
        optimizer=optimizer,
        scheduler=[ReduceLROnPlateau(optimizer, factor=0.5, patience=halve), *schedules],
        batch_size=settings["batch_size"],
        max_epochs=most,
        termination_patience=stop,
        stopping_key="judged",
        fraction_train_eval=settings["train_evaluated"],
        quiet=True,
    )
    modules, controller, metrics = setup_training(modules, SetupParams(controller=controller))
    for schedule in schedules:
        schedule.best_of_last_row(metrics)
    return modules, controller, metrics


def train(settings: dict[str, Any]) -> None:
    """Train one model; leave the best one and the curves."""
    for keys, given in ((SETTINGS, settings), (EPOCHS, settings.get("epochs", EPOCHS))):
        if wrong := keys.symmetric_difference(given):
            raise SystemExit(f"expected {sorted(keys)}; missing or unknown are {sorted(wrong)}")
    parts = split(settings)
    database, out = make_database(parts), Path(settings["out"])
    weights = loss_weights(settings, len(parts["train"]), len(parts["pool"]))
    wanted = [term.removeprefix("teacher_") for term in TEACHER_TERMS if weights.get(term)]
    if wanted:
        skip = bool(parts["pool"])  # the teacher's energies and forces are for the pool alone
        print(kd.add_teacher_targets(database, settings["teacher"], wanted, skip_labelled=skip))

    # Control and student of a seed begin alike. A teacher's seed is shifted, so that a student of
    # its size begins elsewhere.
    torch.manual_seed(settings["seed"] + settings["seed_shift"])
    elements = sorted(set(database.splits["train"]["numbers"].unique().tolist()) - {0})
    nodes = hipnn(settings["model"], elements)
    loss = kd.distillation_loss(*nodes, weights=weights, energies="total", database=database)

    # One measure of the validation labels for all arms, whatever their weights.
    labels = {"energy": 1, "forces": 10} if weights.get("forces") else {"energy": 1}
    judge = kd.distillation_loss(*nodes, weights=labels, energies="total", database=database)
    modules, _ = assemble_for_training(loss.train, {**loss.validation, "judged": judge.train})
    kd.initialize_energies(nodes[0], database)

    stopped = kd.load_last_checkpoint(out / "training", trust_pickle=True)
    modules, controller, metrics = stopped or set_up(settings, loss, modules)
    kd.cache_pairs(modules, database)
    with active_directory(str(out / "training")):
        kept = {"store_every": 10, "quiet": True}
        train_model(modules, database, controller, metrics, None, None, **kept)

    kd.write_curves(metrics, out / "curves.json")
    shutil.rmtree(out / "model", ignore_errors=True)
    kd.export_student(out / "training", out / "model")


if __name__ == "__main__":
    train(yaml.safe_load(Path(sys.argv[1]).read_text()))
