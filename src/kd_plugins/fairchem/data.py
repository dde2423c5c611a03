"""Teacher targets onto fairchem's data: from a store or a teacher, and checked structures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from ase.geometry import complete_cell
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.quantities import quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.core.terms import Term
from kd_plugins.fairchem.checkpointing import Checkpoint, read_checkpoint
from kd_plugins.fairchem.convert import EnergyOffsets, structure_ids, structures
from kd_plugins.fairchem.matching import MISSING, label_command, match
from kd_plugins.fairchem.preflight import check_structure, read
from kd_plugins.fairchem.settings import Auto, DistillSettings
from kd_plugins.fairchem.teacher import FrozenEquiformerV2
from kd_plugins.fairchem.unlabelled import SPLIT, MixedDataset, note_labelled
from kd_plugins.store import StoreError
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure

_NEVER_STORED = {"force_derivatives": "force derivatives along directions drawn in each step"}
_KEEP_ATOMS = ("normalizer", "element_references", "decompose_tensor")
"""Transforms of fairchem that are known not to move atoms."""


class TargetProvider(Protocol):
    """A source of teacher targets for fairchem's batches: a model in memory, or a store.

    `kd_plugins.fairchem.teacher.FrozenEquiformerV2` and `StoredTargets` are the two.
    """

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities of each structure."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the model that predicted them."""
        ...

    @property
    def width(self) -> int | None:
        """Channels of the embeddings, or None where there are none."""
        ...

    @property
    def lmax(self) -> int | None:
        """Highest degree of the embeddings, or None where there is but l = 0."""
        ...

    energy_offsets: EnergyOffsets | None
    """Subtracted from the energies, if any."""

    def __call__(self, batch: Batch, graph: Any = None) -> TeacherTargets:
        """Return the targets of a batch; a neighbour graph saves a model from building its own."""
        ...


