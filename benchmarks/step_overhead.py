"""What a step of distillation costs: the plain student, the teacher online, its targets cached.

    python benchmarks/step_overhead.py                      # the table of the README
    python benchmarks/step_overhead.py --turns 3 --layers 8 --hosts fairchem
    python benchmarks/step_overhead.py --epochs 96 --turns 5     # whole epochs of fairchem

One process, one batch of 16. fairchem: rattled slabs, small channels, as it is the ratio of layers
that counts. CHGNet: rattled salts of 16 atoms; its readout learns from CHGNet + D3, whose
calculator goes over the batch one by one before the plain step to be online. hippynn: rattled cells
of 54 atoms; the teacher has the size of Matin et al. 2025.
With `--epochs N` fairchem's loop goes over N structures, with its loader and metrics, and with 0
and 2 processes that load: plainly, with targets that are read without a weight, and with the loss.
The kinds of step are timed in turns, reading and collating included, and the best turn counts. A
host is a function that returns its steps by name; add one to `HOSTS`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk

from kd_plugins.structures import LabelledStructure

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16
SOFT = {"energy": 1, "forces": 1, "stress": 0.1}
"""CHGNet's."""
Steps = dict[str, Callable[[], None]]


def fairchem(folder: Path, layers: int) -> Steps:
    """Return steps of a 2-layer EquiformerV2 with CRACK and n2n over l = 0."""
    return {kind: epoch_of(trainer) for kind, trainer in trainers(folder, layers).items()}


def fairchem_epochs(folder: Path, layers: int, structures: int, workers: int) -> Steps:
    """Return whole epochs: plain, with targets that are read without a weight, and with a loss."""
    made = trainers(folder, layers, structures, workers, ("plain", "read", "cached"))
    return {kind: epoch_of(trainer) for kind, trainer in made.items()}


def trainers(
    folder: Path,
    layers: int,
    structures: int = BATCH,
    workers: int = 0,
    wanted: tuple[str, ...] = ("plain", "online", "cached"),
) -> dict[str, Any]:
    """Return fairchem's trainers of some structures, by the kind of their steps."""
    from kd_plugins.fairchem import compat

    compat.install()
    sys.path.insert(0, str(ROOT))
    from fairchem.core.common.utils import new_trainer_context

    from kd_plugins.structures import read_structures
    from kd_plugins.teachers import label
    from tests.fairchem import tiny

    data = tiny.write_database(
        folder / "train.db", [tiny.slab(index) for index in range(structures)]
    )
    settings = tiny.config(folder, data)
    settings["optim"].update(batch_size=BATCH, max_epochs=0, num_workers=workers)
    settings["optim"]["scheduler_params"]["warmup_epochs"] = 1.0
    teaching = {**settings, "model": tiny.model(num_layers=layers), "timestamp_id": "teacher"}
    tiny.run(teaching, lambda trainer: trainer.save())
    checkpoint = folder / "checkpoints" / "teacher" / "checkpoint.pt"
    name, store = f"eqv2 checkpoint={checkpoint} weights=raw", folder / "targets"
    label(
        read_structures([data]),
        name,
        store,
        {"energy": "float32", "forces": "float32", "node_embeddings": "float16"},
        progress=False,
    )
    terms = {
        "crack": {"weight": 1.0},
        "n2n": {"weight": 1.0, "features": "l0", "distance": "squared_sum"},
    }
    online = tiny.distill(checkpoint, terms)
    cached = copy.deepcopy(online)
    del cached["distill"]["teacher"]
    cached["distill"]["targets"] = str(store)
    ours = "kd_plugins.fairchem.EqV2DistillTrainer"
    unweighted = copy.deepcopy(cached)
    for term in unweighted["distill"]["terms"].values():
        term["weight"] = 0.0
    kinds = {
        "plain": ("equiformerv2_forces", {}),
        "online": (ours, online),
        "read": (ours, unweighted),
        "cached": (ours, cached),
    }
    made: dict[str, Any] = {}
    for kind in wanted:
        trainer, task = kinds[kind]
        run = {**copy.deepcopy(settings), "trainer": trainer, "task": task, "timestamp_id": kind}
        with new_trainer_context(config=run) as context:
            made[kind] = context.trainer
    return made


