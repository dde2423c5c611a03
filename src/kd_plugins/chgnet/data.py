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
from kd_plugins.names import renamed_argument, suggestion
from kd_plugins.store import StoreError, TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure

logger = logging.getLogger(__name__)

# Enough to see a pattern, and few enough for one message.
MOST_NAMED = 8
"""How many bad structures a message names."""


class DataError(ValueError):
    """Structures that cannot be trained on, each with its reason."""


@dataclass(frozen=True, eq=False)
class GraphSample:
    """One structure as CHGNet trains on it.

    Args:
        structure_id: its identity.
        graph: CHGNet's graph of it.
        targets: by CHGNet's letters, the teacher's as ``soft_e`` and so on, in CHGNet's units.
        doctor_input: labels and teacher's targets in our units, for the doctor's checks.
    """

    structure_id: str
    graph: CrystalGraph
    targets: Mapping[str, Tensor]
    doctor_input: DoctorInput

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.doctor_input.n_atoms


class DistillData(Dataset[tuple[CrystalGraph, dict[str, Tensor]]]):
    """A data set for CHGNet's own loaders and ``collate_graphs``.

    Every structure is converted and checked when the data set is made, before any training. A bad
    one is refused by name, or left out on request and listed with its reason in ``left_out``;
    CHGNet's own data set would put a random other structure in its place.

    Args:
        structures: with ids and labels, such as `read_structures` yields.
        store: with the teacher's targets, matched by id and checked against the structure.
        soft: quantities to take from the store; if left out, energy, forces and stress as far as
            it has them.
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

    @renamed_argument("frames", "structures")
    def __init__(
        self,
        structures: Iterable[LabelledStructure],
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
        self.soft = choose_soft(store, soft)
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
        bar = tqdm(structures, "reading structures", unit="", disable=not progress)
        self.samples = list(self._convert_all(bar))
        self._refuse_or_log(bad)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[CrystalGraph, dict[str, Tensor]]:
        sample = self.samples[index]
        return sample.graph, dict(sample.targets)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of a sample's targets; CHGNet's Trainer needs the energy, NaN if need be."""
        hard = [LETTERS[name] for name in LETTERS if name in self.hard or name == "energy"]
        return (*hard, *(PREFIX["soft"] + LETTERS[name] for name in SOFT if name in self.soft))

    @property
    def fingerprint(self) -> str:
        """A hash of the structures' ids and targets, by which a resumed run compares its data."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(repr((sample.structure_id, sorted(sample.targets))).encode())
            for _, target in sorted(sample.targets.items()):
                digest.update(target.numpy().tobytes())
        return digest.hexdigest()[:32]

    def part(self, indices: Iterable[int]) -> DistillData:
        """Return some of the structures as a data set of their own; nothing is read again."""
        # Without __init__, which would convert all structures again.
        made = object.__new__(DistillData)
        made.__dict__.update(self.__dict__)
        made.samples, made.left_out = [self.samples[index] for index in indices], {}
        return made

    def along(self, choose: Callable[[GraphSample], Sequence[int]]) -> DistillData:
        """Return a data set that has forces along some coordinates only, the others missing.

        Args:
            choose: returns the coordinates of a structure, 3 * atom + axis.
        """
        made = self.part(range(len(self)))
        made.samples = [_keep_forces(sample, choose(sample)) for sample in self.samples]
        made.left_out = self.left_out
        return made

    def _convert_all(self, structures: Iterable[LabelledStructure]) -> Iterator[GraphSample]:
        seen: set[str] = set()
        for structure in structures:
            if not isinstance(structure, LabelledStructure):
                raise DataError(
                    f"structures: expected a LabelledStructure, got a {type(structure).__name__}; "
                    "read structures with read_structures([...]), or make "
                    "LabelledStructure(structure_id, atoms, labels)"
                )

            name = structure.structure_id
            if name in seen:
                self.left_out[name] = "its id comes twice; give each structure its own"
                continue
            seen.add(name)

            try:
                yield self._convert(structure)
            except (ValueError, StoreError, KeyError) as error:
                self.left_out[name] = str(error.args[0])

    def _convert(self, structure: LabelledStructure) -> GraphSample:
        """Return one structure with its labels and targets, in CHGNet's units."""
        name, n_atoms = structure.structure_id, len(structure.atoms)
        crystal = to_pymatgen(structure.atoms)
        labels = {name: _read_label(name, structure, self.missing) for name in self.hard}
        teacher = self._read_targets(structure)

        # CHGNet's Trainer reads an energy of every structure; NaN does not count.
        hard = to_host({"energy": np.nan, **labels}, n_atoms)
        soft = to_host(teacher, n_atoms)
        targets = {**hard, **{PREFIX["soft"] + letter: value for letter, value in soft.items()}}

        graph = self.converter(crystal, graph_id=name)
        for tensor in (graph.atom_frac_coord, graph.lattice):
            # The model switches gradients on itself; else every backward() would leave one here.
            tensor.requires_grad_(False)

        doctor_input = DoctorInput(name, to_structure(structure.atoms), labels, teacher)
        return GraphSample(name, graph, targets, doctor_input)

    def _read_targets(self, structure: LabelledStructure) -> dict[str, Any]:
        """Return the teacher's targets of one structure, without a batch axis."""
        if not self.soft or self.store is None:
            return {}

        values = self.store.read(structure.structure_id, to_structure(structure.atoms)).values
        absent = [name for name in self.soft if name not in values]
        if absent:
            raise ValueError(f"the store has no {absent[0]} of it; label it again")

        # In double precision, in which energies are divided by the number of atoms.
        found = {name: values[name].double().numpy() for name in self.soft}
        return {
            name: value if quantity(name).scope == "atom" else value[0]
            for name, value in found.items()
        }

    def _refuse_or_log(self, bad: str) -> None:
        if self.left_out and (bad == "refuse" or not self.samples):
            raise DataError(self._list_left_out("give bad='leave_out' to train without them"))
        if not self.samples:
            raise DataError("there are no structures")
        if self.left_out:
            logger.warning(self._list_left_out("they are left out"))

    def _list_left_out(self, remedy: str) -> str:
        n_bad, n_all = len(self.left_out), len(self.left_out) + len(self.samples)
        named = list(self.left_out.items())[:MOST_NAMED]
        lines = [f"  {name}: {reason}" for name, reason in named]
        more = [f"  and {n_bad - MOST_NAMED} more"] if n_bad > MOST_NAMED else []
        head = f"{n_bad} of {n_all} structures cannot be trained on ({remedy}):"
        return "\n".join([head, *lines, *more])


