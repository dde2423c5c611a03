"""Where a database's teacher targets come from: hippynn models, other teachers, stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from tqdm import tqdm

from kd_plugins.hippynn.convert import (
    STRUCTURE_KEY,
    ArrayNames,
    DataError,
    check_present,
    list_rows,
    structure_keys,
    to_structures,
)
from kd_plugins.hippynn.teacher import HippynnTeacher
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import to_atoms
from kd_plugins.teachers.calculator import as_teacher, check_quantities
from kd_plugins.teachers.ensemble import SPREAD
from kd_plugins.teachers.teacher import Teacher

Targets = Mapping[str, NDArray[np.float64]]
"""Quantity name to values of one structure, without padding."""


@dataclass(frozen=True, eq=False)
class Split:
    """A part of a database, such as its training split.

    Args:
        name: such as ``train``.
        arrays: name to array, (n, ...).
        names: which of them are the species, positions and so on.
    """

    name: str
    arrays: Mapping[str, torch.Tensor]
    names: ArrayNames

    @property
    def is_atom(self) -> NDArray[np.bool_]:
        """(n, atoms), false in the padding."""
        return self.arrays[self.names.species].cpu().numpy() != 0

    @property
    def structures(self) -> list[Structure]:
        """Its structures, without padding."""
        return to_structures(self.arrays, self.names)


@dataclass(frozen=True, eq=False)
class Predictions:
    """A teacher's targets of a split.

    Args:
        values: quantity to (n, atoms), (n,) or (n, atoms, 3), padded with zeros.
        present: (n,), which structures have targets.
        spreads: quantity to its standard deviation over several teachers.
    """

    values: Mapping[str, NDArray[np.float64]]
    present: NDArray[np.bool_]
    spreads: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class TargetProvider(Protocol):
    """Gives a teacher's targets of the splits of a database."""

    def predict(self, split: Split, quantities: Sequence[str]) -> Predictions:
        """Return the targets of a split.

        Raises:
            DataError: if it lacks a quantity, or structures that it must have.
        """
        ...


def as_providers(
    teacher: Any, *, allow_missing: bool, trust_pickle: bool, device: str
) -> list[TargetProvider]:
    """Return a provider for each teacher that the user gave.

    Args:
        teacher: one, or a list: a hippynn model, folder or node, a `TargetStore` or its folder, an
            ASE calculator, or any other `kd_plugins.teachers.Teacher`.
        allow_missing: accept structures that a store does not hold.
        trust_pickle: see `HippynnTeacher`.
        device: of hippynn models; the others have theirs already.

    Raises:
        DataError: for anything else.
    """
    teachers = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if not teachers:
        raise DataError("expected one teacher or more, got an empty list")
    if any(isinstance(one, list | tuple) for one in teachers):
        raise DataError("expected a list of teachers, got a list in it; give them all in one")

    providers: list[TargetProvider] = []
    for one in teachers:
        folder = Path(one).expanduser() if isinstance(one, str | Path) else None
        if folder is not None and (folder / "manifest.json").is_file():
            one = TargetStore.open(folder)

        if isinstance(one, TargetStore):
            providers.append(StoreProvider(one, allow_missing))
        elif isinstance(one, HippynnTeacher):
            providers.append(ModelProvider(one))
        elif hasattr(one, "get_property") or hasattr(one, "fingerprint"):
            providers.append(TeacherProvider(as_teacher(one)))
        else:
            made = HippynnTeacher(one, trust_pickle=trust_pickle, device=device)
            providers.append(ModelProvider(made))
    return providers


def average(members: Sequence[Predictions]) -> Predictions:
    """Return the mean of several teachers' targets and the sample standard deviation over them.

    A structure has targets where all teachers have them. The targets of a single teacher stay as
    they are, with the spread that it may have of its own.
    """
    if len(members) == 1:
        return members[0]

    stacked = {name: np.stack([one.values[name] for one in members]) for name in members[0].values}
    return Predictions(
        {name: value.mean(axis=0) for name, value in stacked.items()},
        np.logical_and.reduce([one.present for one in members]),
        {name: value.std(axis=0, ddof=1) for name, value in stacked.items()},
    )


@dataclass(frozen=True)
class ModelProvider:
    """Predicts a split with hippynn models, on its padded arrays as they are."""

    teacher: HippynnTeacher

    def predict(self, split: Split, quantities: Sequence[str]) -> Predictions:
        """See `TargetProvider`."""
        found = self.teacher.predict_arrays(split.arrays, quantities, split.names)
        return Predictions(
            {name: found[name] for name in quantities},
            np.ones(len(split.is_atom), bool),
            {name: found[name + SPREAD] for name in quantities if name + SPREAD in found},
        )


