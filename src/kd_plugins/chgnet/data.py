"""Structures with labels and teacher targets, as CHGNet's Trainer takes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from chgnet.graph import CrystalGraph, CrystalGraphConverter
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from kd_plugins.chgnet.convert import LETTERS, to_host, to_pymatgen
from kd_plugins.chgnet.loss import HARD, PREFIX, SOFT
from kd_plugins.core.quantities import quantity
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.names import suggestion
from kd_plugins.store.shard import StoreError
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure

logger = logging.getLogger(__name__)
NAMED = 8
"""Bad structures that a message names."""


class DataError(ValueError):
    """Structures that cannot be trained on, each with its reason."""


@dataclass(frozen=True, eq=False)
class GraphSample:
    """One structure.

    Args:
        structure_id: its identity.
        graph: as CHGNet sees it.
        targets: by CHGNet's letters, the teacher's as ``soft_e`` and so on.
        case: the same in our units, for the doctor.
    """

    structure_id: str
    graph: CrystalGraph
    targets: Mapping[str, Tensor]
    case: DoctorInput


class DistillData(Dataset[tuple[CrystalGraph, dict[str, Tensor]]]):
    """A data set for CHGNet's own loaders and ``collate_graphs``.

    Every structure is converted and checked when the data set is made, before any training. None
    is ever replaced by another: one that is bad is refused by name, or left out if you say so and
    then stands with its reason in ``left_out``.

    Args:
        frames: structures with ids and labels, such as `read_structures` yields.
        store: with the teacher's targets, matched by id and checked against the structure.
        soft: quantities to take from the store; energy, forces and stress as far as it has them
            if left out.
        hard: quantities to take from the labels.
        missing: those of ``hard`` that a structure may lack; it then does not count there.
        converter: to graphs, the student's ``graph_converter``; CHGNet 0.3.0's if left out.
        bad: ``refuse`` or ``leave_out``.
        progress: show a bar.

    Raises:
        DataError: naming bad structures, or if none is left.
        KeyError: for a quantity that the store does not hold.
        ValueError: for an unknown quantity, or if there is nothing to learn.
    """

    def __init__(
        self,
        frames: Iterable[LabelledStructure],
        store: TargetStore | None = None,
        *,
        soft: Sequence[str] | None = None,
        hard: Sequence[str] = (),
        missing: Sequence[str] = (),
        converter: CrystalGraphConverter | None = None,
        bad: Literal["refuse", "leave_out"] = "refuse",
        progress: bool = True,
    ) -> None:
        if store is not None and not isinstance(store, TargetStore):
            raise ValueError(f"store: expected TargetStore.open({str(store)!r}), got {store!r}")
        for what, names in (("soft", soft or ()), ("hard", hard), ("missing", missing)):
            if isinstance(names, str) or not isinstance(names, Iterable):
                raise ValueError(f"{what}: expected quantities such as ('energy',), got {names!r}")
        self.store, self.hard, self.missing = store, tuple(hard), tuple(missing)
        self.soft = soft_of(store, soft)
        _check_names("hard", self.hard, HARD)
        _check_names("missing", self.missing, self.hard)
        if not self.hard and not self.soft:
            raise ValueError("nothing to learn from: give a store, or hard=('energy', 'forces')")
        if bad not in ("refuse", "leave_out"):
            raise ValueError(f"bad: expected 'refuse' or 'leave_out', got {bad!r}")
        self.converter = converter or CrystalGraphConverter(
            atom_graph_cutoff=6, bond_graph_cutoff=3
        )
        self.left_out: dict[str, str] = {}
        bar = tqdm(frames, "reading structures", unit="", disable=not progress)
        self.rows = list(self._rows(bar))
        self._settle(bad)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[CrystalGraph, dict[str, Tensor]]:
        row = self.rows[index]
        return row.graph, dict(row.targets)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of a row's targets."""
        hard = [LETTERS[name] for name in LETTERS if name in self.hard or name == "energy"]
        return (*hard, *(PREFIX["soft"] + LETTERS[name] for name in SOFT if name in self.soft))

    @property
    def fingerprint(self) -> str:
        """A hash of the structures' ids and targets, by which a run knows its data again."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr((row.structure_id, sorted(row.targets))).encode())
            for _, target in sorted(row.targets.items()):
                digest.update(target.numpy().tobytes())
        return digest.hexdigest()[:32]

    def part(self, indices: Iterable[int]) -> DistillData:
        """Return some of the structures as a data set of their own; nothing is read again."""
        made = object.__new__(DistillData)
        made.__dict__.update(self.__dict__)
        made.rows, made.left_out = [self.rows[index] for index in indices], {}
        return made

    def along(self, chosen: Callable[[GraphSample], Sequence[int]]) -> DistillData:
        """Return a data set that has forces along some coordinates only, the others missing.

        Args:
            chosen: the coordinates of a structure, 3 * atom + axis.
        """
        made = self.part(range(len(self)))
        made.rows = [_only(row, chosen(row)) for row in self.rows]
        made.left_out = self.left_out
        return made

    def _rows(self, frames: Iterable[LabelledStructure]) -> Iterator[GraphSample]:
        seen: set[str] = set()
        for frame in frames:
            if not isinstance(frame, LabelledStructure):
                raise DataError(
                    f"frames: expected a LabelledStructure, got a {type(frame).__name__}; read "
                    "structures with read_structures([...]), or make "
                    "LabelledStructure(structure_id, atoms, labels)"
                )
            name = frame.structure_id
            if name in seen:
                self.left_out[name] = "its id comes twice; give each structure its own"
                continue
            seen.add(name)
            try:
                yield self._row(frame)
            except (ValueError, StoreError, KeyError) as error:
                self.left_out[name] = str(error.args[0])

    def _row(self, frame: LabelledStructure) -> GraphSample:
        structure, n_atoms = to_pymatgen(frame.atoms), len(frame.atoms)
        labels = {name: _label(name, frame, self.missing) for name in self.hard}
        teacher = self._teacher(frame)
        hard = to_host({"energy": np.nan, **labels}, n_atoms)
        soft = {
            PREFIX["soft"] + letter: value for letter, value in to_host(teacher, n_atoms).items()
        }
        graph = self.converter(structure, graph_id=frame.structure_id)
        for tensor in (graph.atom_frac_coord, graph.lattice):
            tensor.requires_grad_(False)
        case = DoctorInput(frame.structure_id, to_structure(frame.atoms), labels, teacher)
        return GraphSample(frame.structure_id, graph, {**hard, **soft}, case)

    def _teacher(self, frame: LabelledStructure) -> dict[str, Any]:
        if not self.soft or self.store is None:
            return {}
        values = self.store.read(frame.structure_id, to_structure(frame.atoms)).values
        absent = [name for name in self.soft if name not in values]
        if absent:
            raise ValueError(f"the store has no {absent[0]} of it; label it again")
        found = {name: values[name].double().numpy() for name in self.soft}
        return {
            name: value if quantity(name).scope == "atom" else value[0]
            for name, value in found.items()
        }

    def _settle(self, bad: str) -> None:
        if self.left_out and (bad == "refuse" or not self.rows):
            raise DataError(self._complaint("give bad='leave_out' to train without them"))
        if not self.rows:
            raise DataError("there are no structures")
        if self.left_out:
            logger.warning(self._complaint("they are left out"))

    def _complaint(self, remedy: str) -> str:
        n_bad, n_all = len(self.left_out), len(self.left_out) + len(self.rows)
        lines = [f"  {name}: {reason}" for name, reason in list(self.left_out.items())[:NAMED]]
        more = [f"  and {n_bad - NAMED} more"] if n_bad > NAMED else []
        head = f"{n_bad} of {n_all} structures cannot be trained on ({remedy}):"
        return "\n".join([head, *lines, *more])


def _only(row: GraphSample, chosen: Sequence[int]) -> GraphSample:
    """Return a row without the forces that are not chosen."""
    targets = dict(row.targets)
    for name in (prefix + LETTERS["forces"] for prefix in PREFIX.values()):
        if name in targets:
            forces = targets[name].flatten()
            kept = torch.full_like(forces, torch.nan)
            kept[list(chosen)] = forces[list(chosen)]
            targets[name] = kept.view_as(targets[name])
    return replace(row, targets=targets)


def check_kind(name: str, data: object) -> None:
    """Raise a DataError for anything but a `DistillData`."""
    if not isinstance(data, DistillData):
        raise DataError(
            f"{name}: expected a DistillData, got a {type(data).__name__}; make one with "
            "DistillData(read_structures([...]), store)"
        )


def soft_of(store: TargetStore | None, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the quantities to take from a store; all that can be taught if none are named.

    Raises:
        KeyError: for one that it does not hold.
        ValueError: for one that cannot be taught, or without a store.
    """
    if store is None:
        if names:
            raise ValueError(f"soft={tuple(names)}: give the store that holds these targets")
        return ()
    held = store.manifest.dtypes
    if names is None:
        return tuple(name for name in SOFT if name in held)
    _check_names("soft", names, SOFT)
    lacking = [name for name in names if name not in held]
    if lacking:
        raise KeyError(
            f"soft: the store {store.folder.name} has no {lacking[0]}, it has {', '.join(held)}; "
            f"label with --quantities {' '.join(names)}"
        )
    return tuple(names)


def _check_names(what: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    for name in names:
        if name not in allowed:
            known = suggestion(name, allowed) or f"; expected some of {', '.join(allowed)}"
            raise ValueError(f"{what}: unknown quantity {name!r}{known}")


def _label(name: str, frame: LabelledStructure, missing: Sequence[str]) -> np.ndarray:
    """Return a label, NaN where it may be missing and is.

    Raises:
        ValueError: if it is missing and may not be, is not finite, or has a wrong shape.
    """
    row, n_atoms = quantity(name), len(frame.atoms)
    shape = (n_atoms, *row.shape) if row.scope == "atom" else row.shape
    value = frame.labels.get(name)
    if value is None:
        if name in missing:
            return np.full(shape, np.nan)
        raise ValueError(f"it has no label {name}; it has {', '.join(frame.labels) or 'none'}")
    if value.shape != shape:
        raise ValueError(f"its label {name} has shape {value.shape}, expected {shape}")
    if np.isinf(value).any() or (np.isnan(value).any() and name not in missing):
        raise ValueError(f"its label {name} holds NaN or inf")
    return value
