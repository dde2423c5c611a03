"""Where targets come from: hippynn models, ASE calculators, a TargetStore."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from kd_plugins.core.store import TargetStore
from kd_plugins.core.structure import Structure
from kd_plugins.hippynn.arrays import (
    STRUCTURE_KEY,
    ArrayNames,
    DataError,
    check_there,
    structure_keys,
    structures,
)
from kd_plugins.hippynn.teacher import SPREAD, HippynnTeacher
from kd_plugins.teachers.calculator import CalculatorTeacher, check_quantities
from kd_plugins.teachers.structures import to_atoms

One = Mapping[str, NDArray[np.float64]] | None
"""What is said of one structure, without padding; None if nothing."""


@dataclass(frozen=True, eq=False)
class Said:
    """What a teacher says of a split.

    Args:
        values: quantity to (n, atoms), (n,) or (n, atoms, 3), padded with zeros.
        present: (n,), which structures it says something of.
        spreads: quantity to standard deviation over several teachers.
    """

    values: Mapping[str, NDArray[np.float64]]
    present: NDArray[np.bool_]
    spreads: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def opened(teacher: Any) -> Any:
    """Return a store or an ASE calculator as it is, and anything else as a `HippynnTeacher`.

    Raises:
        DataError: if it is none of them.
    """
    if isinstance(teacher, TargetStore | HippynnTeacher) or hasattr(teacher, "get_property"):
        return teacher
    return HippynnTeacher(teacher)


def ask(
    teacher: Any,
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
    allow_missing: bool,
) -> Said:
    """Return what a teacher that has been `opened` says of one split.

    Raises:
        DataError: if it cannot be asked, or lacks structures that it must not lack.
    """
    if isinstance(teacher, TargetStore):
        return _of_store(teacher, arrays, names, quantities, split, allow_missing)
    if hasattr(teacher, "get_property"):
        return _of_calculator(teacher, arrays, names, quantities, split)
    found = teacher(arrays, quantities, names)
    return Said(
        {name: found[name] for name in quantities},
        np.ones(len(arrays[names.species]), bool),
        {name: found[name + SPREAD] for name in quantities if name + SPREAD in found},
    )


def _of_calculator(
    calculator: Any,
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
) -> Said:
    teacher = CalculatorTeacher(calculator)
    check_quantities(quantities, teacher.quantities, type(calculator).__name__)
    bar = tqdm(structures(arrays, names), f"asking the teacher of {split!r}", unit=" structures")
    return _gathered(bar, lambda row, one: teacher(to_atoms(one), quantities), arrays, names)


def _of_store(
    store: TargetStore,
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
    allow_missing: bool,
) -> Said:
    check_there(arrays, [STRUCTURE_KEY])
    check_quantities(quantities, tuple(store.manifest.dtypes), f"the store {store.folder.name}")
    ids = list(store.ids())
    known = dict(zip(structure_keys(ids).tolist(), ids, strict=True))
    keys = arrays[STRUCTURE_KEY].tolist()
    missing = [row for row, key in enumerate(keys) if key not in known]
    if missing and not allow_missing:
        raise DataError(
            f"split {split!r}: the store has no targets of {len(missing)} of {len(keys)} "
            f"structures, the first one in row {missing[0]}; label them, or give "
            "allow_missing=True, with which they do not count"
        )

    def read(row: int, one: Structure) -> One:
        if keys[row] not in known:
            return None
        targets = store.read(known[keys[row]], one)
        return {
            name: targets.values[name].double().numpy()
            for name in quantities
            if name in targets.values and bool(targets.mask(name).all())
        }

    try:
        return _gathered(structures(arrays, names), read, arrays, names)
    except ValueError as error:
        raise DataError(str(error)) from error


def _gathered(
    rows: Any,
    say: Callable[[int, Structure], One],
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
) -> Said:
    """Return what is said of structures one by one, padded as the arrays are."""
    real = arrays[names.species].cpu().numpy() != 0
    held = [say(row, one) for row, one in enumerate(rows)]
    quantities = sorted({name for one in held if one for name in one})
    present = np.array([bool(one) and len(one) == len(quantities) for one in held])
    values = {name: np.zeros((*_shape(name, real),)) for name in quantities}
    for row, one in enumerate(held):
        for name, value in (one or {}).items() if present[row] else ():
            place = row if name == "energy" else (row, real[row])
            values[name][place] = value.reshape(values[name][place].shape)
    return Said(values, present)


def _shape(name: str, real: NDArray[np.bool_]) -> tuple[int, ...]:
    shapes = {"energy": real.shape[:1], "atomic_energies": real.shape, "forces": (*real.shape, 3)}
    return shapes[name]
