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
from kd_plugins.chgnet.loss import HARD, PREFIX, SOFT, WEIGHT, TargetKind
from kd_plugins.core.quantities import quantity
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.names import renamed_argument, suggestion
from kd_plugins.numbers import check_number
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
        targets: by CHGNet's letters, the teacher's as ``soft_e`` and so on, in CHGNet's units;
            where structures count unequally, their weights as well (``weight_soft_e``).
        doctor_input: labels and teacher's targets in our units, for the doctor's checks.
        source: the place of the data set that it came from, among those that were concatenated.
    """

    structure_id: str
    graph: CrystalGraph
    targets: Mapping[str, Tensor]
    doctor_input: DoctorInput
    source: int = 0

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.doctor_input.n_atoms


class DistillData(Dataset[tuple[CrystalGraph, dict[str, Tensor]]]):
    """A data set for CHGNet's own loaders and ``collate_graphs``.

    Every structure is converted and checked when the data set is made, before any training. A bad
    one is refused by name, or left out on request and listed with its reason in ``left_out``;
    CHGNet's own data set would put a random other structure in its place.

    Several sources, such as structures with labels, those that a teacher labelled and replay, are
    one data set: ``DistillData.concatenate([organic, replay.weighted(0.5)])``.

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

    def weighted(
        self,
        weight: float | Sequence[float] = 1.0,
        *,
        soft: Mapping[str, float] | None = None,
        hard: Mapping[str, float] | None = None,
    ) -> DistillData:
        """Return the same structures, counting more or less beside others.

        The error of a quantity is the mean over a batch weighted by these, so that a structure of
        weight 2 counts as if the batch held it twice, and one of weight 0 is left out. Weights act
        between the rows of one quantity; how much the quantity counts is the loss's.

        Args:
            weight: one number, or one a structure.
            soft: factors of the weight by quantity, for the teacher's targets; 0 leaves them out.
            hard: the same for the labels.

        Raises:
            ValueError: for a negative weight, another number of weights, or a quantity that the
                data do not have.
        """
        weights = _check_weights(weight, len(self))
        factors = {
            "soft": _check_factors("soft", soft or {}, self.soft),
            "hard": _check_factors("hard", hard or {}, self.hard),
        }
        made = self.part(range(len(self)))
        made.left_out = self.left_out
        made.soft, made.hard = (
            tuple(name for name in getattr(self, kind) if factors[kind].get(name, 1.0) != 0)
            for kind in ("soft", "hard")
        )
        made.samples = _same_keys(
            [
                _weigh(sample, one, factors)
                for sample, one in zip(self.samples, weights, strict=True)
                if one != 0
            ]
        )
        return made

    @classmethod
    def concatenate(cls, sources: Sequence[DistillData]) -> DistillData:
        """Return one data set of several, such as labelled structures, a teacher's and replay.

        A structure lacks what its source does not have, and does not count there. One that is in
        two sources is two rows.

        Args:
            sources: see `weighted` for their weights.

        Raises:
            DataError: for anything but data sets.
            ValueError: without a source, or if their graphs have different cutoffs.
        """
        if isinstance(sources, DistillData) or not sources:
            given = "one alone" if sources else "none"
            raise ValueError(f"sources: expected a list of data sets, got {given}")
        for place, source in enumerate(sources):
            check_distill_data(f"sources[{place}]", source)
            for name in ("atom_graph_cutoff", "bond_graph_cutoff"):
                ours, first = (getattr(one.converter, name) for one in (source, sources[0]))
                if ours != first:
                    raise ValueError(
                        f"sources[{place}]: its graphs have {name} {ours} Å, those of the first "
                        f"{first} Å; make both with converter=model.graph_converter"
                    )

        # Without __init__, as in `part`.
        made = object.__new__(cls)
        made.__dict__.update(sources[0].__dict__)
        made.store = sources[0].store if len({id(one.store) for one in sources}) == 1 else None
        for kind, allowed in (("soft", SOFT), ("hard", HARD), ("missing", HARD)):
            held = {name for one in sources for name in getattr(one, kind)}
            setattr(made, kind, tuple(name for name in allowed if name in held))
        made.left_out = {name: why for one in sources for name, why in one.left_out.items()}

        samples: list[GraphSample] = []
        for source in sources:
            first = 1 + max((sample.source for sample in samples), default=-1)
            samples += [replace(one, source=first + one.source) for one in source.samples]
        made.samples = _same_keys([_fill(sample, made.keys) for sample in samples])
        return made

    def with_energies(self, kind: TargetKind, offset: Callable[[np.ndarray], float]) -> DistillData:
        """Return the same structures with energies that are lower by an offset.

        Args:
            kind: ``soft``, the teacher's energies, or ``hard``, the labels.
            offset: eV to take off a structure with some atomic numbers, (N,).
        """
        made = self.part(range(len(self)))
        made.left_out = self.left_out
        made.samples = [_lower_energy(sample, kind, offset) for sample in self.samples]
        return made

    def by_source(self) -> list[DistillData]:
        """Return the data sets that were concatenated; one if none were."""
        places = sorted({sample.source for sample in self.samples})
        return [
            self.part(index for index, one in enumerate(self.samples) if one.source == place)
            for place in places
        ]

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