class StoredTargets:
    """Targets from a `TargetStore`, found by structure id, with no model in memory.

    Each structure is compared with the one that was labelled before its targets are used.

    Args:
        store: with the targets.
        quantities: to read of each structure.
        width: of the embeddings, or None where there are none.
        lmax: highest degree of the embeddings, or None where there is but l = 0.
        allows_missing: whether a structure may have no target, or not all of them.
    """

    def __init__(
        self,
        store: TargetStore,
        quantities: tuple[str, ...],
        width: int | None = None,
        lmax: int | None = None,
        allows_missing: bool = False,
    ) -> None:
        self.store, self.quantities, self.width, self.lmax = store, quantities, width, lmax
        self.allows_missing = allows_missing
        self.energy_offsets: EnergyOffsets | None = None

    @classmethod
    def open(cls, folder: str | Path, terms: Sequence[Term]) -> StoredTargets:
        """Return the targets of a store that was labelled before.

        Args:
            folder: of the store, as ``task.distill.targets`` names it.
            terms: of the loss; the store must hold their quantities.

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

        shapes = {name: tuple(value.shape) for name, value in record.values.items()}
        widths = [shape[-1] for name, shape in shapes.items() if name.endswith("_embeddings")]

        # The rows of equivariant embeddings are the (lmax + 1)² pairs (l, m).
        n_rows = shapes.get("equivariant_embeddings", (0, 0))[1]
        lmax = math.isqrt(n_rows) - 1 if n_rows else None
        return cls(store, _quantities_to_read(terms, store), widths[0] if widths else None, lmax)

    @property
    def fingerprint(self) -> str:
        """Identity of the model that filled the store, as the model itself has it."""
        name = self.store.manifest.fingerprint.removeprefix("EquiformerV2 ")
        return name.partition(" ")[0]

    def __call__(self, batch: Batch, graph: Any = None) -> TeacherTargets:
        """Return the targets of a batch, in float32; the graph is not needed."""
        if "kd_targets" not in batch:
            self.attach(batch)
        return batch.kd_targets.to(batch.pos.device)

    def attach(self, batch: Batch) -> Batch:
        """Add the targets of its structures to a batch, which carries them to its device.

        Raises:
            ConfigError: if the store lacks a structure or one of its targets, or holds another
                structure under its id.
        """
        found = zip(structure_ids(batch), structures(batch), strict=True)
        joined = TeacherTargets.collate([self._read(*one) for one in found])

        # Numbers were checked when they were stored. Their sum is finite only if all of them are.
        sums = torch.stack([value.sum() for value in joined.values.values()])
        if not torch.isfinite(sums).all():
            TeacherTargets(joined.structure_ids, joined.n_atoms, joined.values, joined.present)
        batch.kd_targets = joined
        return batch

    def _read(self, structure_id: str, structure: Structure) -> TeacherTargets:
        """Return the targets of one structure, as a batch of one whose numbers are unchecked."""
        try:
            record = self.store.record(structure_id)
        except (KeyError, StoreError) as error:
            if self.allows_missing and isinstance(error, KeyError):
                return self._collect(structure_id, structure, {})
            raise ConfigError(f"task.distill.targets: {error.args[0]}") from error

        # An id that was given to another structure would teach wrong numbers without any error.
        difference = structure.difference(_with_cell(record))
        if difference is not None:
            raise ConfigError(
                f"task.distill.targets: structure {structure_id!r} is not the one that was "
                f"labelled: {difference}; were ids shuffled, structures edited, or does a "
                "transform of the data set move them?"
            )

        missing = [name for name in self.quantities if name not in record.values]
        if missing and not self.allows_missing:
            raise ConfigError(
                f"task.distill.targets: structure {structure_id!r} has no {missing[0]!r}"
            )
        return self._collect(structure_id, structure, record.values)

    def _collect(
        self, structure_id: str, structure: Structure, found: Mapping[str, Tensor]
    ) -> TeacherTargets:
        """Return the targets found of a structure; zeros stand for those that are missing."""
        found = {
            name: found[name][None] if quantity(name).scope == "structure" else found[name]
            for name in self.quantities
            if name in found
        }
        if self.energy_offsets is not None:
            numbers = torch.from_numpy(structure.atomic_numbers)
            found = self.energy_offsets.subtract(found, numbers, torch.zeros_like(numbers).long())

        sizes = {"D": self.width or 0, "M": ((self.lmax or 0) + 1) ** 2}
        values, present = {}, {}
        for name in self.quantities:
            if name in found:
                # The student computes in float32, whatever precision the store keeps.
                values[name] = found[name].float()
            else:
                row = quantity(name)
                shape = [size if isinstance(size, int) else sizes[size] for size in row.shape]
                values[name] = torch.zeros(row.n_items(1, structure.n_atoms), *shape)
                present[name] = torch.tensor([False])
        n_atoms = structure.n_atoms
        return TeacherTargets.unchecked(
            (structure_id,), torch.tensor([n_atoms]), values, present, n_atoms
        )


def _with_cell(record: Record) -> Structure:
    """Return a labelled structure with lattice vectors where it has none, as fairchem adds them."""
    known = record.structure
    if known.cell.any(axis=1).all():
        return known

    # fairchem's own graphs are made by this very function of ASE's.
    cell = complete_cell(known.cell)
    return Structure(known.atomic_numbers, known.positions, cell, known.pbc)


def _quantities_to_read(terms: Sequence[Term], store: TargetStore) -> tuple[str, ...]:
    """Return the quantities that the terms compare and the log measures, as the store has them.

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
    return used_quantities(terms, held)


def used_quantities(terms: Sequence[Term], held: Iterable[str]) -> tuple[str, ...]:
    """Return those of some quantities that terms compare and that checks and the log look at."""
    # Energies and forces are examined before training, and their errors are logged.
    used = {"energy", "forces", *(term.quantity for term in terms)}

    if "equivariant_embeddings" in used:
        used.add("node_embeddings")
    return tuple(name for name in held if name in used)


