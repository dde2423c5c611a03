"""One call from data to a student, by the cheaper of two exact ways."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from torch.utils.data import DataLoader

from kd_plugins.chgnet.data import DistillData, GraphSample
from kd_plugins.chgnet.fitting import FitSettings, Fitted, described, fit, read_last, shown
from kd_plugins.chgnet.frozen_trunk import (
    CachedData,
    FrozenTrunk,
    UnsuitableTrunk,
    check_share,
    coordinates,
    is_cached,
    n_coordinates,
)
from kd_plugins.chgnet.loss import Criterion, DistillLoss, Ratios, Source
from kd_plugins.chgnet.preflight import check_data, check_magmoms, check_student, checked_allow
from kd_plugins.chgnet.run_folder import LAST, check_folder, check_free, locked, read_checkpoint
from kd_plugins.chgnet.student import HEAD, freeze_except
from kd_plugins.chgnet.student import trainable as trainable_of
from kd_plugins.chgnet.trainer import OURS, DistillTrainer
from kd_plugins.chgnet.validation import check_apart

PROBED = 2
"""Atoms along whose coordinates a trial's Jacobian is computed."""


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes, from trials on one structure of middle size.

    Args:
        plain: seconds of the training with the whole model.
        build: seconds until all features are there; 0 if they are.
        cached: seconds of the training on features.
        size: bytes of the features on disk.

    >>> print(Estimate(plain=7200.0, build=300.0, cached=60.0, size=2 * 10**9))
    with cached features about 6.0 min (5.0 min for 2.0 GB of features), with the whole model 2.0 h
    """

    plain: float
    build: float
    cached: float
    size: int

    @property
    def prefers_cache(self) -> bool:
        """Whether features pay off."""
        return self.build + self.cached < self.plain

    def __str__(self) -> str:
        build = f" ({_spoken(self.build)} for {self.size / 1e9:.1f} GB of features)"
        return (
            f"with cached features about {_spoken(self.build + self.cached)}"
            f"{build if self.build else ''}, with the whole model {_spoken(self.plain)}"
        )


def estimate(
    trunk: FrozenTrunk,
    train: DistillData,
    validation: DistillData,
    epochs: int,
    folder: str | Path,
    force_share: float,
) -> Estimate:
    """Return what both ways of training would cost on this machine.

    Args:
        trunk: of the student.
        train: its structures.
        validation: those seen once an epoch, without learning.
        epochs: of the training.
        folder: of the cache, see `CachedData`.
        force_share: of the force components, see `CachedData`.
    """
    rows = sorted([*train.rows, *validation.rows], key=lambda row: row.case.n_atoms)
    middle = rows[len(rows) // 2]
    n_seen = epochs * len(rows)
    step = _seconds(lambda: _step(trunk.model, middle))
    features = trunk.features(middle.graph, range(3 * PROBED))
    a_row = _seconds(lambda: trunk.features(middle.graph, range(3 * PROBED))) / (3 * PROBED + 6)
    head = [parameter for parameter in trunk.model.parameters() if parameter.requires_grad]
    quick = _seconds(
        lambda: torch.autograd.grad(
            trunk.predict([features])["f"][0].sum(), head, allow_unused=True
        )
    )
    per_atom = a_row / middle.case.n_atoms
    missing = [row for row in rows if not is_cached(trunk, folder, row, force_share)]
    return Estimate(
        plain=n_seen * step,
        build=sum(_n_rows(row, force_share) * per_atom * row.case.n_atoms for row in missing),
        cached=2 * n_seen * quick,
        size=sum(4 * 64 * row.case.n_atoms * _n_rows(row, force_share) for row in missing),
    )


def _n_rows(row: GraphSample, force_share: float) -> int:
    return n_coordinates(row, force_share) + 6


def _step(model: CHGNet, row: GraphSample) -> None:
    graphs, targets = collate_graphs([(row.graph, dict(row.targets))])
    prediction = model(graphs, task="efs")
    found = torch.nn.functional.l1_loss(prediction["e"], torch.zeros_like(prediction["e"]))
    total = found + sum(force.abs().mean() for force in prediction["f"])
    torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])


def _spoken(seconds: float) -> str:
    """Return a time with its unit.

    >>> _spoken(90.0)
    '1.5 min'
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _seconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