def _check_weights(weight: float | Sequence[float], count: int) -> list[float]:
    """Return one weight a structure."""
    if isinstance(weight, Sequence | np.ndarray) and not isinstance(weight, str):
        if len(weight) != count:
            raise ValueError(
                f"weight: expected one number or one a structure, got {len(weight)} for {count} "
                "structures"
            )
        return [check_number(f"weight[{i}]", one, least=0) for i, one in enumerate(weight)]
    return [check_number("weight", weight, least=0)] * count


def _check_factors(
    kind: str, factors: Mapping[str, float], held: Sequence[str]
) -> dict[str, float]:
    if not isinstance(factors, Mapping):
        raise ValueError(f"{kind}: expected quantities with factors, got {factors!r}")
    _check_names(kind, list(factors), held)
    return {name: check_number(f"{kind}.{name}", one, least=0) for name, one in factors.items()}


def _weigh(
    sample: GraphSample, weight: float, factors: Mapping[str, Mapping[str, float]]
) -> GraphSample:
    """Return a sample whose targets have weights, and lack what has the factor 0."""
    targets, item = dict(sample.targets), sample.doctor_input
    held = {"soft": dict(item.teacher), "hard": dict(item.labels)}

    for kind, prefix in PREFIX.items():
        for name, letter in LETTERS.items():
            key = prefix + letter
            if key not in targets:
                continue
            factor = factors[kind].get(name, 1.0)
            if factor == 0:
                held[kind].pop(name, None)
                targets.pop(key)
                targets.pop(WEIGHT + key, None)
            else:
                before = targets.get(WEIGHT + key, torch.ones_like(targets[key]))
                targets[WEIGHT + key] = before * (weight * factor)

    # CHGNet's Trainer reads an energy of every structure.
    targets.setdefault("e", torch.tensor(torch.nan))
    changed = DoctorInput(item.structure_id, item.structure, held["hard"], held["soft"])
    return replace(sample, targets=targets, doctor_input=changed)


def _lower_energy(
    sample: GraphSample, kind: TargetKind, offset: Callable[[np.ndarray], float]
) -> GraphSample:
    item, key = sample.doctor_input, PREFIX[kind] + LETTERS["energy"]
    values = dict(item.teacher if kind == "soft" else item.labels)
    if "energy" not in values:
        return sample

    # From double precision, as `DistillData` itself makes it.
    values["energy"] = values["energy"] - offset(item.structure.atomic_numbers)
    energy = to_host({"energy": values["energy"]}, sample.n_atoms)[LETTERS["energy"]]
    sides = {"soft": item.teacher, "hard": item.labels, kind: values}
    changed = DoctorInput(item.structure_id, item.structure, sides["hard"], sides["soft"])
    return replace(sample, targets={**sample.targets, key: energy}, doctor_input=changed)


def _fill(sample: GraphSample, keys: Sequence[str]) -> GraphSample:
    """Return a sample with NaN for the targets that it lacks, in the order of the keys."""
    shapes = {"e": (), "f": (sample.n_atoms, 3), "s": (3, 3), "m": (sample.n_atoms,)}
    held = sample.targets
    targets = {
        key: held[key] if key in held else torch.full(shapes[key[-1]], torch.nan) for key in keys
    }
    weights = {key: value for key, value in held.items() if key.startswith(WEIGHT)}
    return replace(sample, targets={**targets, **weights})


def _same_keys(samples: Sequence[GraphSample]) -> list[GraphSample]:
    """Return samples of which all or none have weights, as CHGNet's ``collate_graphs`` needs it.

    None if all weights are 1, so that nothing changes where nobody gave one.
    """
    weights = [
        value
        for sample in samples
        for key, value in sample.targets.items()
        if key.startswith(WEIGHT)
    ]
    counts_alike = all(bool((value == 1).all()) for value in weights)

    made = []
    for sample in samples:
        plain = {key: one for key, one in sample.targets.items() if not key.startswith(WEIGHT)}
        added = {}
        if not counts_alike:
            added = {
                WEIGHT + key: sample.targets.get(WEIGHT + key, torch.ones_like(one))
                for key, one in plain.items()
            }
        made.append(replace(sample, targets={**plain, **added}))
    return made
