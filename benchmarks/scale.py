"""How time, memory and disk grow with the number of structures: measured, and carried further.

    python benchmarks/scale.py                          # 10^3 and 10^4 structures of 16 atoms
    python benchmarks/scale.py --sizes 1000 10000 100000

Prints the tables of docs/scale.md. Times are the process' CPU time on one core, so that other work
on the machine does not count; neither does waiting for the disk. The slope is that of log(time)
over log(number) between the two largest sizes: 1 is linear, 0 does not grow. Costs of larger data
are those of the largest size here: kept where the slope is below 0.15, carried on linearly up to
1.15, by the slope beyond.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.sampling.selection import farthest_points
from kd_plugins.store import Manifest, Record, TargetStore
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.structures.readers import to_structure
from kd_plugins.teachers import label

CHUNK = 1000
"""Structures that are made at a time, so that making them is not measured."""
CHOSEN, WIDTH = 100, 64
"""Structures that `select` takes, and numbers that describe one."""
DTYPES = {"energy": "float64", "forces": "float32", "stress": "float32"}
LARGER = {"460k (fairchem, O*)": 460_000, "1.6 M (MPtrj)": 1_600_000, "10^8": 100_000_000}
Times = dict[str, float]


class Nothing:
    """A teacher that must not be needed."""

    quantities, fingerprint, versions = tuple(DTYPES), "random", {}
    name, device, batch_size = "random", "cpu", 1

    def predict(self, structures: Sequence[Atoms], quantities: Sequence[str]) -> list[dict]:
        """Fail, since every structure is in the store."""
        raise RuntimeError("a structure was labelled again")


def crystals(start: int, stop: int) -> Iterator[Atoms]:
    """Yield rattled cells of 16 copper atoms, each by its number."""
    cell = bulk("Cu", cubic=True) * (2, 2, 1)
    for index in range(start, stop):
        atoms = cell.copy()
        atoms.positions += np.random.default_rng(index).normal(scale=0.1, size=(16, 3))
        yield atoms


def names(size: int) -> list[str]:
    """Return the ids of so many structures."""
    return [f"structure-{index}/0" for index in range(size)]


def records(start: int, stop: int) -> list[Record]:
    """Return records with random targets."""
    generator = np.random.default_rng(start)
    return [
        Record(
            f"structure-{index}/0",
            to_structure(atoms),
            {
                "energy": torch.tensor(generator.normal()),
                "forces": torch.tensor(generator.normal(size=(16, 3))),
                "stress": torch.tensor(generator.normal(size=6)),
            },
        )
        for index, atoms in zip(range(start, stop), crystals(start, stop), strict=True)
    ]


@contextmanager
def timed(times: Times, name: str) -> Iterator[None]:
    """Add the CPU time of a block to a part's."""
    start = time.process_time()
    yield
    times[name] = times.get(name, 0.0) + time.process_time() - start


def measure(size: int, folder: Path) -> tuple[Times, dict[str, float]]:
    """Return the seconds of each part, and bytes, for one number of structures."""
    times: Times = {}
    store = TargetStore.create(folder / "store", Manifest("random", "random", DTYPES))
    with store.writer() as writer:
        for start in range(0, size, CHUNK):
            chunk = records(start, min(size, start + CHUNK))
            with timed(times, "store: write"):
                writer.append(store.pack(chunk))

    some = random.Random(0).sample(names(size), min(size, 2 * CHUNK))
    with timed(times, "store: random read"):
        for name in some:
            store.record(name)
    times["store: random read"] *= size / len(some)

    with timed(times, "store: look up an id that is there"):
        for name in some:
            assert name in store
    times["store: look up an id that is there"] *= size / len(some)

    with timed(times, "store: look up an id that is missing"):
        for name in some:
            assert f"no-{name}" not in store
    times["store: look up an id that is missing"] *= size / len(some)

    with timed(times, "store: all ids, in memory"):
        held = set(store.ids())
    tracemalloc.start()
    held = set(store.ids())
    id_bytes = tracemalloc.get_traced_memory()[0] / len(held)
    tracemalloc.stop()

    structures = (
        LabelledStructure(name, atoms)
        for name, atoms in zip(names(size), crystals(0, size), strict=True)
    )
    with timed(times, "label: all there already (structures made and compared)"):
        assert label(structures, Nothing(), store.folder, progress=False).skipped == size

    target = TargetStore.create(folder / "merged", store.manifest)
    with timed(times, "merge into an empty store"):
        target.merge([store])

    points = np.random.default_rng(0).normal(size=(size, WIDTH))
    with timed(times, f"select: {CHOSEN} of all, {WIDTH} numbers each"):
        farthest_points(points, CHOSEN)

    ase.io.write(folder / "all.extxyz", list(crystals(0, size)))
    with timed(times, "read_structures, extended xyz"):
        assert sum(1 for _ in read_structures([folder / "all.extxyz"])) == size

    if importlib.util.find_spec("fairchem"):
        starts(size, folder, store, times)
    files = list((folder / "store").iterdir())
    n_bytes = sum(path.stat().st_size for path in files if path.suffix == ".lmdb") / size
    return times, {"bytes": n_bytes, "files": len(files), "id bytes": id_bytes}