def epoch_of(trainer: Any) -> Callable[[], None]:
    """Return what fairchem's training loop does in an epoch, from the loader to the weights."""
    trainer.step = 1

    def epoch() -> None:
        trainer.model.train()
        for batch in trainer.train_loader:
            out = trainer._forward(batch)
            loss = trainer._compute_loss(out, batch)
            trainer._compute_metrics(out, batch, trainer.evaluator, metrics={})
            trainer._backward(loss)

    return epoch


def chgnet(folder: Path, layers: int) -> Steps:
    """Return steps of CHGNet's readout; the teacher's layers are its own, whatever is asked for."""
    from chgnet.data.dataset import collate_graphs
    from chgnet.model import CHGNet
    from chgnet.trainer import Trainer
    from torch.utils.data import DataLoader

    from kd_plugins import TargetStore
    from kd_plugins.chgnet import DistillData, DistillTrainer, freeze_except
    from kd_plugins.teachers import label, load_teacher

    frames, teacher = list(salts()), load_teacher("chgnet+d3")
    quantities = tuple(SOFT)
    label(frames, teacher, folder / "store", quantities, progress=False)
    data = DistillData(frames, TargetStore.open(folder / "store"), hard=quantities, progress=False)
    students = [CHGNet.load(verbose=False, use_device="cpu") for _ in range(2)]
    for student in students:
        freeze_except(student)
    ratios = {"energy_loss_ratio": 1, "force_loss_ratio": 1, "stress_loss_ratio": 0.1}
    host = {"use_device": "cpu", "print_freq": 1000}
    plain = Trainer(students[0], targets="efs", criterion="MAE", **ratios, **host)
    ours = DistillTrainer(students[1], soft=SOFT, **host)
    loader = DataLoader(data, BATCH, collate_fn=collate_graphs)

    def step(trainer: Trainer) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer._train(loader, 0)

    def online() -> None:
        for frame in frames:
            teacher(frame.atoms, quantities)
        step(plain)

    return {"plain": lambda: step(plain), "online": online, "cached": lambda: step(ours)}


def salts() -> Iterator[LabelledStructure]:
    """Yield a batch of rattled NaCl cells of 16 atoms, labelled by numbers that nobody looks at."""
    for index in range(BATCH):
        atoms = bulk("NaCl", "rocksalt", 5.6) * (2, 2, 2)
        atoms.rattle(0.1, seed=index)
        forces = np.random.default_rng(index).normal(size=(len(atoms), 3))
        labels = {"energy": np.array(-54.0), "forces": forces, "stress": np.zeros(6)}
        yield LabelledStructure(f"salt{index}", atoms, labels)


def hippynn(folder: Path, layers: int) -> Steps:
    """Return steps of a light HIPNN on energies and forces, and on a teacher's atomic energies.

    The teacher's atom layers are the four of Matin et al. 2025, whatever is asked for.
    """
    from hippynn.databases import Database
    from hippynn.experiment import assemble_for_training
    from hippynn.experiment.step_functions import get_step_function

    from kd_plugins.hippynn import (
        CONTROL,
        STUDENT,
        HippynnTeacher,
        add_teacher_targets,
        distillation_loss,
        to_arrays,
    )

    arrays = to_arrays(metals())
    teacher = HippynnTeacher(hipnn(width=128, sensitivities=40, layers=4)[0])
    steps: Steps = {}
    for kind, weights in (("plain", CONTROL), ("cached", STUDENT)):
        nodes = hipnn(width=24, sensitivities=16, layers=2)
        loss = distillation_loss(*nodes, weights=weights, energies="total")
        modules, info = assemble_for_training(loss.train, dict(loss.validation))
        data = Database(arrays, None, None, seed=0, quiet=True)
        data.split_the_rest("train")
        if kind == "cached":
            add_teacher_targets(data, teacher, align=True)
        data.inputs, data.targets = info["inputs"], info["targets"]
        optimizer = torch.optim.Adam(modules.model.parameters(), lr=1e-3)
        steps[kind] = hippynn_step(modules, data, optimizer, get_step_function(optimizer))

    def online() -> None:
        teacher({name: torch.as_tensor(one) for name, one in arrays.items()}, ["atomic_energies"])
        steps["cached"]()

    return {**steps, "online": online}


