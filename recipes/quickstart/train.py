"""Train one HIPNN on a teacher's targets, with the settings of a YAML file.

    python recipes/quickstart/train.py SETTINGS.yml

The script that `kd-plugins compare` calls for every arm and seed; it is also a pattern for your
own: build hippynn's graph, `add_teacher_targets`, `distillation_loss`, train.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
    initialize_energies,
    to_arrays,
    write_curves,
)
from kd_plugins.structures import read_structures

SCORE = {"teacher_energy": 1, "teacher_forces": 10}
"""All arms keep the model with the lowest of these errors in validation."""


def hipnn(model: dict[str, Any], elements: list[int]) -> tuple[Any, Any]:
    """Return the energy and force nodes of a model."""
    positions = inputs.PositionsNode(db_name="positions")
    nodes = (inputs.SpeciesNode(db_name="numbers"), positions, inputs.CellNode(db_name="cell"))
    sizes = {"possible_species": [0, *elements], "n_interaction_layers": 1, **model}
    network = networks.HipnnVec("hipnn", nodes, periodic=True, module_kwargs=sizes)
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    return energy, physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")


def train(settings: dict[str, Any]) -> None:
    """Train in hippynn's own way."""
    torch.manual_seed(settings["seed"])
    arrays = to_arrays(read_structures(settings["structures"]), allow_missing=True)
    database = Database(arrays, None, None, seed=0, test_size=0.05, valid_size=0.15, quiet=True)
    store = TargetStore.open(settings["store"])
    add_teacher_targets(database, store, ("energy", "forces", "atomic_energies"))

    elements = sorted(set(arrays["numbers"].ravel().tolist()) - {0})
    energy, forces = hipnn(settings["model"], elements)
    initialize_energies(energy, database)
    loss, score = (
        distillation_loss(energy, forces, weights=weights, energies="total", database=database)
        for weights in (settings["loss"], SCORE)
    )
    modules, _ = assemble_for_training(loss.train, {"score": score.train, **score.validation})
    cache_pairs(modules, database)

    optimizer = torch.optim.Adam(modules.model.parameters(), lr=settings["learning_rate"])
    epochs = settings["epochs"]
    controller = Controller(
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-5),
        batch_size=settings["batch_size"],
        max_epochs=epochs,
        stopping_key="score",
        fraction_train_eval=0.1,
    )
    setup = SetupParams(controller=controller, device="cpu")
    modules, controller, metrics = setup_training(modules, setup)
    out = Path(settings["out"])
    with active_directory(str(out)):
        metrics = train_model(modules, database, controller, metrics, None, None)
    write_curves(metrics, out / "curves.json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(yaml.safe_load(Path(sys.argv[1]).read_text()))