Way = Literal["cached", "plain"]


@dataclass(frozen=True)
class Distilled:
    """A trained student and how it was trained.

    Args:
        fitted: the models and their errors.
        way: ``cached``, on features of the frozen trunk, or ``plain``, with CHGNet's Trainer.
        reason: why that way.
    """

    fitted: Fitted
    way: Way
    reason: str


def distill(
    model: CHGNet,
    train: DistillData,
    validation: DistillData,
    *,
    out: str | Path,
    cache: str | Path,
    soft: Mapping[str, Any] | None = None,
    hard: Mapping[str, Any] | None = None,
    trainable: Sequence[str] = HEAD,
    criterion: Criterion = "MAE",
    delta: float = 0.1,
    select: Source | None = None,
    settings: FitSettings = FitSettings(),  # noqa: B008 - frozen
    force_share: float = 1.0,
    allow: Sequence[str] = (),
) -> Distilled:
    """Train a student; on cached features where that is cheaper, else with CHGNet's Trainer.

    Both ways take the same steps to the same weights. What either would cost is estimated by
    trials, and printed with the choice. Stopped, the same call goes on. Whatever can be known
    before features are computed or a step is taken is checked before.

    Args:
        model: the student, trained in place.
        train: to learn from.
        validation: that chooses the best epoch.
        out: folder of the run, with ``last.pth.tar`` and ``best.pth.tar``.
        cache: folder of features, which runs with the same trunk share.
        soft: see `Ratios`; paper 004's, energy 1 and forces 1, if neither this nor ``hard`` is
            given.
        hard: see `Ratios`.
        trainable: see `freeze_except`.
        criterion: see `DistillLoss`.
        delta: see `DistillLoss`.
        select: see `DistillLoss`.
        settings: of the training.
        force_share: of the force components that count, the same ones in either way; 1 is exact,
            see `CachedData`.
        allow: names of errors to overrule, see `check_student` and `check_apart`.

    Raises:
        DataError: if the data lack a target or cannot be right, or validation structures are those
            to learn from.
        ValueError: for what `Ratios`, `freeze_except` and `CachedData` refuse, or a damaged
            checkpoint in ``out``.
        FileExistsError: if ``out`` holds another run, or another training is writing there.
        OSError: if ``out`` or ``cache`` cannot be written.
    """
    if not isinstance(model, CHGNet):
        raise ValueError(f"model: expected a CHGNet, got a {type(model).__name__}")
    if not isinstance(settings, FitSettings):
        raise ValueError(f"settings: expected FitSettings, got {settings!r}")
    paper = {"energy": 1, "forces": 1} if soft is None and hard is None else {}
    ratios = Ratios(hard=hard or {}, soft=soft or paper)
    loss = DistillLoss(ratios, criterion, delta, select)
    check_share(force_share)
    allow = checked_allow(allow)
    folders = check_folder(out, "out"), check_folder(cache, "cache")
    if folders[0].resolve() == folders[1].resolve():
        raise ValueError(f"out: expected another folder than cache, got {folders[0]} for both")
    check_free(folders[0])
    check_data(loss, train, validation, settings.batch_size)
    print(freeze_except(model, trainable))
    check_magmoms(model, ratios)

    task = _Task(model, loss, train, validation, settings, *folders, float(force_share))
    if not task.goes_on:
        check_apart(train, validation, allow)
        check_student(model, train, ratios, validation, allow)
    with locked(task.out):
        way, reason = task.choose()
        print(f"training {_NAMES[way]}: {reason}")
        fitted = task.on_features() if way == "cached" else task.with_trainer(trainable)
    return Distilled(fitted, way, reason)