def check_storable(terms: Sequence[Term], dataset: Mapping[str, Any]) -> None:
    """Refuse terms with other targets in each step, and transforms that may move atoms.

    Raises:
        ConfigError: naming the term or the transform.
    """
    for term in terms:
        if term.quantity in _NEVER_STORED:
            raise ConfigError(
                f"terms.{term.name} compares {_NEVER_STORED[term.quantity]}, which no store can "
                "hold; leave it out, or give teacher.checkpoint in place of targets"
            )

    for split, settings in dataset.items():
        transforms = settings.get("transforms") if isinstance(settings, Mapping) else None
        for name in transforms or ():
            if name not in _KEEP_ATOMS:
                raise ConfigError(
                    f"dataset.{split}.transforms.{name} may change the structures, whose cached "
                    f"targets would then be wrong; known not to: {', '.join(_KEEP_ATOMS)}. Leave "
                    "it out, or give teacher.checkpoint in place of targets"
                )


@dataclass
class Requirements:
    """The labels and elements that a run needs; known only after its data loaders are made.

    Args:
        labels: that the loss compares.
        elements: "student" and "teacher" to the number of elements that the model knows.
    """

    labels: tuple[str, ...] = ()
    elements: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class UnusableStructure:
    """A stand-in for a structure, and then for its batch, that cannot be trained on.

    It travels from the loader's workers in place of an error, since an error that a worker raises
    arrives with the worker's whole traceback as its text.

    Args:
        reason: with the place of the structure.
    """

    reason: str

    def to(self, *_: Any, **__: Any) -> UnusableStructure:
        """Return it, as a batch is moved to a device."""
        return self

    def pin_memory(self) -> UnusableStructure:
        """Return it, as a batch is pinned."""
        return self


class CheckedDataset(Dataset[Any]):
    """A data set that gives an `UnusableStructure` in place of one that a run cannot use.

    Args:
        dataset: of fairchem.
        name: "train" or "val", for messages.
        requirements: of each structure.
    """

    def __init__(self, dataset: Dataset[Any], name: str, requirements: Requirements) -> None:
        self.dataset, self.name, self.requirements = dataset, name, requirements

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        """Return a structure as it is, or the reason for which it cannot be used."""
        name, place = self.name, index
        if isinstance(self.dataset, MixedDataset):
            name, place = self.dataset.place(index)
        labels = () if name == SPLIT else self.requirements.labels

        where = f"dataset.{name}[{place}]"
        try:
            data = read(self.dataset, index, where)
            check_structure(data, where, labels, self.requirements.elements)
        except ConfigError as error:
            return UnusableStructure(str(error))
        return data


class Collater:
    """fairchem's collater with ids and stored targets; it runs in the data loader's workers.

    Args:
        collate: fairchem's.
        inputs: of the run, whose store there may be none of yet.
    """

    def __init__(self, collate: Callable[[list[Any]], Batch], inputs: TargetInputs) -> None:
        self.collate, self.inputs = collate, inputs

    def __call__(self, data: list[Any]) -> Batch | UnusableStructure:
        """Return a batch, or the first of its structures that cannot be used."""
        for item in data:
            if isinstance(item, UnusableStructure):
                return item

        batch = note_labelled(self.collate(data))
        if self.inputs.stored is not None:
            try:
                return self.inputs.stored.attach(batch)
            except ConfigError as error:
                return UnusableStructure(str(error))

        # Read here, on the CPU: in the step the numbers among them would be waited for.
        batch.kd_structure_ids = structure_ids(batch)
        return batch


