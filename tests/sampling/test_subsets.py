"""Parts are disjoint and hold whole groups; subsets of one seed are nested."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from kd_plugins.sampling import crystal_of, nested_subset, split
from kd_plugins.structures.readers import LabelledStructure

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
IDS = [f"crystal{number % 40}/{number:03d}" for number in range(400)]


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_disjoint_whole_and_of_their_size(seed: int) -> None:
    parts = split(IDS, SHARES, seed)
    assert list(parts) == list(SHARES)
    assert sorted(sum(parts.values(), [])) == sorted(IDS)
    groups = [{crystal_of(name) for name in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert [len(part) for part in parts.values()] == [320, 40, 40]
    assert parts["train"] == [name for name in IDS if name in set(parts["train"])]


def test_the_order_of_the_items_does_not_matter() -> None:
    shuffled = np.random.default_rng(0).permutation(IDS).tolist()
    one, other = split(IDS, SHARES, 3), split(shuffled, SHARES, 3)
    assert {name: sorted(part) for name, part in one.items()} == {
        name: sorted(part) for name, part in other.items()
    }
    assert split(IDS, SHARES, 4) != one


def test_groups_of_unequal_size_fill_the_parts_evenly() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 30, 200)
    ids = [f"{group}/{number}" for group, size in enumerate(sizes) for number in range(size)]
    for seed in range(5):
        parts = split(ids, SHARES, seed)
        for name, share in SHARES.items():
            assert abs(len(parts[name]) - share * len(ids)) < 30


def test_structures_are_split_by_a_group_of_their_info() -> None:
    frames = [
        LabelledStructure(str(number), Atoms("H", info={"mp_id": f"mp-{number // 5}"}))
        for number in range(50)
    ]
    parts = split(frames, {"a": 0.5, "b": 0.5}, 0, group=lambda frame: frame.atoms.info["mp_id"])
    one, other = ({frame.atoms.info["mp_id"] for frame in part} for part in parts.values())
    assert len(one) == len(other) == 5
    assert not one & other
    assert [frame.structure_id for frame in split(frames, {"all": 1.0}, 0)["all"]] == [
        str(number) for number in range(50)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_subsets_are_nested(seed: int) -> None:
    ladder = [nested_subset(IDS, size, seed) for size in (1, 10, 100, 399, 400)]
    for smaller, larger in zip(ladder, ladder[1:], strict=False):
        assert larger[: len(smaller)] == smaller
    assert sorted(ladder[-1]) == sorted(IDS)
    assert ladder[1] == nested_subset(reversed(IDS), 10, seed)
    assert ladder[1] != nested_subset(IDS, 10, seed + 1)


def test_subsets_are_fair() -> None:
    counts = dict.fromkeys(IDS[:20], 0)
    for seed in range(1000):
        for name in nested_subset(counts, 5, seed):
            counts[name] += 1
    assert min(counts.values()) > 200
    assert max(counts.values()) < 300


def test_a_subset_hardly_changes_as_the_data_grow() -> None:
    before, after = set(nested_subset(IDS[:390], 100, 0)), set(nested_subset(IDS, 100, 0))
    assert len(before - after) <= 10


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 0.5, "b": 0.4}, "sum to 1, got .* with sum 0.9"),
        ({"a": 1.0, "b": 0.0}, "above 0"),
        ({"a": 1.5, "b": -0.5}, "above 0"),
        ({"a": float("nan")}, "with sum nan"),
        ({}, "got {} with sum 0"),
    ],
)
def test_wrong_shares_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(IDS, shares, 0)


@pytest.mark.parametrize("ids", [[], ["urea/0", "urea/1"]])
def test_an_empty_part_is_named(ids: list[str]) -> None:
    with pytest.raises(ValueError, match=r"part '\w+' stays empty: \d items in [01] groups"):
        split(ids, {"train": 0.5, "test": 0.5}, 0)


def test_ids_come_once() -> None:
    with pytest.raises(ValueError, match="expected each once, got 'a' twice"):
        split(["a", "b", "a"], {"all": 1.0}, 0)
    with pytest.raises(ValueError, match="expected each once, got 'a' twice"):
        nested_subset(["a", "a"], 1, 0)


@pytest.mark.parametrize("size", [0, 4, -1])
def test_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size: expected 1 to 3, .* got {size}"):
        nested_subset("abc", size, 0)
