"""Which structures of a hippynn database have which labels and teacher targets, by weight arrays.

hippynn has no missing numbers: a structure without a label holds zeros in the label's array. The
array of its weights, which has an ending more, is 0 there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kd_plugins.hippynn.convert import WEIGHT, DataError

TEACHER = "teacher_"
"""Prefix of the arrays that `kd_plugins.hippynn.add_teacher_targets` adds to a database."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which labels and targets the structures of a database have.

    Args:
        partial: name of an array, of which some split lacks some, to its mean weight over the
            structures or atoms of the training split.
        validated: arrays of which the validation split has some.
        weighted: arrays that have weights.
    """

    partial: Mapping[str, float]
    validated: Collection[str]
    weighted: Collection[str]


def read_coverage(database: Any, species: str) -> Coverage:
    """Return which labels and targets a database has.

    Args:
        database: a hippynn ``Database`` that has been split.
        species: name of its array of atomic numbers.

    Raises:
        DataError: if it has not been split, or lacks the array.
    """
    check_splits(database, needed=("train", "valid"))
    for split, arrays in database.splits.items():
        if species not in arrays:
            raise DataError(
                f"split {split!r} has no array {species!r}, which the model reads; it has "
                f"{', '.join(sorted(arrays))}"
            )

    names = {n for arrays in database.splits.values() for n in arrays if n.endswith(WEIGHT)}
    means = {
        name.removesuffix(WEIGHT): {
            split: _mean_weight(arrays[name], arrays[species])
            for split, arrays in database.splits.items()
            if name in arrays
        }
        for name in names
    }
    return Coverage(
        partial={
            name: by_split.get("train", 1.0)
            for name, by_split in means.items()
            if any(mean != 1 for mean in by_split.values())
        },
        validated={name for name, by_split in means.items() if by_split.get("valid")},
        weighted=frozenset(means),
    )


def _mean_weight(weight: torch.Tensor, species: torch.Tensor) -> float:
    """Return the mean over structures, or over atoms without the padding behind them."""
    values = weight.double().cpu()
    is_atom = (species != 0).cpu()
    return float((values[is_atom] if values.shape == is_atom.shape else values).mean())


def has_value(arrays: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Return (n,), whether each structure of a split has a label or target.

    Args:
        arrays: of the split.
        name: of an array; without weights beside it, every structure has one.
    """
    weight = arrays.get(name + WEIGHT)
    if weight is None:
        return torch.ones(len(arrays[name]), dtype=torch.bool)
    return (weight.cpu() > 0).reshape(len(weight), -1).any(dim=1)


def check_splits(database: Any, needed: Sequence[str] = ()) -> None:
    """Refuse anything but a database that has been split.

    Raises:
        DataError: naming the splits that there are.
    """
    splits = getattr(database, "splits", None)
    if not isinstance(splits, dict):
        raise DataError(f"database: expected a hippynn Database, got {type(database).__name__}")

    missing = [split for split in needed if split not in splits]
    if missing or not splits:
        what = (
            f"has no split {missing[0]!r} among {', '.join(splits)}"
            if splits
            else "has not been split"
        )
        raise DataError(
            f"the database {what}; split it first, such as with make_trainvalidtest_split"
        )