def hippynn_step(modules: Any, data: Any, optimizer: Any, take: Any) -> Callable[[], None]:
    """Return what one turn of hippynn's training loop does."""

    def step() -> None:
        modules.model.train()
        (batch,) = data.make_generator("train", "train", BATCH)
        take(
            optimizer,
            modules.model,
            modules.loss,
            batch[: len(data.inputs)],
            batch[-len(data.targets) :],
        )

    return step


def hipnn(width: int, sensitivities: int, layers: int) -> tuple[Any, Any]:
    """Return the energy and force nodes of a HIPNN with a cutoff of 5 Å."""
    from hippynn.graphs import inputs, networks, physics, targets

    sizes = {
        "possible_species": [0, 42],
        "n_features": width,
        "n_sensitivities": sensitivities,
        "dist_soft_min": 1.5,
        "dist_soft_max": 4.5,
        "dist_hard_max": 5.0,
        "n_interaction_layers": 1,
        "n_atom_layers": layers,
    }
    positions = inputs.PositionsNode(db_name="positions")
    nodes = (inputs.SpeciesNode(db_name="numbers"), positions, inputs.CellNode(db_name="cell"))
    network = networks.HipnnVec("hipnn", nodes, periodic=True, module_kwargs=sizes)
    energy = targets.HEnergyNode("energy", network, db_name="energy")
    return energy, physics.GradientNode("forces", (energy, positions), sign=-1, db_name="forces")


def metals() -> Iterator[LabelledStructure]:
    """Yield a batch of rattled molybdenum cells of 54 atoms, labelled likewise."""
    for index in range(BATCH):
        atoms = bulk("Mo", cubic=True) * (3, 3, 3)
        atoms.rattle(0.1, seed=index)
        forces = np.random.default_rng(index).normal(size=(len(atoms), 3))
        labels = {"energy": np.array(-540.0), "forces": forces}
        yield LabelledStructure(f"metal{index}", atoms, labels)


HOSTS: dict[str, Callable[[Path, int], Steps]] = {
    "fairchem": fairchem,
    "chgnet": chgnet,
    "hippynn": hippynn,
}


def seconds(steps: Steps, turns: int) -> dict[str, float]:
    """Return the best time of each kind, taken in turns after one turn that does not count."""
    best = dict.fromkeys(steps, math.inf)
    for turn in range(turns + 1):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                best[kind] = min(best[kind], time.perf_counter() - start)
    return best


def epoch_lines(layers: int, structures: int, turns: int) -> list[str]:
    """Return a table of whole epochs of fairchem."""
    lines = [
        "| loading processes | plain epoch | targets read / plain | with CRACK + n2n / plain |",
        "|--:|--:|--:|--:|",
    ]
    for workers in (0, 2):
        with tempfile.TemporaryDirectory() as folder:
            best = seconds(fairchem_epochs(Path(folder), layers, structures, workers), turns)
        plain = best["plain"]
        ratios = f"{best['read'] / plain:.3f}x | {best['cached'] / plain:.3f}x"
        lines.append(f"| {workers} | {plain:.3g} s | {ratios} |")
    return lines


def main() -> None:
    """Print one line a host."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--layers", type=int, default=20, help="of the teacher")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of N structures, fairchem")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.epochs:
        logging.disable()  # fairchem prints each of its settings
        lines = epoch_lines(arguments.layers, arguments.epochs, arguments.turns)
        print("\n".join(lines))
        return
    lines = ["| host | plain step | cached / plain | online / cached |", "|---|--:|--:|--:|"]
    for host in arguments.hosts:
        with tempfile.TemporaryDirectory() as folder:
            best = seconds(HOSTS[host](Path(folder), arguments.layers), arguments.turns)
        cached, online = best["cached"], best["online"]
        ratios = f"{cached / best['plain']:.3f}x | {online / cached:.2f}x"
        lines.append(f"| {host} | {best['plain']:.3g} s | {ratios} |")
    logging.disable()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
