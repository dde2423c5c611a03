"""The mean over items that count: in one process, and over ranks as DDP averages gradients."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import spawn

from kd_plugins.core import masked_mean
from tests.core.draws import normal, permutation
from tests.ranks import end_rank
from tests.tolerances import REORDERED

N_ITEMS = 9
EVERY_SECOND = torch.arange(N_ITEMS) % 2 == 0
NONE = torch.zeros(N_ITEMS, dtype=torch.bool)

# Where the items are cut in two, and which of them count.
SPLITS = {
    "uneven": (2, ~NONE),
    "uneven and masked": (6, EVERY_SECOND),
    "first rank empty": (0, EVERY_SECOND),
    "second rank empty": (N_ITEMS, ~NONE),
    "second rank all masked": (4, torch.arange(N_ITEMS) < 3),
    "all masked": (4, NONE),
}


@pytest.mark.parametrize("mask", [~NONE, EVERY_SECOND, torch.arange(N_ITEMS) == 3])
def test_the_masked_mean_equals_numpys(mask: Tensor) -> None:
    """As numpy takes it."""
    items = normal(N_ITEMS)
    expected = np.mean(items.numpy()[mask.numpy()])
    assert masked_mean(items, mask).item() == pytest.approx(expected, rel=1e-12)


def test_without_a_mask_all_count() -> None:
    """The mask may be left out."""
    items = normal(N_ITEMS)
    assert masked_mean(items) == masked_mean(items, ~NONE)


def test_order_does_not_matter() -> None:
    """Items and mask permuted together."""
    items, order = normal(N_ITEMS), permutation(N_ITEMS)
    means = masked_mean(items[order], EVERY_SECOND[order]), masked_mean(items, EVERY_SECOND)
    torch.testing.assert_close(*means, **REORDERED[items.dtype])


@pytest.mark.parametrize("n_items", [0, N_ITEMS])
def test_no_items_that_count_give_a_zero_with_a_graph(n_items: int) -> None:
    """Every rank can call backward, whatever fell to it."""
    items = normal(n_items).requires_grad_()
    mean = masked_mean(items, NONE[:n_items])
    assert mean.item() == 0
    assert torch.equal(torch.autograd.grad(mean, items)[0], torch.zeros_like(items))


def test_masked_items_may_hold_nan() -> None:
    """NaN in a masked item reaches neither the mean nor the gradient."""
    items = normal(N_ITEMS)
    items[~EVERY_SECOND] = float("nan")
    items.requires_grad_()
    mean = masked_mean(items, EVERY_SECOND)
    assert bool(mean.isfinite())
    assert torch.equal(
        torch.autograd.grad(mean, items)[0], EVERY_SECOND / EVERY_SECOND.sum().double()
    )


def model() -> nn.Module:
    """Return the same small model on every rank."""
    linear = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(normal(2, 3, seed=5))
        linear.bias.zero_()
    return linear


def loss_and_gradient(module: nn.Module, part: slice, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masked mean over a part of the data, and what backward leaves in the weights."""
    items = module(normal(N_ITEMS, 3)[part]).square().sum(dim=1)
    loss = masked_mean(items, mask[part])
    loss.backward()
    return loss.detach(), next(module.parameters()).grad


def work(rank: int, folder: str) -> None:
    """Take this rank's part of every split, average gradients as DDP does, and write both down."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    results = {}
    for name, (cut, mask) in SPLITS.items():
        part = (slice(None, cut), slice(cut, None))[rank]
        loss, gradient = loss_and_gradient(model(), part, mask)
        distributed.all_reduce(gradient)
        results[name] = (loss, gradient / distributed.get_world_size())
    torch.save(results, f"{folder}/{rank}.pt")
    end_rank()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """What two processes got for every split."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SPLITS)
def test_two_ranks_are_one_process_on_the_union(ranks, name: str) -> None:
    """The averaged gradient, and the mean of the ranks' losses."""
    loss, gradient = loss_and_gradient(model(), slice(None), SPLITS[name][1])
    losses, gradients = zip(*(results[name] for results in ranks), strict=True)
    close = REORDERED[torch.float64]
    torch.testing.assert_close(sum(losses) / 2, loss, **close)
    for averaged in gradients:
        torch.testing.assert_close(averaged, gradient, **close)


def test_the_mean_of_the_ranks_means_is_another_number() -> None:
    """The proof that the law above can fail: dividing by local counts weighs items unevenly."""
    cut, mask = SPLITS["uneven"]
    parts = [loss_and_gradient(model(), part, mask) for part in (slice(cut), slice(cut, None))]
    _, gradient = loss_and_gradient(model(), slice(None), mask)
    assert not torch.allclose((parts[0][1] + parts[1][1]) / 2, gradient, rtol=1e-3)
