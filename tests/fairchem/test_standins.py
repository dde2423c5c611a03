"""The stand-ins: torch_scatter's laws against naive loops, torch_sparse's refusal."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from kd_plugins.fairchem import compat
from tests.tolerances import REORDERED

if set(compat.install()) != set(compat.FOLDERS):
    pytest.skip("a real package is installed and wins", allow_module_level=True)
torch_scatter = importlib.import_module("torch_scatter")
torch_sparse = importlib.import_module("torch_sparse")

TIGHT = REORDERED[torch.float64]
REDUCTIONS = ("sum", "add", "mean", "mul", "min", "max")
ONE_GROUP = {
    "sum": lambda members: members.sum(0),
    "add": lambda members: members.sum(0),
    "mean": lambda members: members.mean(0),
    "mul": lambda members: members.prod(0),
    "min": lambda members: members.amin(0),
    "max": lambda members: members.amax(0),
}
# Groups 1 and 4 are empty, the first members of group 2 stand apart from its last.
INDEX = torch.tensor([2, 0, 2, 3, 3, 0, 2])
SORTED = INDEX.sort().values
N_GROUPS = 5


def naive_scatter(src: Tensor, index: Tensor, dim: int, n_groups: int, reduce: str) -> Tensor:
    rows = src.movedim(dim, 0)
    empty = torch.full_like(rows[0], 1.0 if reduce == "mul" else 0.0)
    groups = [rows[index == group] for group in range(n_groups)]
    reduced = [ONE_GROUP[reduce](group) if len(group) else empty for group in groups]
    return torch.stack(reduced).movedim(0, dim)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(("shape", "dim"), [((7,), 0), ((7, 3), 0), ((2, 7, 3), 1), ((2, 7), -1)])
def test_scatter_is_the_naive_loop(shape: tuple[int, ...], dim: int, reduce: str) -> None:
    src = random(*shape)
    actual = torch_scatter.scatter(src, INDEX, dim, dim_size=N_GROUPS, reduce=reduce)
    torch.testing.assert_close(actual, naive_scatter(src, INDEX, dim, N_GROUPS, reduce), **TIGHT)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_each_reduction_has_a_function_of_its_name(reduce: str) -> None:
    src = random(7, 2)
    named = getattr(torch_scatter, f"scatter_{reduce}")(src, INDEX, dim=0)
    values = named[0] if reduce in ("min", "max") else named
    assert torch.equal(values, torch_scatter.scatter(src, INDEX, dim=0, reduce=reduce))


def test_the_number_of_groups_is_the_largest_index_plus_one() -> None:
    assert torch_scatter.scatter(random(7), INDEX).shape == (4,)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_no_entries_leave_every_group_empty(reduce: str) -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert torch_scatter.scatter(random(0, 2), none, 0, reduce=reduce).shape == (0, 2)
    actual = torch_scatter.scatter(random(0, 2), none, 0, dim_size=3, reduce=reduce)
    assert torch.equal(actual, torch.full_like(random(3, 2), float(reduce == "mul")))


@pytest.mark.parametrize(("name", "first"), [("scatter_min", 1), ("scatter_max", 0)])
def test_extremes_say_where_they_stand(name: str, first: int) -> None:
    src = torch.tensor([5.0, 1.0, 5.0, 1.0])
    values, where = getattr(torch_scatter, name)(src, torch.tensor([0, 0, 0, 0]), dim_size=2)
    assert where.tolist() == [first, len(src)]
    assert values.tolist() == [src[first], 0.0]


@pytest.mark.parametrize("name", ["scatter_min", "scatter_max"])
def test_equal_extremes_give_their_gradient_to_one(name: str) -> None:
    src = torch.ones(3, requires_grad=True)
    getattr(torch_scatter, name)(src, torch.zeros(3, dtype=torch.long))[0].sum().backward()
    assert sorted(src.grad.tolist()) == [0.0, 0.0, 1.0]


def test_a_nan_is_seen() -> None:
    src = torch.tensor([1.0, float("nan"), 2.0])
    for reduce in REDUCTIONS:
        actual = torch_scatter.scatter(src, torch.tensor([0, 0, 1]), reduce=reduce)
        assert actual.isnan().tolist() == [True, False], reduce


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("sum", [14, 10]),
        ("mean", [7, 10]),
        ("mul", [30, 10]),
        ("min", [1, 10]),
        ("max", [10, 10]),
    ],
)
def test_out_takes_part_and_is_written(reduce: str, expected: list[int]) -> None:
    out = torch.tensor([10, 10])
    src, index = torch.tensor([3, 1]), torch.tensor([0, 0])
    actual = torch_scatter.scatter(src, index, out=out, reduce=reduce)
    assert actual.tolist() == out.tolist() == expected


def test_integers_stay_integers_and_their_mean_is_rounded_down() -> None:
    src, index = torch.tensor([1, 2, -1, -2], dtype=torch.int32), torch.tensor([0, 0, 1, 1])
    mean = torch_scatter.scatter(src, index, reduce="mean")
    assert mean.dtype == torch.int32
    assert mean.tolist() == [1, -2]


def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="summ"):
        torch_scatter.scatter(random(7), INDEX, reduce="summ")


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segment_coo_is_scatter_along_the_last_axis_of_the_index(reduce: str) -> None:
    src = random(7, 2)
    actual = torch_scatter.segment_coo(src, SORTED, dim_size=N_GROUPS, reduce=reduce)
    torch.testing.assert_close(actual, naive_scatter(src, SORTED, 0, N_GROUPS, reduce), **TIGHT)
    batched = torch_scatter.segment_coo(
        random(2, 7, 3), SORTED.expand(2, -1), dim_size=N_GROUPS, reduce=reduce
    )
    expected = naive_scatter(random(2, 7, 3), SORTED, 1, N_GROUPS, reduce)
    torch.testing.assert_close(batched, expected, **TIGHT)


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
@pytest.mark.parametrize("indptr", [[0, 2, 2, 7], [0, 0, 5], [1, 3, 3, 6], [0], [0, 7]])
def test_segment_csr_reduces_slices(indptr: list[int], reduce: str) -> None:
    src = random(7, 2)
    index = torch.bucketize(torch.arange(7), torch.tensor(indptr), right=True) - 1
    n_groups = len(indptr) - 1
    actual = torch_scatter.segment_csr(src, torch.tensor(indptr), reduce=reduce)
    assert actual.shape == (n_groups, 2)
    if n_groups:
        expected = naive_scatter(src, index, 0, n_groups, reduce)
        torch.testing.assert_close(actual, expected, **TIGHT)


def test_segment_csr_takes_other_boundaries_for_each_row_and_an_out() -> None:
    src = torch.tensor([[1, 2, 3], [4, 5, 6]])
    out = torch.empty(2, 2, dtype=torch.long)
    actual = torch_scatter.segment_csr(src, torch.tensor([[0, 1, 3], [0, 3, 3]]), out)
    assert actual.tolist() == out.tolist() == [[1, 5], [15, 0]]


def test_gathering_repeats_what_segments_reduced() -> None:
    src, indptr = random(3, 2), torch.tensor([0, 2, 2, 5])
    index = torch.tensor([0, 0, 2, 2, 2])
    assert torch.equal(torch_scatter.gather_csr(src, indptr), src[index])
    assert torch.equal(torch_scatter.gather_coo(src, index), src[index])
    out = random(5, 2)
    assert torch_scatter.gather_coo(src, index, out) is out
    assert torch.equal(out, src[index])


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reductions_are_differentiable(reduce: str) -> None:
    src = random(7, 2).requires_grad_()
    indptr = torch.tensor([0, 2, 2, 7])

    def reductions(src: Tensor) -> tuple[Tensor, ...]:
        csr = "sum" if reduce in ("add", "mul") else reduce
        return (
            torch_scatter.scatter(src, INDEX, 0, dim_size=N_GROUPS, reduce=reduce),
            torch_scatter.segment_csr(src, indptr, reduce=csr),
            torch_scatter.gather_csr(src, torch.arange(8) * 2),
            torch_scatter.gather_coo(src, SORTED),
        )

    assert torch.autograd.gradcheck(reductions, src)


def test_broadcast_is_where_gemnet_imports_it_from() -> None:
    broadcast = importlib.import_module("torch_scatter.utils").broadcast
    other = random(2, 7, 3)
    along = broadcast(torch.arange(7), other, -2)
    assert torch.equal(along, torch.arange(7).view(1, 7, 1).expand(2, 7, 3))
    leading = broadcast(torch.arange(14).view(2, 7), other, 1)
    assert torch.equal(leading, torch.arange(14).view(2, 7, 1).expand(2, 7, 3))


@pytest.mark.parametrize("way", ["SparseTensor", "from_dense", "from_edge_index", "eye"])
def test_the_sparse_standin_says_which_models_need_the_package(way: str) -> None:
    make = getattr(torch_sparse.SparseTensor, way, torch_sparse.SparseTensor)
    with pytest.raises(ImportError, match="GemNet and DimeNet.*EquiformerV2 does not"):
        make(row=torch.arange(2))
