"""Two gloo ranks whose negatives are global equal one process on the union of their batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.elastic.utils.distributed import get_free_port

from kd_plugins.core import Crack, Instance
from kd_plugins.core.reduction import masked_mean
from tests.core.draws import normal
from tests.ranks import end_rank

SIZES = ((6, 30), (9, 11), (4, 0))
"""Atoms and edges of each structure; the first rank has the first one, the second the others."""
PARTS = (slice(0, 1), slice(1, 3))
FORMS = ("plain", "blocked")
CASES = [
    *(
        ("crack", who, edges)
        for who in ("teacher", "student")
        for edges in ("undirected", "directed")
    ),
    *(("instance", who, "") for who in ("teacher", "student")),
]


def batch(part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs, teacher embeddings and edges of some of the structures."""
    inputs, teachers, edges, start = [], [], [], 0
    for seed, (n_atoms, n_edges) in list(enumerate(SIZES))[part]:
        inputs.append(normal(n_atoms, 5, seed=seed))
        teachers.append(normal(n_atoms, 4, seed=10 + seed))
        generator = torch.Generator().manual_seed(seed)
        edges.append(start + torch.randint(n_atoms, (2, n_edges), generator=generator))
        start += n_atoms
    return torch.cat(inputs), torch.cat(teachers), torch.cat(edges, dim=1)


def results(part: slice, negatives: str) -> dict[str, tuple[Tensor, ...]]:
    """Return loss, gradient, loss of a perfect student and top-1 accuracy of every case."""
    found = {}
    inputs, teacher, edge_index = batch(part)
    for form in FORMS:
        for kind, anchor, edges in CASES:
            weights = normal(5, 4, seed=3).requires_grad_()
            if kind == "crack":
                crack = Crack(anchor=anchor, edges=edges, negatives=negatives, form=form)
                comparison = crack.compare(inputs @ weights, teacher, edge_index, perfect=True)
            else:
                instance = Instance(anchor=anchor, negatives=negatives, form=form)
                comparison = instance.compare(inputs @ weights, teacher, perfect=True)
            loss = masked_mean(comparison.losses)
            (moved,) = torch.autograd.grad(loss, weights)
            perfect, correct = comparison.perfect_losses.sum(), comparison.is_correct.sum()
            sums = (loss.detach(), moved, perfect, correct.double())
            found[f"{form} {kind} {anchor} {edges}"] = sums
    return found


def rank_main(rank: int, port: int, path: Path) -> None:
    """Run one of two ranks; average as DistributedDataParallel does."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    both: dict[str, Any] = {}
    for negatives in ("global", "local"):
        both[negatives] = results(PARTS[rank], negatives)
        for loss, moved, perfect, correct in both[negatives].values():
            for value in (loss, moved, perfect, correct):
                dist.all_reduce(value)
            loss /= 2
            moved /= 2
    if rank == 0:
        torch.save(both, path)
    end_rank()


def test_global_negatives_are_those_of_the_union(tmp_path: Path) -> None:
    """And local negatives are not, or this would show nothing."""
    path = tmp_path / "results.pt"
    mp.spawn(rank_main, (get_free_port(), path), nprocs=2)
    found = torch.load(path, weights_only=True)
    whole = results(slice(0, 3), "global")
    for name, expected in whole.items():
        for actual, reference in zip(found["global"][name], expected, strict=True):
            torch.testing.assert_close(actual, reference.detach(), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(found["local"][name][0], expected[0], rtol=1e-3)


def test_one_process_needs_no_others() -> None:
    """Global negatives of a single process are its own."""
    whole, alone = (results(slice(0, 3), negatives) for negatives in ("global", "local"))
    for name, values in whole.items():
        for actual, expected in zip(values, alone[name], strict=True):
            assert torch.equal(actual, expected), name


def test_a_group_of_one_has_no_collective(tmp_path: Path) -> None:
    """Each would be a tensor that a thread of Gloo frees while the group is taken down."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        with torch.profiler.profile() as profile:
            results(slice(0, 3), "global")
    finally:
        dist.destroy_process_group()
    names = {event.key for event in profile.key_averages()}
    assert not any(name.startswith(("c10d::", "gloo:")) for name in names), names


def test_an_unknown_choice_is_named(unchecked: None) -> None:
    """As a user sees it."""
    with pytest.raises(ValueError, match=r"unknown negatives 'globl'.*did you mean 'global'"):
        Crack(negatives="globl")
