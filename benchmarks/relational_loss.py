"""Speed and memory of CRACK's loss: the E x E form, torch's blocked cross entropy, kd_plugins.

    python benchmarks/relational_loss.py                                  # all sizes, one thread
    python benchmarks/relational_loss.py --edges 7500 --widths 128        # one row
    python benchmarks/relational_loss.py --edges 7500 --widths 128 --threads 1 2 --busy 2

Forward and backward over random graphs of 25 neighbours an atom, float32. Forms are timed in turns
in one process and the best turn counts, by the clock and in CPU time of all threads. Peak memory
is that of a process of its own, which runs one form once. A form that would need more than
``--limit`` GiB is left out. With ``--busy`` other processes compute beside it, which it starts and
ends, and the median turn counts; there ``OMP_WAIT_POLICY=passive`` in the environment, by which
threads sleep while they wait for each other, may make the blocked form ten times as fast.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_plugins import crack_loss
from kd_plugins.core._relations import choose_edges

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
NEIGHBOURS, TEMPERATURE = 25, 0.15
SHORTEST_EMBEDDING = SHORTEST_RELATION = 1e-3


def plain(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Tensor:
    """Algorithm 1 as it is written: all E x E logits."""
    rows, columns = _relations(student, teacher, edge_index)
    logits = rows @ columns.T / TEMPERATURE
    return (torch.logsumexp(logits, dim=1) - logits.diagonal()).mean()


def linear_cross_entropy(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Tensor:
    """The student's relations as the weight of a classifier with E classes, in chunks."""
    rows, columns = _relations(student, teacher, edge_index)
    target = torch.arange(len(rows))
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(rows / TEMPERATURE, columns, target, options=options)


def ours(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Tensor:
    """The loss of this package."""
    return crack_loss(student, teacher, edge_index, temperature=TEMPERATURE)


FORMS: dict[str, Loss] = {
    "plain": plain,
    "linear_cross_entropy": linear_cross_entropy,
    "ours": ours,
}

BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    sum(range(100_000))
"""
"""What another process computes, until this one ends."""


def _relations(student: Tensor, teacher: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relations that the teacher resolves, teacher's first."""
    first, second = choose_edges(edge_index, len(teacher), "undirected")
    units = [F.normalize(side, dim=1, eps=SHORTEST_EMBEDDING) for side in (teacher, student)]
    rows, columns = (side[first] - side[second] for side in units)
    kept = rows.norm(dim=1) >= SHORTEST_RELATION
    return tuple(F.normalize(side[kept], dim=1, eps=SHORTEST_RELATION) for side in (rows, columns))


def batch(n_edges: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings and both directions of ``n_edges / 2`` different pairs."""
    generator = torch.Generator().manual_seed(0)
    n_atoms = max(n_edges // NEIGHBOURS, math.ceil(math.sqrt(2 * n_edges)))
    pairs = torch.randint(n_atoms, (2, 2 * n_edges), generator=generator)
    pairs = pairs.sort(dim=0).values[:, pairs[0] != pairs[1]].unique(dim=1)
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)[: n_edges // 2]]
    student, teacher = torch.randn(2, n_atoms, width, generator=generator)
    return student.requires_grad_(), teacher, torch.cat([pairs, pairs.flip(0)], dim=1)


def step(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the gradient of the loss."""
    return torch.autograd.grad(loss(*inputs), inputs[0])[0]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep the machine busy with so many other processes."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def seconds(
    forms: list[str], n_edges: int, width: int, turns: int, choose: Callable[[list[float]], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the time and the CPU time of each form, chosen of its turns but for the first."""
    inputs = batch(n_edges, width)
    clocks = time.perf_counter, time.process_time
    taken: dict[str, list[list[float]]] = {form: [[], []] for form in forms}

    for turn in range(turns + 1):
        for form in forms:
            starts = [clock() for clock in clocks]
            step(FORMS[form], inputs)
            ends = [clock() for clock in clocks]

            if turn or turns == 1:
                for of_clock, start, end in zip(taken[form], starts, ends, strict=True):
                    of_clock.append(end - start)

    wall, cpu = ({form: choose(taken[form][place]) for form in forms} for place in (0, 1))
    return wall, cpu


def peak_memory(form: str, n_edges: int, width: int) -> float:
    """Return the MiB that one step takes on top of its inputs, in this process (Linux)."""
    step(FORMS[form], batch(64, 8))
    inputs = batch(n_edges, width)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = _status("VmRSS")
    step(FORMS[form], inputs)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """Return a line of the kernel's account of this process, in KiB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))


def memory_elsewhere(form: str, n_edges: int, width: int, threads: int) -> float:
    """Return the peak memory of a fresh process."""
    arguments = ["--edges", n_edges, "--widths", width, "--threads", threads, "--peak-of", form]
    command = [sys.executable, __file__, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def affordable(form: str, n_edges: int, width: int, limit: float) -> bool:
    """Return whether a form exists here and stays within the memory limit, and within a minute."""
    if form == "linear_cross_entropy":
        return hasattr(F, form) and n_edges**2 * width <= 2e11
    return form == "ours" or (4 * 4 * n_edges**2 <= limit * 2**30 and n_edges**2 * width <= 5e11)


def row(n_edges: int, width: int, threads: int, arguments: argparse.Namespace) -> str:
    """Return one line of the table; times and memory are ours, the others' as multiples of it."""
    forms = [form for form in FORMS if affordable(form, n_edges, width, arguments.limit)]
    turns = arguments.turns if n_edges <= 3e4 else 1
    choose = statistics.median if arguments.busy else min

    torch.set_num_threads(threads)
    with busy(arguments.busy):
        wall, cpu = seconds(forms, n_edges, width, turns, choose)
    peaks = {form: memory_elsewhere(form, n_edges, width, threads) for form in forms}

    cells = [f"{threads}", f"{n_edges:,}", f"{width:,}"]
    for values, unit in ((wall, "s"), (cpu, "s"), (peaks, "MiB")):
        others = [values.get(form, math.nan) / values["ours"] for form in list(FORMS)[:-1]]
        cells += [f"{values['ours']:.3g} {unit}", *(_times(ratio) for ratio in others)]
    return f"| {' | '.join(cells)} |"


def _times(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:.3g}x"


def main() -> None:
    """Print the table, or one peak for the process that fills it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edges", type=int, nargs="+", default=[256, 1000, 7500, 30000, 200000])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 6272])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside this one")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB")
    parser.add_argument("--peak-of", choices=FORMS)
    arguments = parser.parse_args()

    if arguments.peak_of:
        torch.set_num_threads(arguments.threads[0])
        print(peak_memory(arguments.peak_of, arguments.edges[0], arguments.widths[0]))
        return

    beside = f", beside {arguments.busy} busy processes" if arguments.busy else ""
    print(f"torch {torch.__version__}, CPU, float32{beside}")
    others = " | ".join(list(FORMS)[:-1])
    print(f"| threads | E | D | time | {others} | CPU time | {others} | memory | {others} |")
    print("|--:" * 12 + "|")
    for width in arguments.widths:
        for n_edges in arguments.edges:
            for threads in arguments.threads:
                print(row(n_edges, width, threads, arguments), flush=True)


if __name__ == "__main__":
    main()
