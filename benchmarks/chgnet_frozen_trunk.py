"""What training CHGNet's readout costs: CHGNet's Trainer, DistillTrainer, cached features.

    python benchmarks/chgnet_frozen_trunk.py --crystals ../shared/data/molecular_crystals/x23

Structures are random deformations of some X23 crystals with the teacher CHGNet + D3(BJ). Everything
is measured in one process on one core, steps of the three ways in turn, the best of several rounds;
the last lines are worked out from these rates.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from chgnet.trainer import Trainer
from torch.utils.data import DataLoader

from kd_plugins import TargetStore
from kd_plugins.chgnet import (
    CachedData,
    DistillData,
    DistillLoss,
    DistillTrainer,
    FitSettings,
    FrozenTrunk,
    Ratios,
    fit,
    freeze_except,
)
from kd_plugins.sampling import deformed_frames
from kd_plugins.structures import read_structures
from kd_plugins.teachers import label

CRYSTALS = ("urea", "formamide", "ethylcarbamate", "acetic_acid")
SOFT = {"energy": 1, "forces": 1, "stress": 0.1}
STEPS, BATCH, STRUCTURES = 16_000, 32, 200
"""Of the student that the last lines are about."""


@dataclass
class Rates:
    """Seconds a structure, of each kind of work."""

    label: float
    stock: float
    ours: float
    build: float
    cached: float


class Targets(torch.utils.data.Dataset):
    """The teacher's targets where CHGNet's Trainer looks for labels."""

    def __init__(self, data: DistillData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        graph, targets = self.data[index]
        return graph, {letter: targets[f"soft_{letter}"] for letter in "efs"}


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes, without what it prints."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        call()
    return time.perf_counter() - start


def make_structures(crystals: Path, count: int):
    """Yield the structures that are labelled."""
    for name in CRYSTALS:
        (structure,) = read_structures([crystals / f"{name}.cif"])
        yield from deformed_frames([replace(structure, labels={})], count, seed=0)


def student() -> CHGNet:
    """Return a pretrained student of which only the readout trains."""
    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(verbose=False)
    freeze_except(model)
    return model


def epoch(trainer: Trainer, data: torch.utils.data.Dataset) -> float:
    """Return the seconds of one epoch of training, without validation."""
    loader = DataLoader(data, 4, collate_fn=collate_graphs)
    return seconds(lambda: trainer._train(loader, 0))


def measure(crystals: Path, count: int, rounds: int, folder: Path, force_share: float) -> Rates:
    """Return all rates, the best of some rounds."""
    structures = list(make_structures(crystals, count))
    quantities = ("energy", "forces", "stress")
    labelling = seconds(
        lambda: label(structures, "chgnet+d3", folder / "store", quantities, progress=False)
    )
    data = DistillData(structures, TargetStore.open(folder / "store"), progress=False)
    trunk = FrozenTrunk(student())
    building = seconds(
        lambda: CachedData(data, trunk, folder / "x", force_share=force_share, progress=False)
    )
    cached = CachedData(data, trunk, folder / "x", force_share=force_share, progress=False)
    print(f"{len(data)} structures, {sum(sample.n_atoms for sample in data.samples)} atoms")
    print(f"features: {cached.size / len(data) / 1e6:.2f} MB a structure")
    ratios = {"energy_loss_ratio": 1, "force_loss_ratio": 1, "stress_loss_ratio": 0.1}

    with contextlib.redirect_stdout(io.StringIO()):
        stock = Trainer(student(), targets="efs", criterion="MAE", use_device="cpu", **ratios)
        ours = DistillTrainer(student(), soft=SOFT, use_device="cpu")

    loss, settings = DistillLoss(Ratios(soft=SOFT)), FitSettings(epochs=40, batch_size=len(data))
    once = cached.part([0])
    found = []

    for _ in range(rounds):
        found.append(
            (
                epoch(stock, Targets(data)),
                epoch(ours, data),
                seconds(
                    lambda: fit(trunk, cached, once, loss, settings, check=False, progress=False)
                )
                / settings.epochs,
            )
        )

    best = [min(times) / len(data) for times in zip(*found, strict=True)]
    return Rates(labelling / len(data), best[0], best[1], building / len(data), best[2])


def report(rates: Rates) -> None:
    """Print the table."""
    print("| a structure and step | ms | speed against CHGNet's Trainer |")
    print("|---|---|---|")
    rows = (("CHGNet's Trainer", rates.stock), ("DistillTrainer", rates.ours))

    for name, each in (*rows, ("cached features", rates.cached)):
        print(f"| {name} | {1000 * each:.2f} | {rates.stock / each:.2f} |")

    print(f"labels {rates.label:.2f} s, features {rates.build:.2f} s a structure")
    print(f"features pay off after {rates.build / (rates.stock - rates.cached):.0f} epochs")
    seen = STEPS * BATCH
    ours = STRUCTURES * (rates.label + rates.build) + seen * rates.cached
    stock = STRUCTURES * rates.label + seen * rates.stock
    print(
        f"{STEPS} steps of {BATCH} of {STRUCTURES} structures, labels and features included: "
        f"{ours / 60:.0f} min, with CHGNet's Trainer {stock / 3600:.1f} h, {stock / ours:.0f} times"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crystals", type=Path, required=True, help="folder of X23 CIFs")
    parser.add_argument("--count", type=int, default=4, help="structures of each crystal")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--force-share", type=float, default=1 / 3)
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        rates = measure(
            options.crystals, options.count, options.rounds, Path(folder), options.force_share
        )

    report(rates)


if __name__ == "__main__":
    main()
