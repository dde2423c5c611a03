"""A teacher that has already spoken: targets read from a store, with no model in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from ase.geometry import complete_cell
from torch import Tensor
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.loss import Term
from kd_plugins.core.quantities import quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.store.record import Record
from kd_plugins.store.shard import StoreError
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.teachers.spec import AND

PREFIX = "kd_target_"
_NEVER = {"force_derivatives": "force derivatives along directions drawn in each step"}


class StoredTargets:
    """Gives the targets of `TargetStore` for fairchem's batches, found by structure id.

    Each structure is compared with the one that was labelled before its targets are given away.

    Args:
        store: that holds them.
        quantities: that are given away, of each structure.
        width: of the embeddings, or None where there are none.
        lmax: highest degree of the embeddings, or None where there is but l = 0.
    """

    def __init__(
        self,
        store: TargetStore,
        quantities: tuple[str, ...],
        width: int | None = None,
        lmax: int | None = None,
    ) -> None:
        self.store, self.quantities, self.width, self.lmax = store, quantities, width, lmax

    @classmethod
    def open(cls, folder: str, terms: Sequence[Term]) -> StoredTargets:
        """Return the targets of a store that was filled before.

        Args:
            folder: of the store, as ``task.distill.targets`` names it.
            terms: of the loss, whose quantities the store must hold.

        Raises:
            ConfigError: if there is no store, it is empty, or lacks what a term needs.
        """
        try:
            store = TargetStore.open(folder)
            first = next(store.ids(), None)
            record = None if first is None else store.record(first)
        except StoreError as error:
            raise ConfigError(f"task.distill.targets: {error}") from error
        if record is None:
            raise ConfigError(f"task.distill.targets: the store {folder} holds no structure")
        sizes = {name: tuple(value.shape) for name, value in record.values.items()}
        widths = [shape[-1] for name, shape in sizes.items() if name.endswith("_embeddings")]
        rows = sizes.get("equivariant_embeddings", (0, 0))[1]
        lmax = math.isqrt(rows) - 1 if rows else None
        return cls(store, _needed(terms, store), widths[0] if widths else None, lmax)

    @property
    def fingerprint(self) -> str:
        """The identity of the model that filled the store, as the model itself says it."""
        own = self.store.manifest.fingerprint.removeprefix("EquiformerV2 ")
        return own.partition(" ")[0]

    def __call__(self, batch: Batch, graph: object = None) -> TeacherTargets:
        """Return the targets of a batch, in float32; the graph is not needed."""
        if not all(f"{PREFIX}{name}" in batch for name in self.quantities):
            self.attach(batch)
        values = {name: batch[f"{PREFIX}{name}"] for name in self.quantities}
        return TeacherTargets(structure_ids(batch), batch.natoms, values)

    def missing(self, batch: Batch) -> list[int]:
        """Return the places of a batch's structures that the store lacks."""
        ids = enumerate(structure_ids(batch))
        return [place for place, structure_id in ids if structure_id not in self.store]

    def attach(self, batch: Batch) -> Batch:
        """Put the targets of its structures into a batch, which carries them to the device."""
        read = [
            self.read(*named) for named in zip(structure_ids(batch), structures(batch), strict=True)
        ]
        for name in self.quantities:
            value = torch.cat([values[name] for values in read])
            batch[f"{PREFIX}{name}"] = value.to(batch.pos.device)
        return batch

    def read(self, structure_id: str, structure: Structure) -> Mapping[str, Tensor]:
        """Return the targets of one structure, with a batch axis.

        Raises:
            ConfigError: if the store lacks it, one of its targets, or holds another structure.
        """
        try:
            record = self.store.record(structure_id)
        except (KeyError, StoreError) as error:
            raise ConfigError(f"task.distill.targets: {error.args[0]}") from error
        difference = structure.difference(_as_fairchem_has_it(record))
        if difference is not None:
            raise ConfigError(
                f"task.distill.targets: structure {structure_id!r} is not the one that was "
                f"labelled: {difference}; were ids shuffled, structures edited, or does a "
                "transform of the data set move them?"
            )
        missing = [name for name in self.quantities if name not in record.values]
        if missing:
            raise ConfigError(
                f"task.distill.targets: structure {structure_id!r} has no {missing[0]!r}"
            )
        return {name: _batched(name, record.values[name]) for name in self.quantities}


