"""One run: a HIPNN, a database, hippynn's own training, and how good the result is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from hippynn.databases import Database
from hippynn.experiment import SetupParams, assemble_for_training, setup_training, train_model
from hippynn.experiment.controllers import Controller
from hippynn.graphs import inputs, networks, physics, targets
from hippynn.pretraining import hierarchical_energy_initialization
from hippynn.tools import active_directory
from study import Run, Size, Study

from kd_plugins.core.schedules import Piecewise, Schedule
from kd_plugins.hippynn import (
    HippynnTeacher,
    LossSchedule,
    add_teacher_targets,
    cache_pairs,
    distillation_loss,
    to_arrays,
)
from kd_plugins.structures.readers import LabelledStructure

COMMON: Mapping[str, float] = {"l2": 1e-6, "hierarchicality": 0.01}
ASKED = {"atomic_energies": "atomic_energies", "teacher_forces": "forces"}
"""Loss term to the teacher's quantity."""
DENSITY, RATTLE = 0.05, 0.15
"""Largest strain and typical displacement (Å) of structures that only the teacher labels."""


@dataclass(frozen=True)
class Method:
    """A row of methods.yml."""

    weights: Mapping[str, Any]
    teacher: str | None = None
    share: float | None = None
    extra: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Method:
        """Read a row."""
        own = {key: row[key] for key in ("teacher", "share", "extra") if key in row}
        return cls({key: value for key, value in row.items() if key not in own}, **own)


def hipnn(study: Study, size: Size) -> tuple[Any, Any]:
    """Return the energy and force nodes of a model with one interaction layer and l_max 1."""
    cutoffs = study.settings.cutoffs
    sizes = {
        "possible_species": [0, study.settings.element],
        "n_features": size.width,
        "n_sensitivities": size.sensitivities,
        "dist_soft_min": cutoffs.soft_min,
        "dist_soft_max": cutoffs.soft_max,
        "dist_hard_max": cutoffs.hard,
        "n_interaction_layers": 1,
        "n_atom_layers": size.layers,
    }
    positions = inputs.PositionsNode(db_name="positions")
    nodes = (inputs.SpeciesNode(db_name="numbers"), positions, inputs.CellNode(db_name="cell"))
    network = networks.HipnnVec("hipnn", nodes, periodic=True, module_kwargs=sizes)
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    return energy, physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")


def database(splits: Mapping[str, Sequence[LabelledStructure]], seed: int) -> Database:
    """Return a database whose splits are given."""
    held = [frame for frames in splits.values() for frame in frames]
    made, start = Database(to_arrays(held), None, None, seed=seed, quiet=True), 0
    for split, frames in splits.items():
        made.make_explicit_split(split, torch.arange(start, start + len(frames)))
        start += len(frames)
    return made


