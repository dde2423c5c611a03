"""Training of one student on cached features, as train.py and sweep.py do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chgnet.model import CHGNet
from study import Study

from kd_plugins.chgnet import (
    CachedData,
    DistillData,
    DistillLoss,
    FitSettings,
    Fitted,
    FrozenTrunk,
    Ratios,
    fit,
    freeze_except,
)
from kd_plugins.chgnet.preflight import check_student
from kd_plugins.sampling import nested_subset
from kd_plugins.structures import read_structures

FORCE_SHARE = 1 / 3
"""Of the force components that the cache has: an unbiased third of the forces, at a third of the
time that the features take."""
BATCH = 32


@dataclass(frozen=True)
class Arm:
    """What decides a student, but for its seed.

    Args:
        soft: weights of the teacher's targets.
        hard: weights of the labels.
        epochs: of the training; or else ``steps``.
        steps: of the optimizer.
        schedule: of the learning rate.
        size: training structures, N_train; all if left out.
    """

    soft: dict[str, float] = field(default_factory=dict)
    hard: dict[str, float] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    schedule: str = "finishing"
    size: int | None = None

    def settings(self, n_structures: int, seed: int) -> FitSettings:
        """Return how it is trained; a set smaller than a batch is one batch."""
        others: dict[str, Any] = {
            "batch_size": min(BATCH, n_structures),
            "schedule": self.schedule,
            "seed": seed,
        }
        if self.steps is None:
            return FitSettings(epochs=self.epochs or 0, **others)
        return FitSettings.for_steps(self.steps, n_structures, **others)


class School:
    """Both data sets as features, from which students are trained."""

    def __init__(self, study: Study) -> None:
        model = CHGNet.load(verbose=False)
        freeze_except(model)
        self.trunk = FrozenTrunk(model)
        data = {group: _data(study, group, model) for group in ("train", "selection")}
        everything = {"energy": 1, "forces": 1, "stress": 1}
        check_student(model, data["train"], Ratios(hard=everything, soft=everything))
        self.train, self.selection = (
            CachedData(data[group], self.trunk, study.trunk, force_share=FORCE_SHARE)
            for group in ("train", "selection")
        )

    def teach(self, arm: Arm, seed: int, folder: Path | None, *, progress: bool) -> Fitted:
        """Train one student, or go on with it."""
        model = CHGNet.load(verbose=False)
        freeze_except(model)
        self.trunk.model = model
        train = self.train if arm.size is None else self._subset(arm.size, seed)
        loss = DistillLoss(Ratios(hard=arm.hard, soft=arm.soft))
        settings = arm.settings(len(train), seed)
        return fit(
            self.trunk,
            train,
            self.selection,
            loss,
            settings,
            folder,
            check=False,
            progress=progress,
        )

    def _subset(self, size: int, seed: int) -> CachedData:
        ids = [sample.structure_id for sample in self.train.data.samples]
        chosen = set(nested_subset(ids, size, seed))
        return self.train.part([index for index, name in enumerate(ids) if name in chosen])


def _data(study: Study, group: str, model: CHGNet) -> DistillData:
    return DistillData(
        read_structures([study.structures(group)]),
        study.store(group, "teacher"),
        hard=("energy", "forces", "stress"),
        converter=model.graph_converter,
    )
