"""Small HIPNN models, databases of molybdenum structures, and hippynn's own training of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hippynn.databases import Database
from hippynn.experiment import SetupParams, assemble_for_training, setup_training, train_model
from hippynn.experiment.controllers import Controller
from hippynn.graphs import Predictor, inputs, networks, physics, targets
from hippynn.graphs.nodes.inputs import CellNode, PositionsNode, SpeciesNode
from hippynn.pretraining import hierarchical_energy_initialization
from hippynn.tools import active_directory

from kd_plugins.hippynn import LossSchedule, distillation_loss, to_arrays
from kd_plugins.structures.readers import LabelledStructure, read_structures

MO = "metals/mlearn_Mo_train.extxyz.xz"
INPUTS = (SpeciesNode, PositionsNode, CellNode)


@dataclass(frozen=True)
class Hipnn:
    """The nodes of one model."""

    network: Any
    energy: Any
    forces: Any


def make_hipnn(
    seed: int = 2, width: int = 4, elements: Iterable[int] = (42,), layers: int = 1
) -> Hipnn:
    """Return a model of one interaction layer with vector sensitivity, or of several."""
    torch.manual_seed(seed)
    species = inputs.SpeciesNode(db_name="numbers")
    positions = inputs.PositionsNode(db_name="positions")
    cell = inputs.CellNode(db_name="cell")
    sizes = {
        "possible_species": [0, *elements],
        "n_features": width,
        "n_sensitivities": 4,
        "dist_soft_min": 1.5,
        "dist_soft_max": 3.5,
        "dist_hard_max": 4.0,
        "n_interaction_layers": layers,
        "n_atom_layers": 1,
    }
    network = networks.HipnnVec(
        "hipnn", (species, positions, cell), periodic=True, module_kwargs=sizes
    )
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    forces = physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")
    return Hipnn(network, energy, forces)


def read_molybdenum(
    shared_file: Callable[[str], Path], small: int = 6, large: int = 14
) -> list[LabelledStructure]:
    """Return molybdenum structures: some of 2 to 36 atoms, and some of 53 or 54."""
    structures = list(read_structures([shared_file(MO)]))
    few_atoms = [one for one in structures if len(one.atoms) < 50]
    many_atoms = [one for one in structures if len(one.atoms) >= 50]
    return [*few_atoms[:small], *many_atoms[:large]]


def make_database(structures: Iterable[LabelledStructure], seed: int = 0) -> Database:
    """Return a split database; its inputs and targets are set when a loss is assembled."""
    arrays = to_arrays(structures)
    return Database(arrays, None, None, seed=seed, test_size=3, valid_size=3, quiet=True)


def make_initialised(
    shared_file: Callable[[str], Path], seed: int = 2, split_seed: int = 0, **sizes: int
) -> tuple[Database, Hipnn]:
    """Return a database and a model whose atoms have the mean energy of its labels."""
    data = make_database(read_molybdenum(shared_file, **sizes), split_seed)
    model = make_hipnn(seed)
    initialise(model, data)
    return data, model


def initialise(model: Hipnn, data: Database) -> None:
    """Set the energies of atoms to the mean of the labels, as hippynn's scripts do."""
    hierarchical_energy_initialization(model.energy, data)


def copy_perturbed(model: Hipnn) -> Hipnn:
    """Return a copy of a model with slightly other weights."""
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in twin.network.torch_module.parameters():
            if parameter.is_floating_point():
                parameter += 0.02 * torch.randn_like(parameter)
    return twin


def input_nodes(model: Hipnn) -> list[Any]:
    """Return the nodes of species, positions and cells."""
    return [model.energy.find_unique_relative(lambda n, k=k: isinstance(n, k)) for k in INPUTS]


def predict_with_hippynn(model: Hipnn, arrays: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the predictions of hippynn's own predictor, padded."""
    nodes = {
        "atomic_energies": model.energy.atom_energies,
        "forces": model.forces,
        "energy": model.energy.main_output,
    }
    inputs = input_nodes(model)
    predictor = Predictor(inputs, list(nodes.values()))
    values = predictor(**{n.db_name: arrays[n.db_name].clone() for n in inputs})

    predicted = {name: values[node.name].numpy() for name, node in nodes.items()}
    return {**predicted, "atomic_energies": predicted["atomic_energies"][..., 0]}


def set_up(
    model: Hipnn, data: Database, loss: Any, schedulers: Sequence[Any] = (), **settings: Any
) -> tuple[Any, Any, Any]:
    """Return hippynn's modules, controller and metrics."""
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    initialise(model, data)
    trained = [p for p in modules.model.parameters() if p.requires_grad]
    settings = {"controller": Controller, "max_epochs": 3, **settings}
    make = settings.pop("controller")
    controller = make(
        optimizer=torch.optim.Adam(trained, lr=1e-4),
        scheduler=list(schedulers),
        batch_size=4,
        fraction_train_eval=0.5,
        stopping_key=next(iter(loss.validation)),
        quiet=True,
        **settings,
    )
    return setup_training(modules, SetupParams(controller=controller, device="cpu"))


def train_student(
    folder: Path, model: Hipnn, data: Database, weights: Mapping[str, Any], max_epochs: int = 3
) -> Any:
    """Train with the loss of this package in hippynn's own loop; return its metrics."""
    loss = distillation_loss(model.energy, model.forces, weights=weights, energies="total")
    schedulers = [LossSchedule(loss)] if loss.schedules else []
    modules, controller, metrics = set_up(model, data, loss, schedulers, max_epochs=max_epochs)
    return train(folder, modules, data, controller, metrics)


def train(
    folder: Path,
    modules: Any,
    data: Database,
    controller: Any,
    metrics: Any,
    callbacks: Sequence[Any] = (),
    **more: Any,
) -> Any:
    """Let hippynn train in a folder; return its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with active_directory(str(folder)):
        return train_model(
            modules, data, controller, metrics, list(callbacks), None, quiet=True, **more
        )
