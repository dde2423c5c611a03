"""What a step costs that trains all of CHGNet's layers on a CPU: seconds and memory, by batch.

    python benchmarks/chgnet_all_layers.py --crystals ../shared/data/molecular_crystals/x23

Structures are random deformations of some X23 crystals with CHGNet's own values as targets. Seconds
are those of one core (of this process, so that others on the machine do not count), the best of
two steps. Memory is the most that the process ever held, so batches grow.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet

from kd_plugins import TargetStore
from kd_plugins.chgnet import DistillData, DistillLoss, Ratios, freeze_except
from kd_plugins.sampling import deformed_frames
from kd_plugins.structures import read_structures
from kd_plugins.teachers import label

CRYSTALS = ("co2", "urea", "formamide", "cyanamide", "imidazole")
QUANTITIES = ("energy", "forces", "stress")


def make_data(crystals: Path, count: int, model: CHGNet, folder: Path) -> DistillData:
    """Return deformed crystals, each kind in turn, with targets."""
    start = [
        replace(next(read_structures([crystals / f"{name}.cif"])), structure_id=name, labels={})
        for name in CRYSTALS
    ]
    structures = list(deformed_frames(start, -(-count // len(start)), seed=0))
    label(structures, "chgnet", folder / "store", QUANTITIES, progress=False)
    store = TargetStore.open(folder / "store")
    converter = model.graph_converter
    return DistillData(structures, store, converter=converter, progress=False)


def step(model: CHGNet, loss: DistillLoss, optimizer: torch.optim.Optimizer, batch: list) -> float:
    """Take a step as DistillTrainer does; return its seconds."""
    graphs, targets = collate_graphs(batch)
    for graph in graphs:
        graph.atom_frac_coord.requires_grad = True

    start = time.process_time()
    value = loss(targets, model(graphs, task="efs"))["loss"]
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crystals", type=Path, required=True, help="folder of the X23 crystals")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)

    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(verbose=False, use_device="cpu")
    freeze_except(model, "all")
    loss = DistillLoss(Ratios(soft={"energy": 1, "forces": 1, "stress": 0.1}))
    loss.parameters_to_train = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(loss.parameters_to_train, 1e-3)

    with tempfile.TemporaryDirectory() as folder:
        data = make_data(options.crystals, max(options.batches), model, Path(folder))

    print("| batch | atoms | s a structure and step | memory (GB) |\n|---|---|---|---|")
    for size in sorted(options.batches):
        # Those of one crystal follow each other, so every few.
        chosen = range(len(data))[:: len(data) // size][:size]
        batch = [data[place] for place in chosen]
        seconds = min(step(model, loss, optimizer, batch) for _ in range(2))
        n_atoms = sum(data.samples[place].n_atoms for place in chosen)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        print(f"| {size} | {n_atoms} | {seconds / size:.2f} | {memory:.1f} |", flush=True)


if __name__ == "__main__":
    main()