@dataclass(frozen=True)
class TeacherProvider:
    """Predicts the structures of a split with any other teacher, in batches of its size."""

    teacher: Teacher

    def predict(self, split: Split, quantities: Sequence[str]) -> Predictions:
        """See `TargetProvider`."""
        name = type(getattr(self.teacher, "calculator", self.teacher)).__name__
        check_quantities(quantities, self.teacher.quantities, name)
        spreads = [one + SPREAD for one in quantities if one + SPREAD in self.teacher.quantities]

        structures = [to_atoms(one) for one in split.structures]
        padded = _Padded(split, quantities)
        progress = tqdm(
            total=len(structures), desc=f"predicting {split.name!r}", unit=" structures"
        )
        size = self.teacher.batch_size
        with progress:
            for start in range(0, len(structures), size):
                batch = structures[start : start + size]
                for row, targets in enumerate(self._targets(batch, [*quantities, *spreads]), start):
                    padded.fill(row, targets)
                progress.update(len(batch))
        return padded.predictions()

    def _targets(
        self, batch: Sequence[Atoms], quantities: Sequence[str]
    ) -> Iterable[Targets | Exception]:
        """Yield the targets of each structure of a batch, or why there are none."""
        # Teachers raise what they like. After a failed batch, each structure is predicted alone, so
        # that the message can name the one that failed.
        try:
            yield from self.teacher.predict(batch, quantities)
            return
        except Exception as error:
            if len(batch) == 1:
                yield error
                return
        for atoms in batch:
            yield from self._targets([atoms], quantities)


@dataclass(frozen=True)
class StoreProvider:
    """Reads the targets of a split from a store, by the key of each structure's id.

    Args:
        store: that was labelled before.
        allow_missing: accept structures that it does not hold.
    """

    store: TargetStore
    allow_missing: bool

    def predict(self, split: Split, quantities: Sequence[str]) -> Predictions:
        """See `TargetProvider`."""
        name = f"the store {self.store.folder.name}"
        stored = tuple(self.store.manifest.dtypes)
        check_quantities(quantities, stored, name)
        wanted = [*quantities, *(one + SPREAD for one in quantities if one + SPREAD in stored)]

        keys = _read_keys(split)
        ids = list(self.store.ids())
        id_of_key = dict(zip(structure_keys(ids).tolist(), ids, strict=True))

        padded = _Padded(split, quantities)
        for row, structure in enumerate(split.structures):
            if keys[row] in id_of_key:
                padded.fill(row, self._read(id_of_key[keys[row]], structure, wanted))
        predictions = padded.predictions()

        missing = np.flatnonzero(~predictions.present)
        if len(missing) and not self.allow_missing:
            raise DataError(
                f"split {split.name!r}: {name} has no targets of {len(missing)} of {len(keys)} "
                f"structures, {list_rows(missing)}; label them with the ids that "
                f"{STRUCTURE_KEY!r} was made of, or give allow_missing=True, with which they do "
                "not count"
            )
        return predictions

    def _read(
        self, structure_id: str, structure: Structure, wanted: Sequence[str]
    ) -> Targets | Exception | None:
        """Return the targets of a structure, why they cannot be read, or None if one is missing."""
        try:
            targets = self.store.read(structure_id, structure)
        except Exception as error:
            return error

        present = [n for n in wanted if n in targets.values and bool(targets.mask(n).all())]
        if not {name for name in wanted if not name.endswith(SPREAD)} <= set(present):
            return None
        return {name: targets.values[name].double().numpy() for name in present}


def _read_keys(split: Split) -> list[int]:
    """Return the key of each row's structure id.

    Raises:
        DataError: for keys of another dtype, since floats round them to those of other structures.
    """
    check_present(split.arrays, [STRUCTURE_KEY])
    keys = split.arrays[STRUCTURE_KEY]
    if keys.dtype != torch.int64 or keys.numel() != len(keys):
        raise DataError(
            f"split {split.name!r}: {STRUCTURE_KEY!r}: expected one int64 a structure, as "
            f"structure_keys(ids) gives, got {keys.dtype} {tuple(keys.shape)}"
        )
    return keys.reshape(-1).tolist()


class _Padded:
    """Targets of structures one by one, in arrays that are padded as those of a split."""

    def __init__(self, split: Split, quantities: Sequence[str]) -> None:
        self.split = split
        self.is_atom = split.is_atom
        self.values = {name: np.zeros(self._shape(name)) for name in quantities}
        self.spreads = {name: np.zeros(self._shape(name)) for name in quantities}
        self.present = np.zeros(len(self.is_atom), bool)
        # A spread that some structure lacks is left out as a whole.
        self.has_spread = dict.fromkeys(quantities, True)

    def _shape(self, name: str) -> tuple[int, ...]:
        n, size = self.is_atom.shape
        return {"energy": (n,), "atomic_energies": (n, size), "forces": (n, size, 3)}[name]

    def fill(self, row: int, targets: Targets | Exception | None) -> None:
        """Set the targets of a row, if it has any.

        Raises:
            DataError: naming split and row, if the teacher failed or gave another shape.
        """
        if targets is None:
            return
        try:
            if isinstance(targets, Exception):
                raise targets
            for name, value in self.values.items():
                # Structure quantities fill a number, atom quantities the atoms of a padded row.
                place = row if name == "energy" else (row, self.is_atom[row])
                value[place] = np.asarray(targets[name]).reshape(value[place].shape)
                spread = targets.get(name + SPREAD)
                self.has_spread[name] &= spread is not None
                if spread is not None:
                    self.spreads[name][place] = np.asarray(spread).reshape(value[place].shape)
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            where = f"split {self.split.name!r}, row {row}"
            raise DataError(f"{where}: {kind}{error}") from error
        self.present[row] = True

    def predictions(self) -> Predictions:
        """Return what has been filled in."""
        spreads = {
            name: spread
            for name, spread in self.spreads.items()
            if self.has_spread[name] and self.present.any()
        }
        return Predictions(self.values, self.present, spreads)