def check_distill_data(name: str, data: object) -> None:
    """Raise a DataError for anything but a `DistillData`."""
    if not isinstance(data, DistillData):
        raise DataError(
            f"{name}: expected a DistillData, got a {type(data).__name__}; make one with "
            "DistillData(read_structures([...]), store)"
        )


def choose_soft(store: TargetStore | None, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the quantities to take from a store; all that a student can learn if none are named.

    Raises:
        KeyError: for one that it does not hold.
        ValueError: for one that cannot be learned, or without a store.
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


def _read_label(name: str, structure: LabelledStructure, missing: Sequence[str]) -> np.ndarray:
    """Return a label, NaN where it may be missing and is.

    Raises:
        ValueError: if it is missing and may not be, is not finite, or has a wrong shape.
    """
    row, n_atoms = quantity(name), len(structure.atoms)
    shape = (n_atoms, *row.shape) if row.scope == "atom" else row.shape

    value = structure.labels.get(name)
    if value is None:
        if name in missing:
            return np.full(shape, np.nan)
        raise ValueError(f"it has no label {name}; it has {', '.join(structure.labels) or 'none'}")

    if value.shape != shape:
        raise ValueError(f"its label {name} has shape {value.shape}, expected {shape}")
    if np.isinf(value).any() or (np.isnan(value).any() and name not in missing):
        raise ValueError(f"its label {name} holds NaN or inf")
    return value


def _keep_forces(sample: GraphSample, coordinates: Sequence[int]) -> GraphSample:
    """Return a sample with forces along some coordinates, those along the others missing."""
    targets = dict(sample.targets)
    for name in (prefix + LETTERS["forces"] for prefix in PREFIX.values()):
        if name in targets:
            forces = targets[name].flatten()
            kept = torch.full_like(forces, torch.nan)
            kept[list(coordinates)] = forces[list(coordinates)]
            targets[name] = kept.view_as(targets[name])
    return replace(sample, targets=targets)
