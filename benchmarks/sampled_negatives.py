"""What sampled negatives change: CRACK's loss and its gradient beside those of all negatives.

    python benchmarks/sampled_negatives.py                              # three sizes
    python benchmarks/sampled_negatives.py --edges 20000                # the table of docs/loss.md

Graphs as of `relational_loss.py`, of D = 128. Embeddings are ``independent``, so that similarities
are small, or ``alike``: the teacher's have 8 dimensions and the student's are near them, as after a
training, so that few keys make up most of a sum. For each K, over draws: how far the mean loss is
from that of all, and its spread; the part of the gradient's error that stays in the mean over
draws (the bias), and the error of one draw, both beside the gradient of all; and the CPU time of a
loss and its gradient as a multiple of that of all, the best of some turns of both.
"""

from __future__ import annotations

import argparse
import time

import torch
from relational_loss import batch
from torch import Tensor
from torch.nn import functional as F

from kd_plugins import Crack
from kd_plugins.core import SampledNegatives, masked_mean

WIDTH, DIMENSIONS, NOISE = 128, 8, 0.3
TURNS = 3

Sides = tuple[Tensor, Tensor, Tensor]
Found = tuple[Tensor, Tensor, float]


def independent(n_edges: int) -> Sides:
    """Return a student that has nothing to do with its teacher, and edges."""
    return batch(n_edges, WIDTH)


def alike(n_edges: int) -> Sides:
    """Return a teacher of few dimensions, a student near it, and edges."""
    noise, other, edge_index = batch(n_edges, WIDTH)
    teacher = other[:, :DIMENSIONS] @ F.normalize(other[:DIMENSIONS], dim=1)
    scale = NOISE * teacher.norm() / noise.detach().norm()
    return (teacher + scale * noise.detach()).requires_grad_(), teacher, edge_index


def run(crack: Crack, sides: Sides, step: int) -> Found:
    """Return the loss, its gradient and the CPU seconds that both took."""
    start = time.process_time()
    losses, _ = crack(*sides, step=step)
    loss = masked_mean(losses)
    (gradient,) = torch.autograd.grad(loss, sides[0])
    return loss.detach(), gradient, time.process_time() - start


def row(crack: Crack, sides: Sides, draws: int) -> list[str]:
    """Return the cells of one K."""
    found, exact = [], []
    for step in range(draws):
        found.append(run(crack, sides, step))
        if step < TURNS:
            exact.append(run(Crack(), sides, step))

    losses = torch.stack([loss for loss, *_ in found])
    slopes = torch.stack([slope for _, slope, _ in found])
    loss, gradient, _ = exact[0]

    spread = losses.std() if draws > 1 else torch.tensor(float("nan"))
    size = gradient.norm()
    one = (slopes - gradient).norm(dim=(1, 2)).square().mean()
    # The mean over draws still has a part of their scatter, which is no bias.
    scatter = slopes.var(dim=0).sum() / draws if draws > 1 else torch.tensor(float("nan"))
    bias = ((slopes.mean(dim=0) - gradient).square().sum() - scatter).clamp(min=0)

    best, best_of_all = (min(seconds for *_, seconds in one) for one in (found[:TURNS], exact))
    return [
        f"{(losses.mean() - loss) / loss:+.2%} ± {spread / loss:.2%}",
        f"{bias.sqrt() / size:.1%}",
        f"{one.sqrt() / size:.0%}",
        f"{best / best_of_all:.2g}x",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edges", type=int, nargs="+", default=[2000, 7500, 20000])
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print("| embeddings | E | K | loss | bias of the gradient | error of one draw | CPU time |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for kind in (independent, alike):
        for n_edges in arguments.edges:
            sides = kind(n_edges)
            for sample in arguments.samples:
                if sample < n_edges - 1:
                    crack = Crack(negatives=SampledNegatives(sample))
                    cells = row(crack, sides, arguments.draws)
                    start = [kind.__name__, f"{n_edges:,}", f"{sample:,}"]
                    print(f"| {' | '.join(start + cells)} |", flush=True)


if __name__ == "__main__":
    main()
