"""Train one HIPNN on few labels, alone or together with a teacher's targets of a pool.

    python recipes/few_labels/train.py SETTINGS.yml

The script that `kd-plugins compare` calls for every arm and seed. Each seed draws other labelled
structures. All arms take the same number of steps, and the student has the weights of the last.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hippynn.databases import Database
from hippynn.experiment import SetupParams, assemble_for_training, setup_training, train_model
from hippynn.experiment.controllers import Controller
from hippynn.graphs import inputs, networks, physics, targets
from hippynn.tools import active_directory

from kd_plugins import TargetStore
from kd_plugins.hippynn import (
    add_teacher_targets,
    cache_pairs,
    distillation_loss,
    export_student,
    initialize_energies,
    to_arrays,
    write_curves,
)
from kd_plugins.structures import LabelledStructure, read_structures


def hipnn(model: dict[str, Any], elements: list[int]) -> tuple[Any, Any]:
    """Return the energy and force nodes of a model with one interaction layer."""
    positions = inputs.PositionsNode(db_name="positions")
    nodes = (inputs.SpeciesNode(db_name="numbers"), positions, inputs.CellNode(db_name="cell"))
    sizes = {"possible_species": [0, *elements], "n_interaction_layers": 1, **model}
    network = networks.HipnnVec("hipnn", nodes, periodic=True, module_kwargs=sizes)
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    return energy, physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")


def draw(settings: dict[str, Any]) -> list[LabelledStructure]:
    """Return this seed's labelled structures, of those whose rms force, eV/Å, is in the range."""
    low, high = settings["force_rms"] or (0, np.inf)
    suited = [
        structure
        for structure in read_structures([settings["labelled"]])
        if low <= np.sqrt(np.square(structure.labels["forces"]).mean()) <= high
    ]
    count = settings["labels"] or len(suited)
    chosen = np.random.default_rng(settings["seed"]).permutation(len(suited))[:count]
    return [suited[index] for index in sorted(chosen)]


def make_database(structures: Sequence[LabelledStructure]) -> Any:
    """Return a database of structures with labels and others without."""
    arrays = to_arrays(structures, allow_missing=True)
    database = Database(arrays, None, None, seed=0, quiet=True)
    database.split_the_rest("train")
    # hippynn wants validation structures. Nothing is chosen by them, so the first one will do.
    database.splits["valid"] = {n: array[:1] for n, array in database.splits["train"].items()}
    return database


def share_out(weights: dict[str, float], labelled: int, pool: int) -> dict[str, float]:
    """Return weights with which a structure counts the same, whoever gave its numbers."""
    by_label = labelled / (labelled + pool)
    shared = dict(weights)
    for name in ("energy", "forces"):
        shared[name] = by_label * weights[name]
        shared[f"teacher_{name}"] = (1 - by_label) * weights[name]
    return {name: weight for name, weight in shared.items() if weight}


def train(settings: dict[str, Any]) -> None:
    """Train in hippynn's own way."""
    torch.manual_seed(settings["seed"])
    labelled = draw(settings)
    pool = [
        replace(structure, labels={})
        for structure in (read_structures([settings["pool"]]) if settings["store"] else ())
    ]
    database = make_database([*labelled, *pool])
    if pool:
        quantities = ["energy", "forces", "atomic_energies"]
        quantities = quantities if settings["loss"]["atomic_energies"] else quantities[:2]
        store = TargetStore.open(settings["store"])
        flags = {"align": True, "skip_labelled": True}
        print(add_teacher_targets(database, store, quantities, **flags))

    elements = sorted(set(database.splits["train"]["numbers"].unique().tolist()) - {0})
    energy, forces = hipnn(settings["model"], elements)
    weights = share_out(settings["loss"], len(labelled), len(pool))
    loss = distillation_loss(energy, forces, weights=weights, energies="total", database=database)
    modules, _ = assemble_for_training(loss.train, dict(loss.validation))
    cache_pairs(modules, database)
    initialize_energies(energy, database)

    batch_size = min(settings["batch_size"], len(labelled) + len(pool))
    epochs = -(-settings["steps"] // -(-(len(labelled) + len(pool)) // batch_size))
    trained = [weight for weight in modules.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings["learning_rate"])
    controller = Controller(
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-5),
        batch_size=batch_size,
        max_epochs=epochs,
        stopping_key="forces_rmse",
        fraction_train_eval=1.01 / (len(labelled) + len(pool)),
        quiet=True,
    )
    setup = SetupParams(controller=controller, device="cpu")
    modules, controller, metrics = setup_training(modules, setup)

    out = Path(settings["out"])
    with active_directory(str(out / "training")):
        kept = {"store_best": False, "store_every": epochs - 1}
        train_model(modules, database, controller, metrics, None, None, quiet=True, **kept)
    write_curves(metrics, out / "curves.json")
    shutil.rmtree(out / "student", ignore_errors=True)
    export_student(out / "training", out / "student", f"model_epoch_{epochs - 1}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(yaml.safe_load(Path(sys.argv[1]).read_text()))