def structures(batch: Batch) -> list[Structure]:
    """Return what makes out the identity of each structure of a batch."""
    ends = batch.natoms.cumsum(0).tolist()
    numbers, positions = batch.atomic_numbers.long().cpu(), batch.pos.cpu()
    cells = batch.cell.reshape(-1, 3, 3).cpu()
    periodic = (
        batch.pbc.reshape(-1, 3).bool().cpu() if "pbc" in batch else torch.ones(cells.shape[:2])
    )
    return [
        Structure(numbers[start:end], positions[start:end], cell, pbc)
        for start, end, cell, pbc in zip([0, *ends[:-1]], ends, cells, periodic, strict=True)
    ]


def _as_fairchem_has_it(record: Record) -> Structure:
    """Return a labelled structure with lattice vectors where it has none, as fairchem adds them."""
    known = record.structure
    if known.cell.any(axis=1).all():
        return known
    cell = complete_cell(known.cell)
    return Structure(known.atomic_numbers, known.positions, cell, known.pbc)


def _batched(name: str, value: Tensor) -> Tensor:
    value = value.float()
    return value.reshape(1, *value.shape) if quantity(name).scope == "structure" else value


def _needed(terms: Sequence[Term], store: TargetStore) -> tuple[str, ...]:
    """Return the quantities that the terms compare, of those that the store holds.

    Raises:
        ConfigError: naming a term, what it lacks and the command that makes it.
    """
    held = store.manifest.dtypes
    missing = [(term.quantity, term.name) for term in terms if term.quantity not in held]
    if missing:
        name, term = missing[0]
        every = " ".join(dict.fromkeys([*held, *(name for name, _ in missing)]))
        hint = "; or set its features: l0" if name == "equivariant_embeddings" else ""
        raise ConfigError(
            f"terms.{term} needs {name}, and the store {store.folder} holds {', '.join(held)}; "
            f"fill another: {label_command(store.manifest.teacher, 'FOLDER')} --quantities {every}"
            f"{hint}"
        )
    return read_quantities(terms, held)


def label_command(teacher: str, store: object) -> str:
    """Return the command that labels the data sets of a run by the ids that it sees."""
    teachers = teacher.replace(AND, " --teacher ")
    return f"kd-plugins label --fairchem X.yml --teacher {teachers} --store {store}"


def read_quantities(terms: Sequence[Term], held: Iterable[str]) -> tuple[str, ...]:
    """Return those of some quantities that are worth reading: what terms and checks look at."""
    wanted = {"energy", "forces", *(term.quantity for term in terms)}
    if "equivariant_embeddings" in wanted:
        wanted.add("node_embeddings")
    return tuple(name for name in held if name in wanted)


def check_storable(terms: Sequence[Term], dataset: Mapping[str, Any]) -> None:
    """Refuse terms whose targets are others in each step, and what moves atoms after labelling.

    Raises:
        ConfigError: naming the term or the transform.
    """
    for term in terms:
        if term.quantity in _NEVER:
            raise ConfigError(
                f"terms.{term.name} compares {_NEVER[term.quantity]}, which no store can hold; "
                "leave it out, or give teacher.checkpoint in place of targets"
            )
    still = ("normalizer", "element_references", "decompose_tensor")
    for split, settings in dataset.items():
        transforms = settings.get("transforms") if isinstance(settings, Mapping) else None
        for name in transforms or ():
            if name not in still:
                raise ConfigError(
                    f"dataset.{split}.transforms.{name} may change the structures, whose cached "
                    f"targets would then be wrong; known not to: {', '.join(still)}. Leave it "
                    "out, or give teacher.checkpoint in place of targets"
                )
