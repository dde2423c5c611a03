"""Where a run's targets come from: a teacher in memory, or a store that one has filled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import nn
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.cached import StoredTargets, check_storable, label_command
from kd_plugins.fairchem.checkpoint import Checkpoint, read_checkpoint
from kd_plugins.fairchem.convert import Units
from kd_plugins.fairchem.filling import AnyTeacher, FillingTeacher, of_all_ranks, online
from kd_plugins.fairchem.identities import check_ids, read_ids
from kd_plugins.fairchem.settings import Auto, DistillSettings
from kd_plugins.fairchem.teacher import Teacher

SHOWN = 5
"""Missing ids that a message names."""


@dataclass
class Source:
    """A checkpoint to teach or to start from, a store of targets, or both.

    Args:
        checkpoint: as its file describes it; given away once, and with it its memory.
        cached: the store; one that the run fills itself is there when its teacher is.
        filling: what the run itself puts into a store, and where.
    """

    checkpoint: Checkpoint | None
    cached: StoredTargets | None = None
    filling: Auto | None = None

    @classmethod
    def of(cls, settings: DistillSettings, dataset: Mapping[str, Any]) -> Source:
        """Open the store and read the checkpoint, each where the settings need it.

        Raises:
            ConfigError: if the store lacks what a term needs, or a transform moves structures.
        """
        if settings.targets is None:
            return cls(read_checkpoint(settings.teacher))
        terms = settings.terms.loss().terms
        check_storable(terms, dataset)
        if isinstance(settings.targets, Auto):
            return cls(read_checkpoint(settings.teacher), filling=settings.targets)
        cached = StoredTargets.open(settings.targets, terms)
        if settings.student.initialize == "teacher":
            return cls(read_checkpoint(settings.teacher), cached)
        if settings.teacher is not None:
            logging.info("teacher.checkpoint is not read: targets come from the store")
        return cls(None, cached)

    def teacher(self, device: torch.device, folder: Path, terms: Sequence[Term]) -> AnyTeacher:
        """Return what gives targets.

        Args:
            device: of the run.
            folder: of the run's own store, where it fills one and names no other.
            terms: of the loss.

        Raises:
            ConfigError: if the store to fill is another teacher's, or for other terms.
        """
        if self.filling is None:
            return self.cached or self._take(device)
        named = self.filling.folder
        teacher = FillingTeacher(self._take(device), Path(named) if named else folder, terms)
        self.cached = teacher.cached
        return teacher

    def origin(self, teacher: AnyTeacher, device: torch.device) -> tuple[nn.Module, Units]:
        """Return the model from which a student starts, and its units.

        Raises:
            ConfigError: if it is another than the one that filled the store.
        """
        model = online(teacher) or self._take(device)
        if model.fingerprint != teacher.fingerprint:
            raise ConfigError(
                "task.distill: teacher.checkpoint is not the teacher that filled the store of "
                f"targets (weights {model.fingerprint[:12]}, the store's "
                f"{teacher.fingerprint[:12]}); give that one, with the same weights: ema or raw"
            )
        return model.model, model.units

    def collater(self, collate: Callable[[list[Any]], Batch]) -> Callable[[list[Any]], Batch]:
        """Return a collater that reads targets, if they are read."""
        if (self.cached is None and self.filling is None) or isinstance(collate, Collater):
            return collate
        return Collater(collate, self)

    def check_datasets(
        self, datasets: Mapping[str, Dataset[Any]], limit: int, device: torch.device
    ) -> None:
        """Refuse data sets of which a structure has no target, nor gets one; ranks share the work.

        An id must not stand for two structures, in one data set or across all. Of some structures
        it is checked that they are still those that were labelled; of the others when they are
        read.

        Args:
            datasets: "train" and "val" to a data set of fairchem.
            limit: how many of each to compare.
            device: on which ranks talk.

        Raises:
            ConfigError: with an id of two structures, or with the number of structures without a
                target and the first few.
        """
        if self.cached is None:
            return
        rank, n_ranks = distutils.get_rank(), distutils.get_world_size()
        mine: dict[str, list[str]] = {}
        ids: dict[str, list[str]] = {}
        for name, dataset in datasets.items():
            places = range(rank, len(dataset), n_ranks)  # type: ignore[arg-type]
            bar = tqdm(places, f"matching {name}", leave=False, disable=not distutils.is_master())
            mine[name] = read_ids(dataset, bar)
            ids[name] = _in_order(of_all_ranks(mine[name]))
        check_ids(datasets, ids)

        held = set(self.cached.store.ids())
        for name, dataset in datasets.items():
            if self.filling is None:
                missing = [its_id for its_id in mine[name] if its_id not in held]
                self._refuse(missing, len(ids[name]), name, device)
            known = [
                rank + n_ranks * place for place, its_id in enumerate(mine[name]) if its_id in held
            ]
            for index in known[:: max(1, len(ids[name]) // limit)]:
                self.cached.attach(Batch.from_data_list([dataset[index]]))

    def _refuse(self, missing: list[str], size: int, name: str, device: torch.device) -> None:
        count = int(distutils.all_reduce(len(missing), device=device))
        if count:
            store = self.cached.store
            shown = f": {', '.join(missing[:SHOWN])}" if missing else " (named by another rank)"
            raise ConfigError(
                f"dataset.{name}: {count} of {size} structures have no target in "
                f"{store.folder}{shown}; label this run's data sets by the names that it sees: "
                f"{label_command(store.manifest.teacher, store.folder)}"
            )

    def _take(self, device: torch.device) -> Teacher:
        checkpoint, self.checkpoint = self.checkpoint, None
        return Teacher(checkpoint, device)


class Collater:
    """fairchem's collater, and the targets; runs in the workers of the data loader.

    A batch that the store does not hold yet is left as it is.

    Args:
        collate: fairchem's.
        source: of the targets.
    """

    def __init__(self, collate: Callable[[list[Any]], Batch], source: Source) -> None:
        self.collate, self.source = collate, source

    def __call__(self, data: list[Any]) -> Batch:
        """Return a batch, with targets where they are known."""
        batch, cached = self.collate(data), self.source.cached
        return batch if cached is None or cached.missing(batch) else cached.attach(batch)


def _in_order(ids: Sequence[Sequence[str]]) -> list[str]:
    """Return the ids of all structures, of which each rank has every how-many-th."""
    ordered = [""] * sum(len(found) for found in ids)
    for rank, found in enumerate(ids):
        ordered[rank :: len(ids)] = found
    return ordered
