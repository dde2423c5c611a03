"""Split a data set by whole crystals, and choose nested training sets of growing size."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from kd_plugins.numbers import check_seed, check_whole, is_number
from kd_plugins.structures.readers import LabelledStructure

Item = TypeVar("Item", str, LabelledStructure)

ROUNDING = 1e-9
"""By how much the sum of shares may differ from 1."""


def crystal_of(item: str | LabelledStructure) -> str:
    """Return the crystal that a deformed structure comes from: its id up to the last slash.

    >>> crystal_of("urea/007")
    'urea'
    """
    name = _id_of(item)
    return name.rpartition("/")[0] or name


def split(
    items: Iterable[Item],
    shares: Mapping[str, float],
    seed: int,
    group: Callable[[Item], str] = crystal_of,
) -> dict[str, list[Item]]:
    """Return named disjoint parts of structures or ids, in which groups stay together.

    With structures of one material in both training and test, the test would measure memory.
    Groups are assigned one after the other, in an order that depends only on the seed and their
    names, each to the part that lacks the most items. So parts have the requested size up to the
    size of a group.

    Args:
        items: structures or ids.
        shares: part to its share of the items, above 0; together 1.
        seed: another seed gives another split.
        group: returns the name of an item's group; for MPtrj
            ``lambda structure: structure.atoms.info["mp_id"]``.

    Returns:
        Part to items, in the order in which they came.

    Raises:
        ValueError: for shares that are not positive or not 1 together, an id that comes twice, or
            a part that stays empty.

    >>> parts = split([f"{name}/{n}" for name in "abcde" for n in "01"], {"a": 0.8, "b": 0.2}, 0)
    >>> {name: len(part) for name, part in parts.items()}
    {'a': 8, 'b': 2}
    """
    items = list(items)
    _check_shares(shares)
    check_seed("seed", seed)
    _check_unique([_id_of(item) for item in items])

    groups = [group(item) for item in items]
    part_of = _assign(Counter(groups), shares, seed)
    parts: dict[str, list[Item]] = {name: [] for name in shares}
    for item, its_group in zip(items, groups, strict=True):
        parts[part_of[its_group]].append(item)

    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise ValueError(
            f"part {empty[0]!r} stays empty: {len(items)} items in {len(part_of)} groups cannot be "
            f"split as {dict(shares)}; give more groups or fewer parts"
        )
    return parts


def nested_subset(ids: Iterable[str], size: int, seed: int) -> list[str]:
    """Return a random subset; with the same seed, a larger one begins with a smaller one.

    So the training sizes N_train of Taniguchi 2024 differ only by what is added, and each seed is
    one trial.

    Args:
        ids: to choose from, in any order.
        size: how many.
        seed: another seed gives another subset.

    Raises:
        ValueError: for a size below 1 or above what there is, or an id that comes twice.

    >>> nested_subset("abcdef", 4, seed=1)[:2] == nested_subset("fedcba", 2, seed=1)
    True
    """
    ids = list(ids)
    _check_unique(ids)
    check_seed("seed", seed)

    check_whole("size", size)
    if not 1 <= size <= len(ids):
        raise ValueError(f"size: expected 1 to {len(ids)}, which is all there is, got {size}")

    return _shuffled(ids, seed)[:size]


def _assign(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return group to part, each group to the part that lacks the most items."""
    missing = {part: share * sum(sizes.values()) for part, share in shares.items()}
    part_of = {}

    for group in _shuffled(sizes, seed):
        part = max(missing, key=missing.__getitem__)
        part_of[group] = part
        missing[part] -= sizes[group]

    return part_of


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return names in a random order, sorted by the hash of seed and name.

    Which of two names comes first does not depend on other names, machine or library. A generator's
    permutation would change as a whole when one name is added.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def _id_of(item: str | LabelledStructure) -> str:
    return item if isinstance(item, str) else item.structure_id


def _check_shares(shares: Mapping[str, float]) -> None:
    wrong = [share for share in shares.values() if not is_number(share) or not share > 0]
    # `fsum`, which rounds once: ten shares of 0.1 are exactly 1.
    total = math.fsum(share for share in shares.values() if isinstance(share, (int, float)))
    if wrong or not abs(total - 1) <= ROUNDING:
        raise ValueError(
            f"shares: expected numbers above 0 that sum to 1, got {dict(shares)} with sum {total:g}"
        )


def _check_unique(ids: Sequence[str]) -> None:
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"ids: expected each once, got {twice[0]!r} twice or more")
