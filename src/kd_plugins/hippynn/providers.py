"""Where targets come from: hippynn models, ASE calculators, a TargetStore, or several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from kd_plugins.hippynn.convert import (
    STRUCTURE_KEY,
    ArrayNames,
    DataError,
    check_there,
    rows_of,
    structure_keys,
    structures,
)
from kd_plugins.hippynn.teacher import SPREAD, HippynnTeacher
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import to_atoms
from kd_plugins.teachers.calculator import CalculatorTeacher, check_quantities

One = Mapping[str, NDArray[np.float64]] | None
"""What is said of one structure, without padding; None if nothing."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a teacher says of a split.

    Args:
        values: quantity to (n, atoms), (n,) or (n, atoms, 3), padded with zeros.
        present: (n,), which structures it says something of.
        spreads: quantity to standard deviation over several teachers.
    """

    values: Mapping[str, NDArray[np.float64]]
    present: NDArray[np.bool_]
    spreads: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def opened(teacher: Any, trust_pickle: bool = False) -> list[Any]:
    """Return the members of a teacher, one or several, each ready for `ask`.

    A store or an ASE calculator stays as it is, the folder of a store is opened, and anything else
    becomes a `HippynnTeacher`.

    Args:
        teacher: one, or a list of them.
        trust_pickle: see `HippynnTeacher`.

    Raises:
        DataError: for a member that is none of them.
    """
    given = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if not given:
        raise DataError("expected one teacher or more, got an empty list")
    if any(isinstance(one, list | tuple) for one in given):
        raise DataError("expected a list of teachers, got a list in it; give them all in one")
    return [_opened(one, trust_pickle) for one in given]


def _opened(teacher: Any, trust_pickle: bool) -> Any:
    if isinstance(teacher, TargetStore | HippynnTeacher) or hasattr(teacher, "get_property"):
        return teacher
    is_path = isinstance(teacher, str | Path)
    if is_path and (Path(teacher).expanduser() / "manifest.json").is_file():
        return TargetStore.open(Path(teacher).expanduser())
    return HippynnTeacher(teacher, trust_pickle=trust_pickle)


def ask(
    teacher: Any,
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
    allow_missing: bool,
) -> Predictions:
    """Return what a member that has been `opened` says of one split.

    Raises:
        DataError: if it cannot be asked, or lacks structures that it must not lack.
    """
    if isinstance(teacher, TargetStore):
        return _of_store(teacher, arrays, names, quantities, split, allow_missing)
    if hasattr(teacher, "get_property"):
        return _of_calculator(teacher, arrays, names, quantities, split)
    found = teacher(arrays, quantities, names)
    return Predictions(
        {name: found[name] for name in quantities},
        np.ones(len(arrays[names.species]), bool),
        {name: found[name + SPREAD] for name in quantities if name + SPREAD in found},
    )


def mean(members: Sequence[Predictions]) -> Predictions:
    """Return the mean of what several members say, with the sample standard deviation over them.

    A structure counts where all of them say something. One member stays as it is.
    """
    if len(members) == 1:
        return members[0]
    stacked = {name: np.stack([one.values[name] for one in members]) for name in members[0].values}
    return Predictions(
        {name: value.mean(axis=0) for name, value in stacked.items()},
        np.logical_and.reduce([one.present for one in members]),
        {name: value.std(axis=0, ddof=1) for name, value in stacked.items()},
    )


def _of_calculator(
    calculator: Any,
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
) -> Predictions:
    teacher = CalculatorTeacher(calculator)
    check_quantities(quantities, teacher.quantities, type(calculator).__name__)
    bar = tqdm(structures(arrays, names), f"asking the teacher of {split!r}", unit=" structures")
    return _gathered(
        bar, lambda row, one: teacher(to_atoms(one), quantities), arrays, names, quantities, split
    )


def _of_store(
    store: TargetStore,
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
    allow_missing: bool,
) -> Predictions:
    who = f"the store {store.folder.name}"
    keys, held = _keys(arrays, split), tuple(store.manifest.dtypes)
    check_quantities(quantities, held, who)
    asked = [*quantities, *(name + SPREAD for name in quantities if name + SPREAD in held)]
    ids = list(store.ids())
    known = dict(zip(structure_keys(ids).tolist(), ids, strict=True))

    def read(row: int, one: Structure) -> One:
        if keys[row] not in known:
            return None
        targets = store.read(known[keys[row]], one)
        there = [n for n in asked if n in targets.values and bool(targets.mask(n).all())]
        if not set(quantities) <= set(there):
            return None
        return {name: targets.values[name].double().numpy() for name in there}

    said = _gathered(structures(arrays, names), read, arrays, names, quantities, split)
    missing = np.flatnonzero(~said.present)
    if len(missing) and not allow_missing:
        raise DataError(
            f"split {split!r}: {who} has no targets of {len(missing)} of {len(keys)} structures, "
            f"{rows_of(missing)}; label them with the ids that {STRUCTURE_KEY!r} was made of, or "
            "give allow_missing=True, with which they do not count"
        )
    return said


def _keys(arrays: Mapping[str, torch.Tensor], split: str) -> list[int]:
    """Return the number of each row's structure id.

    Raises:
        DataError: for keys that are no whole numbers, as arrays of floats would round them.
    """
    check_there(arrays, [STRUCTURE_KEY])
    keys = arrays[STRUCTURE_KEY]
    if keys.dtype != torch.int64 or keys.numel() != len(keys):
        raise DataError(
            f"split {split!r}: {STRUCTURE_KEY!r}: expected one int64 a structure, as "
            f"structure_keys(ids) gives, got {keys.dtype} {tuple(keys.shape)}"
        )
    return keys.reshape(-1).tolist()


def _gathered(
    rows: Iterable[Structure],
    say: Callable[[int, Structure], One],
    arrays: Mapping[str, torch.Tensor],
    names: ArrayNames,
    quantities: Sequence[str],
    split: str,
) -> Predictions:
    """Return what is said of structures one by one, padded as the arrays are.

    Raises:
        DataError: naming split and row, if it cannot be said.
    """
    real = arrays[names.species].cpu().numpy() != 0
    values = {name: np.zeros(_shape(name, real)) for name in quantities}
    spreads = {name: np.zeros(_shape(name, real)) for name in quantities}
    present, spread_in = np.zeros(len(real), bool), dict.fromkeys(quantities, True)
    for row, structure in enumerate(rows):
        # Calculators raise what they like; which structure it was is what the user needs.
        try:
            said = say(row, structure)
            for name in quantities if said else ():
                place = row if name == "energy" else (row, real[row])
                values[name][place] = said[name].reshape(values[name][place].shape)
                spread = said.get(name + SPREAD)
                spread_in[name] &= spread is not None
                if spread is not None:
                    spreads[name][place] = spread.reshape(values[name][place].shape)
        except Exception as error:
            what = (
                f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
            )
            raise DataError(f"split {split!r}, row {row}: {what}") from error
        present[row] = bool(said)
    held = {name: one for name, one in spreads.items() if spread_in[name] and present.any()}
    return Predictions(values, present, held)


def _shape(name: str, real: NDArray[np.bool_]) -> tuple[int, ...]:
    shapes = {"energy": real.shape[:1], "atomic_energies": real.shape, "forces": (*real.shape, 3)}
    return shapes[name]
