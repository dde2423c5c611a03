"""A teacher that is asked once for each structure, and a store that remembers what it said."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist
from fairchem.core.common import distutils
from fairchem.core.datasets import data_list_collater
from fairchem.core.models.base import GraphData
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.loss import Term
from kd_plugins.core.quantities import quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem.cached import StoredTargets, read_quantities, structures
from kd_plugins.fairchem.convert import Capture
from kd_plugins.fairchem.teacher import GRAPH_SETTINGS, Teacher
from kd_plugins.store.manifest import Manifest, check_same
from kd_plugins.store.record import Record
from kd_plugins.store.shard import StoreError
from kd_plugins.store.store import TargetStore

SHARD = "auto"
"""All ranks, and all runs that share the store, write it in turns: no structure comes twice."""
PATIENCE = 60.0
"""Seconds to wait for one's turn; a turn takes milliseconds."""


class FillingTeacher:
    """Gives targets from a store; what the store lacks is asked of the model once and kept there.

    Targets are given as they were kept, so that the step in which a structure was stored, the
    same step of a run that was killed and resumed, and all later ones see the same numbers. A batch
    is kept whole or not at all.

    Args:
        online: the model.
        folder: of the store, made if it is not there.
        terms: of the loss, whose quantities are kept, in float32.

    Raises:
        ConfigError: if the folder holds what another teacher said, other quantities or something
            else, or the ranks are on several machines, which cannot share a store.
    """

    def __init__(self, online: Teacher, folder: Path, terms: Sequence[Term]) -> None:
        self.online = online
        self.quantities = _kept(online, terms)
        store = _open(folder, _manifest(online, self.quantities))
        self.cached = StoredTargets(store, self.quantities)
        logging.info(f"targets: {folder} holds {len(store)} structures, others are added to it")

    @property
    def backbone(self) -> EquiformerV2Backbone:
        """The model's backbone."""
        return self.online.backbone

    @property
    def capture(self) -> Capture:
        """Hooks on the model."""
        return self.online.capture

    @property
    def fingerprint(self) -> str:
        """The model's identity."""
        return self.online.fingerprint

    @property
    def width(self) -> int:
        """Channels of its embeddings."""
        return self.online.width

    @property
    def lmax(self) -> int:
        """Highest degree of its embeddings."""
        return self.online.lmax

    def shares_graph_with(self, student: EquiformerV2Backbone) -> bool:
        """Return whether both models would build the same neighbour graph."""
        return self.online.shares_graph_with(student)

    def __call__(self, batch: Batch, graph: GraphData | None = None) -> TeacherTargets:
        """Return the targets of a batch, after the model has said those that are missing.

        Args:
            batch: of fairchem's data loader.
            graph: a neighbour graph to use; the model builds its own if left out.

        Raises:
            StoreError: if they cannot be kept, as on a full disk; what was kept before stays.
        """
        missing = self.cached.missing(batch)
        if len(missing) == len(batch.natoms):
            self._keep(batch, self.online(batch, graph))
        elif missing:
            part = data_list_collater(
                batch.index_select(missing), otf_graph=self.backbone.otf_graph
            ).to(batch.pos.device)
            self._keep(part, self.online(part))
        return self.cached(batch)

    def _keep(self, batch: Batch, targets: TeacherTargets) -> None:
        store = self.cached.store
        records = {record.structure_id: record for record in self._records(batch, targets)}
        with store.writer(SHARD, PATIENCE) as writer:
            new = [record for name, record in records.items() if name not in store]
            writer.append(store.pack(new))

    def _records(self, batch: Batch, targets: TeacherTargets) -> list[Record]:
        ends = targets.n_atoms.cumsum(0).tolist()
        values = {name: targets.values[name].cpu() for name in self.quantities}
        named = zip(targets.structure_ids, structures(batch), ends, strict=True)
        return [
            Record(
                structure_id,
                structure,
                {
                    name: value[place]
                    if quantity(name).scope == "structure"
                    else value[end - structure.n_atoms : end]
                    for name, value in values.items()
                },
            )
            for place, (structure_id, structure, end) in enumerate(named)
        ]


AnyTeacher = Teacher | StoredTargets | FillingTeacher


def online(teacher: AnyTeacher) -> Teacher | None:
    """Return the model that gives targets, or None where there is none in memory."""
    if isinstance(teacher, FillingTeacher):
        return teacher.online
    return teacher if isinstance(teacher, Teacher) else None


def of_all_ranks(value: Any) -> list[Any]:
    """Return what each rank has, in the order of ranks."""
    if not distutils.initialized():
        return [value]
    values: list[Any] = [None] * distutils.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _kept(teacher: Teacher, terms: Sequence[Term]) -> tuple[str, ...]:
    """Return what the terms compare, and what checks and measures look at where there is such."""
    names = read_quantities(terms, teacher.quantities)
    return tuple(dict.fromkeys([*names, *(term.quantity for term in terms)]))


def _manifest(teacher: Teacher, quantities: tuple[str, ...]) -> Manifest:
    """Return what makes out a store: the weights, how edges are chosen, and what is kept."""
    edges = " ".join(f"{name}={getattr(teacher.backbone, name)}" for name in GRAPH_SETTINGS)
    return Manifest(
        "eqv2",
        f"EquiformerV2 {teacher.fingerprint} {edges}",
        dict.fromkeys(quantities, "float32"),
        {name: metadata.version(name) for name in ("fairchem-core", "torch")},
    )


def _open(folder: Path, manifest: Manifest) -> TargetStore:
    """Return the store, made by the first rank, whatever it may hold already."""
    machines = sorted(set(of_all_ranks(socket.gethostname())))
    if len(machines) > 1:
        raise ConfigError(
            f"task.distill.targets: auto needs all ranks on one machine, got {', '.join(machines)}:"
            " a store is not safe on a shared file system; label with kd-plugins label, and give "
            "each machine a copy of that store"
        )
    try:
        try:
            if distutils.is_master():
                TargetStore.create(folder, manifest)
        finally:
            distutils.synchronize()
        store = TargetStore.open(folder)
        check_same(store.manifest, manifest, folder)
    except StoreError as error:
        raise ConfigError(f"task.distill.targets: {error}") from error
    return store
