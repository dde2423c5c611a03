"""What a step of distillation costs: the plain student, the teacher online, its targets cached.

    python benchmarks/step_overhead.py                      # the table of the README
    python benchmarks/step_overhead.py --turns 3 --layers 8

One process, one batch of 16 rattled slabs, small channels: it is the ratio of layers that counts.
The kinds of step are timed in turns, reading and collating included, and the best turn counts. A
host is a function that returns its steps by name; add one to `HOSTS`.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16
Steps = dict[str, Callable[[], None]]


def fairchem(folder: Path, layers: int) -> Steps:
    """Return steps of a 2-layer EquiformerV2 with CRACK and n2n over l = 0."""
    from kd_plugins.fairchem import compat

    compat.install()
    sys.path.insert(0, str(ROOT))
    from fairchem.core.common.utils import new_trainer_context

    from kd_plugins.teachers import label, read_structures
    from tests.fairchem import tiny

    data = tiny.write_database(folder / "train.db", [tiny.slab(index) for index in range(BATCH)])
    settings = tiny.config(folder, data)
    settings["optim"].update(batch_size=BATCH, max_epochs=0)
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
    kinds = {
        "plain": ("equiformerv2_forces", {}),
        "online": (ours, online),
        "cached": (ours, cached),
    }
    steps: Steps = {}
    for kind, (trainer, task) in kinds.items():
        run = {**copy.deepcopy(settings), "trainer": trainer, "task": task, "timestamp_id": kind}
        with new_trainer_context(config=run) as context:
            steps[kind] = step_of(context.trainer)
    return steps


def step_of(trainer: Any) -> Callable[[], None]:
    """Return what one turn of fairchem's training loop does, from the loader to the weights."""
    trainer.step = 1

    def step() -> None:
        trainer.model.train()
        batch = next(iter(trainer.train_loader))
        out = trainer._forward(batch)
        trainer._backward(trainer._compute_loss(out, batch))

    return step


HOSTS: dict[str, Callable[[Path, int], Steps]] = {"fairchem": fairchem}


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


def main() -> None:
    """Print one line a host."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--layers", type=int, default=20, help="of the teacher")
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
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
