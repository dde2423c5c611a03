"""What labelling and the store cost: throughput against the bare calculator, writing, reading.

    python benchmarks/labelling.py [--structures 10000] [--repeats 3]

Each figure is the best of some repeats; what is compared is run in turn in this one process.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from tqdm import tqdm

from kd_plugins import TargetStore
from kd_plugins.store import Manifest, Record
from kd_plugins.structures import LabelledStructure
from kd_plugins.structures.readers import to_structure
from kd_plugins.teachers import CalculatorTeacher, label, load_teacher

QUANTITIES = ("energy", "forces", "stress")


def crystals(count: int) -> list[LabelledStructure]:
    """Return rattled 16-atom cells of copper and nickel."""
    frames = []
    for index in range(count):
        atoms = bulk(("Cu", "Ni")[index % 2], cubic=True) * (2, 2, 1)
        atoms.rattle(0.1, seed=index)
        frames.append(LabelledStructure(f"crystal-{index}", atoms))
    return frames


def bare_loop(calculator: Any, structures: Sequence[Atoms]) -> None:
    """Compute what the labeller would, and forget it."""
    for atoms in structures:
        atoms.calc = calculator
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        atoms.calc = None


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput(name: str, count: int, repeats: int) -> tuple[float, float]:
    """Return structures a second of the bare loop and of the labeller, run in turn."""
    frames, teacher = crystals(count), load_teacher(name)
    if not isinstance(teacher, CalculatorTeacher):
        raise SystemExit(f"{name} is no ASE calculator")
    structures = [frame.atoms for frame in frames]
    bare, labelled = [], []
    for _ in tqdm(range(repeats), f"throughput with {name}"):
        bare.append(seconds(lambda: bare_loop(teacher.calculator, structures)))
        with tempfile.TemporaryDirectory() as folder:
            run = lambda: label(frames, teacher, folder, QUANTITIES, progress=False)  # noqa: B023, E731
            labelled.append(seconds(run))
    return count / min(bare), count / min(labelled)


def records(count: int) -> list[Record]:
    """Return records of 16-atom structures with random targets."""
    generator = np.random.default_rng(0)
    return [
        Record(
            frame.structure_id,
            to_structure(frame.atoms),
            {
                "energy": torch.tensor(generator.normal()),
                "forces": torch.tensor(generator.normal(size=(16, 3))),
                "stress": torch.tensor(generator.normal(size=6)),
            },
        )
        for frame in crystals(count)
    ]


def store_costs(count: int, repeats: int) -> dict[str, float]:
    """Return seconds to write, read and check so many structures, and bytes a structure."""
    content, costs = records(count), {"write": [], "read": [], "check": []}
    shuffled = random.Random(0).sample(content, count)
    dtypes = {"energy": "float64", "forces": "float32", "stress": "float32"}
    for _ in tqdm(range(repeats), "store"):
        with tempfile.TemporaryDirectory() as folder:
            store = TargetStore.create(folder, Manifest("random", "random", dtypes))
            costs["write"].append(seconds(lambda: write(store, content)))  # noqa: B023
            costs["read"].append(
                seconds(lambda: [store[record.structure_id] for record in shuffled])  # noqa: B023
            )
            check = lambda: [store.read(r.structure_id, r.structure) for r in shuffled]  # noqa: B023, E731
            costs["check"].append(seconds(check))
            size = sum(path.stat().st_size for path in Path(folder).glob("*.lmdb"))
    return {**{name: min(times) for name, times in costs.items()}, "bytes": size / count}


def write(store: TargetStore, content: Sequence[Record], batch: int = 1000) -> None:
    """Write all, a thousand at a time."""
    with store.writer() as writer:
        for start in range(0, len(content), batch):
            writer.append(store.pack(content[start : start + batch]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--structures", type=int, default=10_000, help="in the store's part")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = [(name, *throughput(name, n, arguments.repeats)) for name, n in TEACHERS]
    costs = store_costs(arguments.structures, arguments.repeats)
    print("| teacher | bare loop (1/s) | labelling (1/s) | ratio |\n|---|---|---|---|")
    for name, bare, labelled in rows:
        print(f"| {name} | {bare:.0f} | {labelled:.0f} | {labelled / bare:.2f} |")
    each = {name: costs[name] / arguments.structures * 1e6 for name in ("write", "read", "check")}
    print(f"\n{arguments.structures} structures of 16 atoms, energy, forces, stress:")
    print("| write | random read | random read and check | size |\n|---|---|---|---|")
    print(
        f"| {each['write']:.0f} µs | {each['read']:.0f} µs | {each['check']:.0f} µs "
        f"| {costs['bytes']:.0f} bytes |"
    )


TEACHERS = (("emt", 400), ("chgnet", 60))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
