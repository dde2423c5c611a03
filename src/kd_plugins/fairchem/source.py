"""Where a run's targets come from: a teacher in memory, or a store that one has filled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import nn
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.cached import CachedTeacher, Collater, check_transforms, missing_of
from kd_plugins.fairchem.checkpoint import Checkpoint, read_checkpoint
from kd_plugins.fairchem.convert import Units, structure_ids
from kd_plugins.fairchem.settings import DistillSettings
from kd_plugins.fairchem.teacher import Teacher

SHOWN = 5
"""Missing ids that a message names."""


@dataclass
class Source:
    """A checkpoint to teach or to start from, a store of targets, or both.

    Args:
        checkpoint: as its file describes it; given away once, and with it its memory.
        cached: the store.
    """

    checkpoint: Checkpoint | None
    cached: CachedTeacher | None

    @classmethod
    def of(cls, settings: DistillSettings, dataset: Mapping[str, Any]) -> Source:
        """Open the store and read the checkpoint, each where the settings need it.

        Raises:
            ConfigError: if the store lacks what a term needs, or a transform moves structures.
        """
        if settings.targets is None:
            return cls(read_checkpoint(settings.teacher), None)
        check_transforms(dataset)
        cached = CachedTeacher(settings.targets, settings.terms.loss().terms)
        if settings.student.initialize == "teacher":
            return cls(read_checkpoint(settings.teacher), cached)
        if settings.teacher is not None:
            logging.info("teacher.checkpoint is not read: targets come from the store")
        return cls(None, cached)

    def teacher(self, device: torch.device) -> Teacher | CachedTeacher:
        """Return what gives targets."""
        return self.cached or self._take(device)

    def origin(
        self, teacher: Teacher | CachedTeacher, device: torch.device
    ) -> tuple[nn.Module, Units]:
        """Return the model from which a student starts, and its units.

        Raises:
            ConfigError: if it is another than the one that filled the store.
        """
        model = teacher if isinstance(teacher, Teacher) else self._take(device)
        if model.fingerprint != teacher.fingerprint:
            raise ConfigError(
                "task.distill: teacher.checkpoint is not the teacher that filled the store of "
                f"targets (weights {model.fingerprint[:12]}, the store's "
                f"{teacher.fingerprint[:12]}); give that one, with the same weights: ema or raw"
            )
        return model.model, model.units

    def collater(self, collate: Callable[[list[Any]], Batch]) -> Callable[[list[Any]], Batch]:
        """Return a collater that reads targets, if they are read."""
        if self.cached is None or isinstance(collate, Collater):
            return collate
        return Collater(collate, self.cached)

    def check_dataset(
        self, dataset: Dataset[Any], name: str, limit: int, device: torch.device
    ) -> None:
        """Refuse a data set of which a structure has no target; ranks share the work.

        Of some it is checked that they are still those that were labelled; of the others when they
        are read.

        Args:
            dataset: of fairchem.
            name: "train" or "val", for messages.
            limit: how many to compare.
            device: on which ranks talk.

        Raises:
            ConfigError: with the number of structures without one and the first few.
        """
        if self.cached is None:
            return
        size = len(dataset)  # type: ignore[arg-type]
        mine = range(distutils.get_rank(), size, distutils.get_world_size())
        bar = tqdm(mine, f"matching {name}", leave=False, disable=not distutils.is_master())
        ids = [structure_ids(Batch.from_data_list([dataset[index]]))[0] for index in bar]
        missing = missing_of(self.cached.store, ids)
        count = int(distutils.all_reduce(len(missing), device=device))
        if count:
            shown = f": {', '.join(missing[:SHOWN])}" if missing else " (named by another rank)"
            raise ConfigError(
                f"dataset.{name}: {count} of {size} structures have no target in "
                f"{self.cached.store.folder}{shown}; label them with kd-plugins label, with the "
                "same --teacher and --store"
            )
        for index in list(mine)[:: max(1, size // limit)]:
            self.cached.attach(Batch.from_data_list([dataset[index]]))

    def _take(self, device: torch.device) -> Teacher:
        checkpoint, self.checkpoint = self.checkpoint, None
        return Teacher(checkpoint, device)
