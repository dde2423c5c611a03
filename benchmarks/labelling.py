"""Measure labelling and the store: throughput, batch sizes, writing and reading.

    python benchmarks/labelling.py [--structures 10000] [--repeats 3] [--device auto]

Each figure is the best of some repeats. What is compared runs in turn in this one process.
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

TEACHERS = (("emt", 400), ("chgnet", 60))
"""Names, and numbers of structures that take some seconds on a CPU."""

QUANTITIES = ("energy", "forces", "stress")
BATCH_SIZES = (1, 4, 16)


def crystals(count: int) -> list[LabelledStructure]:
    """Return rattled 16-atom cells of copper and nickel."""
    made = []
    for index in range(count):
        atoms = bulk(("Cu", "Ni")[index % 2], cubic=True) * (2, 2, 1)
        atoms.rattle(0.1, seed=index)
        made.append(LabelledStructure(f"crystal-{index}", atoms))
    return made


def bare_loop(calculator: Any, structures: Sequence[Atoms]) -> None:
    """Compute the same as the labeller, and keep nothing."""
    for atoms in structures:
        atoms.calc = calculator
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        atoms.calc = None


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput(
    name: str, count: int, repeats: int, device: str = "auto"
) -> tuple[float, float, str]:
    """Return structures a second of the bare loop and of the labeller, and the device."""
    structures, teacher = crystals(count), load_teacher(name, device)
    if not isinstance(teacher, CalculatorTeacher):
        raise SystemExit(f"{name} is no ASE calculator")

    atoms = [one.atoms for one in structures]
    bare, labelled = [], []
    for _ in tqdm(range(repeats), f"throughput with {name}"):
        bare.append(seconds(lambda: bare_loop(teacher.calculator, atoms)))
        with tempfile.TemporaryDirectory() as folder:
            run = lambda: label(structures, teacher, folder, QUANTITIES, progress=False)  # noqa: B023, E731
            labelled.append(seconds(run))
    return count / min(bare), count / min(labelled), teacher.device


def batch_seconds(name: str, repeats: int, device: str = "auto") -> dict[int, float]:
    """Return batch size to the process' CPU seconds a structure, of 16 structures.

    CPU time, because it is the same on a machine that others use too; on a GPU it is not the time
    that counts.
    """
    teacher = load_teacher(name, device)
    atoms = [one.atoms for one in crystals(16)]
    times: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for _ in tqdm(range(repeats), f"batches with {name}"):
        for size, found in times.items():
            teacher.batch_size = size  # type: ignore[misc]  # in which a native teacher splits
            start = time.process_time()
            teacher.predict(atoms, QUANTITIES)
            found.append((time.process_time() - start) / len(atoms))
    return {size: min(found) for size, found in times.items()}


def records(count: int) -> list[Record]:
    """Return records of 16-atom structures with random targets."""
    generator = np.random.default_rng(0)
    return [
        Record(
            one.structure_id,
            to_structure(one.atoms),
            {
                "energy": torch.tensor(generator.normal()),
                "forces": torch.tensor(generator.normal(size=(16, 3))),
                "stress": torch.tensor(generator.normal(size=6)),
            },
        )
        for one in crystals(count)
    ]


def store_costs(count: int, repeats: int) -> dict[str, float]:
    """Return seconds to write, read and check ``count`` structures, and bytes a structure."""
    content, costs = records(count), {"write": [], "read": [], "check": []}
    # Read in random order, as a data loader does.
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
    """Write all records, a thousand at a time."""
    with store.writer() as writer:
        for start in range(0, len(content), batch):
            writer.append(store.pack(content[start : start + batch]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--structures", type=int, default=10_000, help="in the store's part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    repeats, device = arguments.repeats, arguments.device

    print("| teacher | device | bare loop (1/s) | labelling (1/s) | ratio |\n|---|---|---|---|---|")
    for name, count in TEACHERS:
        bare, labelled, where = throughput(name, count, repeats, device if name != "emt" else "cpu")
        print(f"| {name} | {where} | {bare:.0f} | {labelled:.0f} | {labelled / bare:.2f} |")

    by_size = batch_seconds("chgnet", repeats, device)
    print("\n| batch size of chgnet | CPU time a structure |\n|---|---|")
    for size, each in by_size.items():
        print(f"| {size} | {each:.3f} s |")

    costs = store_costs(arguments.structures, repeats)
    each = {name: costs[name] / arguments.structures * 1e6 for name in ("write", "read", "check")}
    print(f"\n{arguments.structures} structures of 16 atoms, energy, forces, stress:")
    print("| write | random read | random read and check | size |\n|---|---|---|---|")
    print(
        f"| {each['write']:.0f} µs | {each['read']:.0f} µs | {each['check']:.0f} µs "
        f"| {costs['bytes']:.0f} bytes |"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