@dataclass
class TargetInputs:
    """The checkpoint and the store from which a run has its targets and its student's start.

    Args:
        checkpoint: of the teacher, if it is needed; dropped once its model is built.
        stored: the store; None while the teacher is in memory, or before it has labelled one.
        auto: the store that the run labels itself, if any.
    """

    checkpoint: Checkpoint | None
    stored: StoredTargets | None = None
    auto: Auto | None = None
    _labelling: FrozenEquiformerV2 | None = None

    @classmethod
    def from_settings(
        cls, settings: DistillSettings, terms: Sequence[Term], dataset: Mapping[str, Any]
    ) -> TargetInputs:
        """Open the store and read the checkpoint, each where the settings need it.

        Raises:
            ConfigError: if the store lacks what a term needs, or a transform moves structures.
        """
        if settings.targets is None:
            return cls(read_checkpoint(settings.teacher))

        check_storable(terms, dataset)
        if isinstance(settings.targets, Auto):
            return cls(read_checkpoint(settings.teacher), auto=settings.targets)

        stored = StoredTargets.open(settings.targets, terms)
        stored.allows_missing = MISSING in settings.allow
        if settings.student.initialize == "teacher":
            return cls(read_checkpoint(settings.teacher), stored)
        if settings.teacher is not None:
            logging.info("teacher.checkpoint is not read: targets come from the store")
        return cls(None, stored)

    def provider(self, terms: Sequence[Term], folder: Path, device: torch.device) -> TargetProvider:
        """Return the provider of a run's targets.

        Args:
            terms: of the loss.
            folder: of the run's own store, which `targets: auto` labels if it names no other.
            device: of the run.

        Raises:
            ConfigError: if the store to label is another teacher's, or has other quantities.
        """
        if self.auto is None:
            return self.stored or self._build_model(device)

        # The labeller and its readers are for this one setting; other runs do not load them.
        from kd_plugins.fairchem.label_datasets import open_automatic_store

        if self.auto.folder is not None:
            folder = Path(self.auto.folder)
        checkpoint, self._labelling = self.checkpoint, self._build_model(device)
        self.stored = open_automatic_store(folder, checkpoint, self._labelling, terms)
        return self.stored

    def label_missing(self, datasets: Mapping[str, Dataset[Any]], device: torch.device) -> None:
        """Label what the store of `targets: auto` lacks, and drop the model.

        Args:
            datasets: "train", "val" and "unlabelled" to a data set of fairchem.
            device: of the run.

        Raises:
            ConfigError: if a structure cannot be labelled.
        """
        if self._labelling is None:
            return
        from kd_plugins.fairchem.label_datasets import label_missing

        label_missing(self.stored, self._labelling, datasets, device)
        self._labelling = None

    def starting_model(self, provider: TargetProvider, device: torch.device) -> FrozenEquiformerV2:
        """Return the model from which a student starts.

        Raises:
            ConfigError: if it is another than the one that filled the store.
        """
        if isinstance(provider, FrozenEquiformerV2):
            return provider

        model = self._labelling or self._build_model(device)
        if model.fingerprint != provider.fingerprint:
            raise ConfigError(
                "task.distill: teacher.checkpoint is not the teacher that filled the store of "
                f"targets (weights {model.fingerprint[:12]}, the store's "
                f"{provider.fingerprint[:12]}); give that one, with the same weights: ema or raw"
            )
        return model

    def _build_model(self, device: torch.device) -> FrozenEquiformerV2:
        # The checkpoint's tensors are let go, or they would stand in memory twice.
        checkpoint, self.checkpoint = self.checkpoint, None
        return FrozenEquiformerV2(checkpoint, device)

    def check_datasets(
        self,
        datasets: Mapping[str, Dataset[Any]],
        settings: DistillSettings,
        device: torch.device,
        n_workers: int,
    ) -> None:
        """Match data sets with the store, where there is one, see `kd_plugins.fairchem.matching`.

        Args:
            datasets: "train", "val" and "unlabelled" to a data set of fairchem.
            settings: of the run.
            device: over which ranks communicate.
            n_workers: processes of each rank that read.

        Raises:
            ConfigError: if a structure has no target, or an id stands for two structures.
        """
        if self.stored is not None:
            match(self.stored, datasets, settings.preflight, settings.seed, device, n_workers)
