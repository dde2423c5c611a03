"""Tiny real fairchem runs: EMT-labelled Cu/Pt slabs with an O atom, small EquiformerV2 models."""

from __future__ import annotations

import copy
import logging
import os
import traceback
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.utils import new_trainer_context

from tests.ranks import end_rank

BACKBONE = {
    "model": "equiformer_v2_backbone",
    "use_pbc": True,
    "regress_forces": True,
    "otf_graph": True,
    "enforce_max_neighbors_strictly": False,
    "max_neighbors": 12,
    "max_radius": 5.0,
    "max_num_elements": 90,
    "num_layers": 2,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "norm_type": "layer_norm_sh",
    "lmax_list": [2],
    "mmax_list": [1],
    "grid_resolution": 8,
    "edge_channels": 8,
    "attn_activation": "silu",
    "ffn_activation": "silu",
    "alpha_drop": 0.0,
    "drop_path_rate": 0.0,
    "proj_drop": 0.0,
    "weight_init": "uniform",
}


def slab(index: int) -> ase.Atoms:
    """Return a rattled 5-atom slab with a fixed bottom layer, labelled by EMT."""
    generator = np.random.default_rng(index)
    atoms = fcc111("Cu", size=(2, 1, 2), vacuum=6.0)
    atoms.numbers[generator.integers(4)] = 78
    add_adsorbate(atoms, "O", height=1.5 + generator.random())
    atoms.pbc = True
    atoms.rattle(0.15, rng=generator)
    atoms.set_tags([0 if atom.tag == 2 else 2 if atom.symbol == "O" else 1 for atom in atoms])
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))
    atoms.info = {"sid": f"slab{index}", "fid": 0}
    return atoms


def write_database(path: Path, structures: list[ase.Atoms]) -> Path:
    """Write structures into an ASE database, with the sizes that fairchem balances batches by."""
    with ase.db.connect(path) as database:
        for atoms in structures:
            database.write(atoms, data=dict(atoms.info))
    np.savez(path.parent / "metadata.npz", natoms=[len(atoms) for atoms in structures])
    return path


def model(**changes: Any) -> dict[str, Any]:
    """Return a hydra EquiformerV2 with energy and force heads."""
    return {
        "name": "hydra",
        "backbone": {**BACKBONE, **changes},
        "heads": {
            "energy": {"module": "equiformerV2_scalar_head"},
            "forces": {"module": "equiformerV2_vector_head"},
        },
        "otf_graph": True,
        "pass_through_head_outputs": True,
    }


def config(folder: Path, train: Path, val: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Return what fairchem's command makes of a YAML."""
    a2g = {"a2g_args": {"r_energy": True, "r_forces": True, "r_fixed": True}}
    units = {"energy": {"mean": 5.0, "rmsd": 2.0}, "forces": {"mean": 0.0, "rmsd": 2.0}}
    dataset = {
        "train": {
            "format": "ase_db",
            "src": str(train),
            **a2g,
            "transforms": {"normalizer": units},
        },
    }
    if val is not None:
        dataset["val"] = {"format": "ase_db", "src": str(val), **a2g}
    return {
        "trainer": "equiformerv2_forces",
        "mode": "train",
        "identifier": "",
        "timestamp_id": "run",
        "run_dir": str(folder),
        "seed": 0,
        "cpu": True,
        "print_every": 1,
        "logger": "tensorboard",
        "is_debug": False,
        "checkpoint": None,
        "gp_gpus": None,
        "submit": False,
        "summit": False,
        "world_size": 1,
        "distributed_backend": "gloo",
        "hide_eval_progressbar": True,
        "task": {},
        "model": model(),
        "dataset": dataset,
        "outputs": {
            "energy": {"level": "system"},
            "forces": {
                "level": "atom",
                "train_on_free_atoms": True,
                "eval_on_free_atoms": True,
            },
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 1.0}},
            {"forces": {"fn": "l2mae", "coefficient": 10.0}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
            "primary_metric": "forces_mae",
        },
        "optim": {
            "batch_size": 2,
            "eval_batch_size": 2,
            "num_workers": 0,
            "lr_initial": 1e-3,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 1e-3},
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine",
                "warmup_factor": 0.2,
                "warmup_epochs": 0.5,
                "lr_min_factor": 0.01,
            },
            "max_epochs": 1,
            "clip_grad_norm": 100,
            "ema_decay": 0.9,
        },
        **changes,
    }


def distill(teacher: Path, terms: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the ``task`` block of a distillation."""
    block = {
        "teacher": {"checkpoint": str(teacher), "weights": "raw"},
        "student": {"initialize": "scratch"},
        "terms": ALL_TERMS if terms is None else terms,
    }
    return {"distill": copy.deepcopy({**block, **changes})}


ALL_TERMS = {
    "crack": {"weight": 1.0},
    "instance": {"weight": 0.5, "features": "each", "lmax": 1},
    "n2n": {"weight": 0.1, "features": "all", "distance": "squared_sum"},
    "atomic_energies": {"weight": 0.1, "distance": "squared_sum"},
    "energy": {"weight": 0.1, "distance": "absolute_sum"},
    "forces": {"weight": 0.1, "distance": "norm"},
    "hessian": {"weight": 0.01, "distance": "squared_sum", "step": 0.005, "probes": 1},
}


QUANTITIES = ("energy", "forces", "atomic_energies", "node_embeddings", "equivariant_embeddings")
"""What the terms that a store can hold compare."""


def teacher_name(teacher: Path) -> str:
    """Return the teacher's name, as for `kd-plugins label`."""
    return f"eqv2 checkpoint={teacher} weights=raw"


def without_weights(terms: dict[str, Any]) -> dict[str, Any]:
    """Return the terms with every weight 0."""
    return {name: {**settings, "weight": 0.0} for name, settings in terms.items()}


def run(settings: dict[str, Any], then: Any = None) -> Any:
    """Run fairchem's own train (or validate) task; return ``then(trainer)``."""
    try:
        return _run(settings, then)
    except BaseException as error:
        _forget_trainer(error)
        raise
    finally:
        if gp_utils.initialized():
            gp_utils.cleanup_gp()
        distutils.cleanup()  # fairchem leaves its process groups open after an error


def _run(settings: dict[str, Any], then: Any) -> Any:
    with new_trainer_context(config=settings) as context:
        context.task.setup(context.trainer)
        context.task.run()
        return then(context.trainer) if then else None


def _forget_trainer(error: BaseException | None) -> None:
    """Free the trainer, which the error's frames hold, while its process group is still open.

    Where DistributedDataParallel is the last to let a group of torch 2.4 go, it waits for the
    group's threads, and they may wait for the interpreter, which is waiting.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def run_rank(rank: int, port: int, settings: dict[str, Any], then: Any = None) -> None:
    """Run one of several ranks in a process of its own, and end that process."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="localhost", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank)
    )
    with new_trainer_context(config=settings) as context:
        context.task.setup(context.trainer)
        context.task.run()
        if then is not None:
            then(context.trainer)
        logging.shutdown()
        end_rank()


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """Return copies of the student's parameters."""
    named = trainer._unwrapped_model.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in named}


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)