def starts(size: int, folder: Path, store: TargetStore, times: Times) -> None:
    """Measure what a start of fairchem with `targets: STORE` checks, without a note and with."""
    from kd_plugins.fairchem import compat

    compat.install()
    from fairchem.core.datasets.base_dataset import create_dataset

    from kd_plugins.fairchem.data import StoredTargets
    from kd_plugins.fairchem.matching import match

    with ase.db.connect(folder / "train.db") as database:
        for index, atoms in enumerate(crystals(0, size)):
            atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((16, 3)))
            database.write(atoms, data={"sid": f"structure-{index}", "fid": 0})
    with timed(times, "fairchem's own opening of the ASE database"):
        dataset = create_dataset({"format": "ase_db", "src": str(folder / "train.db")}, "train")

    targets, limit = StoredTargets(store, tuple(DTYPES)), 100
    for name in ("without a note", "with a note"):
        with timed(times, f"targets: STORE, start {name} (preflight {limit})"):
            match(targets, {"train": dataset}, limit, 0, torch.device("cpu"))


def slope(times: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the slope of log(time) over log(number) between the two largest sizes."""
    (a, b), (m, n) = times[-2:], sizes[-2:]
    return math.log(b / a) / math.log(n / m)


def carried_on(seconds: float, size: int, growth: float, larger: int) -> float:
    """Return the seconds of a larger number of structures."""
    # Slopes between 0 and 1 come of fixed costs, which a larger number makes small.
    exponent = 0.0 if growth < 0.15 else max(growth, 1.0) if growth > 1.15 else 1.0
    return seconds * (larger / size) ** exponent


def in_words(seconds: float) -> str:
    """Return a time with its unit, to two digits."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds * 1000:.0f} ms" if seconds > 0.01 else f"{seconds * 1000:.2g} ms"


def tables(sizes: Sequence[int], found: Sequence[tuple[Times, dict[str, float]]]) -> list[str]:
    """Return both tables."""
    columns = [f"{size:,}" for size in sizes]
    lines = [
        f"| one core | {' | '.join(columns)} | slope | {' | '.join(LARGER)} |",
        f"|---|{'--:|' * (len(sizes) + 1 + len(LARGER))}",
    ]
    for part in found[-1][0]:
        taken = [times[part] for times, _ in found]
        growth = slope(taken, sizes)
        more = [in_words(carried_on(taken[-1], sizes[-1], growth, n)) for n in LARGER.values()]
        here = [in_words(one) for one in taken]
        lines.append(f"| {part} | {' | '.join(here)} | {growth:.2f} | {' | '.join(more)} |")

    sizes_found = found[-1][1]
    lines += ["", f"| | each | {' | '.join(LARGER)} |", f"|---|{'--:|' * (1 + len(LARGER))}"]
    for title, key in (("disk of a store", "bytes"), ("memory of all ids", "id bytes")):
        each = sizes_found[key]
        more = [f"{each * n / 1e9:.3g} GB" for n in LARGER.values()]
        lines.append(f"| {title} | {each:.0f} bytes | {' | '.join(more)} |")
    files = f"{sizes_found['files']:.0f}"
    return [*lines, f"| files of a store, one writer | {files} | {' | '.join([files] * 3)} |"]


def main(print_line: Callable[[str], None] = print) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], metavar="N")
    sizes = sorted(parser.parse_args().sizes)
    if len(sizes) < 2 or sizes[0] < 1:
        raise SystemExit(f"--sizes: expected two numbers or more, for a slope, got {sizes}")

    torch.set_num_threads(1)
    found = []
    for size in sizes:
        print(f"{size} structures ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(size, Path(folder)))
    for line in tables(sizes, found):
        print_line(line)


if __name__ == "__main__":
    main()
