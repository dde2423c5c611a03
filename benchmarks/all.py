"""The figures that this project promises, measured in one run and set beside their goals.

    python benchmarks/all.py               # minutes; in the environment that has fairchem
    python benchmarks/all.py --small       # seconds, of sizes that show nothing but that it runs

What is compared is timed in turns in this one process and the best turn counts, so a ratio holds on
a machine that is busy, too, if not to the last per cent.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import labelling
import relational_loss
import scale
import step_overhead
import torch

from kd_plugins.store import Manifest, TargetStore


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        edges: relations of CRACK's loss.
        labelled: structures that EMT labels.
        epoch: structures of an epoch of fairchem.
        layers: of its teacher.
        workers: processes that load.
        started: structures of a start with stored targets.
        turns: of each comparison.
    """

    edges: int = 7062
    labelled: int = 400
    epoch: int = 96
    layers: int = 20
    workers: tuple[int, ...] = (0, 2)
    started: int = 10_000
    turns: int = 5


SMALL = Sizes(512, 24, 16, 1, (0,), 40, 1)
Row = tuple[str, str, str]


def losses(sizes: Sizes) -> Iterator[Row]:
    """Yield CRACK's loss against plain torch with one thread and with two, and its memory."""
    for threads, goal in ((1, "11x"), (2, "at least 10x")):
        torch.set_num_threads(threads)
        taken, _ = relational_loss.seconds(["plain", "ours"], sizes.edges, 128, sizes.turns, min)
        name = f"`crack_loss`, E {sizes.edges:,}, D 128, {threads} thread{'s' * (threads > 1)}"
        yield f"{name}, plain / ours", f"{taken['plain'] / taken['ours']:.1f}x", goal

    torch.set_num_threads(1)
    edges = min(1000, sizes.edges)
    peaks = {
        form: relational_loss.memory_elsewhere(form, edges, 128, 1) for form in ("plain", "ours")
    }
    measured = f"{peaks['ours']:.0f} MiB, plain {peaks['plain']:.0f}"
    yield f"memory at E = {edges:,}", measured, "at most plain's"


def steps(sizes: Sizes) -> Iterator[Row]:
    """Yield whole epochs of fairchem with cached CRACK + n2n against plain ones."""
    for workers in sizes.workers:
        with tempfile.TemporaryDirectory() as folder:
            epochs = step_overhead.fairchem_epochs(Path(folder), sizes.layers, sizes.epoch, workers)
            best = step_overhead.seconds(epochs, sizes.turns)
        read, whole = best["read"] / best["plain"], best["cached"] / best["plain"]
        name = f"fairchem epoch with cached CRACK + n2n / plain, {workers} loading processes"
        yield name, f"{whole:.3f} (targets read only: {read:.3f})", "at most 1.05"


def labels(sizes: Sizes) -> Iterator[Row]:
    """Yield labelling with EMT against its bare loop."""
    bare, labelled, _ = labelling.throughput("emt", sizes.labelled, sizes.turns, "cpu")
    yield "labelling with EMT / bare loop", f"{labelled / bare:.2f}", "at least 0.95"


def starts(sizes: Sizes) -> Iterator[Row]:
    """Yield what a start with stored targets checks, without a note and with one."""
    times: scale.Times = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest("random", "random", scale.DTYPES)
        store = TargetStore.create(Path(folder) / "store", manifest)
        store.append(scale.records(0, sizes.started))
        scale.starts(sizes.started, Path(folder), store, times)
    for name, seconds in times.items():
        if name.startswith("targets"):
            goal = "seconds, however many" if "with a note" in name else ""
            yield f"{name}, {sizes.started:,} structures", scale.in_words(seconds), goal


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="that it runs, in seconds")
    sizes = SMALL if parser.parse_args().small else Sizes()

    logging.disable()  # fairchem prints each of its settings
    rows = [row for part in (losses, steps, labels, starts) for row in part(sizes)]
    print(f"torch {torch.__version__}, CPU\n| what | measured | goal |\n|---|--:|--:|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