_NAMES: Mapping[Way, str] = {"cached": "on cached features", "plain": "with CHGNet's Trainer"}


@dataclass(frozen=True)
class _Task:
    model: CHGNet
    loss: DistillLoss
    train: DistillData
    validation: DistillData
    settings: FitSettings
    out: Path
    cache: Path
    force_share: float

    @property
    def goes_on(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.out / LAST).is_file()

    def choose(self) -> tuple[Way, str]:
        """Return the way of the run that is there, or the cheaper one, and why."""
        if self.goes_on:
            last = self.out / LAST
            state = read_checkpoint(last)
            return ("plain" if OURS in state else "cached"), f"goes on from {last}"
        others = [name for name in trainable_of(self.model).names if not name.startswith(HEAD)]
        if others:
            return "plain", f"{others[0]} trains, so that the trunk is not frozen"
        try:
            found = self._estimate()
        except UnsuitableTrunk as error:
            return "plain", str(error)
        free = shutil.disk_usage(_existing(self.cache)).free
        if found.prefers_cache and found.size > free:
            return "plain", f"{found}, but the disk has {free / 1e9:.1f} GB left"
        return ("cached" if found.prefers_cache else "plain"), str(found)

    def _estimate(self) -> Estimate:
        data = (self.train, self.validation)
        trunk = FrozenTrunk(self.model)
        return estimate(trunk, *data, self.settings.epochs, self.cache, self.force_share)

    def on_features(self) -> Fitted:
        """Train with `fit`."""
        trunk = FrozenTrunk(self.model)
        data = (self.train, self.validation)
        # before features of structures that the run does not have are computed
        read_last(self.out, described(trunk, self.loss, self.settings, *data, self.force_share))
        train, validation = (
            CachedData(data, trunk, self.cache, force_share=self.force_share)
            for data in (self.train, self.validation)
        )
        return fit(trunk, train, validation, self.loss, self.settings, self.out, check=False)

    def with_trainer(self, trainable: Sequence[str]) -> Fitted:
        """Train with `DistillTrainer`."""
        last = self.out / LAST
        asked, share = self._asked(trainable), self.force_share
        if self.goes_on:
            trainer = DistillTrainer.load(last)
            if trainer.is_of_all_forces:
                share = 1.0
            kept = {name: trainer.trainer_args.get(name) for name in asked}
            if kept != asked:
                other = [name for name in asked if kept[name] != asked[name]]
                raise FileExistsError(
                    f"{self.out} holds a run with other settings, {shown(kept, other)}; choose "
                    f"another folder for {shown(asked, other)}"
                )
        else:
            trainer = DistillTrainer(self.model, **asked)
        loaders = [
            DataLoader(
                _along(data, share),
                self.settings.batch_size,
                shuffle=shuffle,
                collate_fn=collate_graphs,
            )
            for data, shuffle in ((self.train, True), (self.validation, False))
        ]
        trainer.train(*loaders, save_dir=str(self.out), check=False)
        self.model.load_state_dict(trainer.model.state_dict())
        return Fitted(self.model, trainer.get_best_model(), trainer.errors, trainer.criterion.step)

    def _asked(self, trainable: Sequence[str]) -> dict[str, Any]:
        ratios, settings = self.loss.ratios, self.settings
        return {
            "soft": ratios.soft,
            "hard": ratios.hard,
            "trainable": list(trainable),
            "criterion": self.loss.name,
            "delta": self.loss.delta,
            "select": self.loss.select,
            "schedule": settings.schedule,
            "seed": settings.seed,
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
        }


def _along(data: DistillData, force_share: float) -> DistillData:
    """Return the data with the force components alone that the cache would have."""
    if force_share == 1:
        return data
    return data.along(lambda row: coordinates(row, force_share, seed=0))


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that is there."""
    return next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