def teach(study: Study, run: Run, method: Method, teacher: Path | None) -> dict[str, Any]:
    """Train one model in its folder; return its record."""
    torch.manual_seed(run.seed)
    energy, forces = hipnn(study, study.settings.size(run.size))
    splits = study.part(method.share or run.share, run.seed)
    if method.extra:
        splits["train"] = [*splits["train"], *extra(splits["train"], method, teacher, run.seed)]
    data = database(splits, run.seed)
    epochs = -(-study.settings.steps // -(-len(splits["train"]) // study.settings.batch_size))
    weights = {**scheduled(method.weights, epochs), **COMMON}
    loss = distillation_loss(energy, forces, weights=weights, energies="total")
    asked = [ASKED[term] for term in method.weights if term in ASKED]
    sums = add_teacher_targets(data, str(teacher), asked).sums.get("train") if asked else None
    hierarchical_energy_initialization(energy, data)
    start = time.perf_counter()
    metrics, modules = train(study, run, loss, (energy, forces), data, epochs)
    return {
        **vars(run),
        "structures": len(splits["train"]),
        "epochs": epochs,
        "weights": sum(p.numel() for p in modules.model.parameters() if p.requires_grad),
        "seconds": time.perf_counter() - start,
        "teacher_sums_rms": None if sums is None else sums.rms,
        "curve": [epoch["valid"]["forces_rmse"] for epoch in metrics.epoch_metric_values],
        "errors": {split: errors(modules.model, frames) for split, frames in splits.items()},
    }


def train(
    study: Study, run: Run, loss: Any, nodes: tuple[Any, Any], data: Database, epochs: int
) -> tuple[Any, Any]:
    """Let hippynn train; the best model by the labels that the method has."""
    labels = {"energy": 1.0, "forces": 10.0}
    judge = distillation_loss(*nodes, weights=labels, energies="total")
    validation = {name: judge.validation[name] for name in ("energy_rmse", "forces_rmse")}
    validation["energy_forces"] = judge.train
    modules, _ = assemble_for_training(loss.train, validation)
    cache_pairs(modules.model, data)
    modules, info = assemble_for_training(loss.train, validation)
    data.inputs, data.targets = info["inputs"], info["targets"]
    optimizer = torch.optim.Adam(
        [p for p in modules.model.parameters() if p.requires_grad],
        lr=study.settings.size(run.size).learning_rate,
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-5)
    controller = Controller(
        optimizer=optimizer,
        scheduler=[cosine, *([LossSchedule(loss)] if loss.schedules else [])],
        batch_size=study.settings.batch_size,
        max_epochs=epochs,
        stopping_key="energy_forces" if "forces" in loss.weights else "energy_rmse",
        fraction_train_eval=min(1.0, 20 / len(data.splits["train"]["indices"])),
        quiet=True,
    )
    settings = SetupParams(controller=controller, device="cpu")
    modules, controller, metrics = setup_training(modules, settings)
    schedules = [one for one in controller.scheduler_list if isinstance(one, LossSchedule)]
    for schedule in schedules:
        schedule.best_of_last_row(metrics)
    folder = study.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    with active_directory(str(folder)):
        return train_model(modules, data, controller, metrics, None, None, quiet=True), modules


def scheduled(weights: Mapping[str, Any], epochs: int) -> dict[str, float | Schedule]:
    """Return weights as the loss takes them: shares of the training become epochs."""
    return {
        name: value
        if not isinstance(value, list)
        else Piecewise(
            tuple(round(share * epochs) for share, _ in value), tuple(float(w) for _, w in value)
        )
        for name, value in weights.items()
    }


def extra(
    frames: Sequence[LabelledStructure], method: Method, teacher: Path | None, seed: int
) -> list[LabelledStructure]:
    """Return strained and rattled copies of structures, with the teacher's word as labels."""
    generator, made = np.random.default_rng(seed), []
    for frame in frames:
        for copy in range(method.extra):
            atoms = distorted(frame.atoms, generator)
            made.append(LabelledStructure(f"{frame.structure_id}/extra{copy}", atoms))
    arrays = {name: torch.as_tensor(one) for name, one in to_arrays(made, labels=()).items()}
    predicted = HippynnTeacher(str(teacher)).predict_arrays(arrays, ("energy", "forces"))
    return [
        LabelledStructure(
            frame.structure_id,
            frame.atoms,
            {
                "energy": predicted["energy"][row],
                "forces": predicted["forces"][row][: len(frame.atoms)],
            },
        )
        for row, frame in enumerate(made)
    ]


def distorted(atoms: Atoms, generator: np.random.Generator) -> Atoms:
    """Return a copy with another cell and moved atoms."""
    atoms = atoms.copy()
    strain = np.eye(3) + generator.uniform(-DENSITY, DENSITY, (3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += generator.normal(scale=RATTLE, size=atoms.positions.shape)
    return atoms


def errors(model: Any, frames: Sequence[LabelledStructure]) -> dict[str, float]:
    """Return errors against labels: forces in eV/Å, energies in eV/atom."""
    arrays = {name: torch.as_tensor(one) for name, one in to_arrays(frames).items()}
    predicted = HippynnTeacher(model).predict_arrays(arrays, ("energy", "forces"))
    real = arrays["numbers"].numpy() != 0
    apart = (predicted["forces"] - arrays["forces"].numpy())[real]
    total = predicted["energy"] - arrays["energy"].numpy()[:, 0]
    per_atom = total / real.sum(axis=1)
    return {
        "force_rmse": float(np.sqrt(np.square(apart).mean())),
        "force_mae": float(np.abs(apart).mean()),
        "energy_rmse": float(np.sqrt(np.square(per_atom).mean())),
        "energy_mae": float(np.abs(per_atom).mean()),
    }
