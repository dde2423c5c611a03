"""A training described by a YAML, for ``python -m kd_plugins.chgnet``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_plugins.chgnet.loss import Criterion, Source
from kd_plugins.chgnet.schedule import FitSettings, Schedule
from kd_plugins.chgnet.weights import Ratios
from kd_plugins.config import ConfigError, read_config, reader


def _mapping(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected quantities with weights, got {raw!r}")
    return raw


@dataclass(frozen=True)
class DataSettings:
    """Where structures, labels and teacher targets come from.

    Args:
        structures: files, see `kd_plugins.teachers.read_structures`.
        store: folder of the teacher's targets; none for labels alone.
        ids: how structures are named, see `read_structures`.
        part: keep one of two disjoint parts, 90 and 10 %, with no material in both; a material is
            ``mp_id`` of a structure's info, or its id up to the last slash.
        kind: keep only ``organic``, ``complex`` or ``inorganic`` ones, as paper 004 sorts them.
        size: keep a random subset of so many, drawn with the seed of the training.
        missing: quantities that a structure may lack among its labels.
        bad: ``refuse`` bad structures, or ``leave_out`` and list them.
    """

    structures: tuple[str, ...]
    store: str | None = None
    ids: str = "auto"
    part: Literal["train", "validation"] | None = None
    kind: Literal["organic", "complex", "inorganic"] | None = None
    size: int | None = None
    missing: tuple[str, ...] = ()
    bad: Literal["refuse", "leave_out"] = "refuse"


@dataclass(frozen=True)
class StudentSettings:
    """Which CHGNet learns, and what of it.

    Args:
        model: name of pretrained weights, or path of a checkpoint.
        trainable: prefixes of the parameters that train.
        align: first move its element references to the teacher's energies.
    """

    model: str = "0.3.0"
    trainable: tuple[str, ...] = ("mlp.",)
    align: bool = False


@dataclass(frozen=True)
class LossSettings:
    """The loss; see `Ratios` and `DistillLoss`."""

    soft: Mapping[str, Any] = reader(_mapping, default_factory=dict)
    hard: Mapping[str, Any] = reader(_mapping, default_factory=dict)
    criterion: Criterion = "MAE"
    delta: float = 0.1
    select: Source | None = None

    def __post_init__(self) -> None:
        Ratios(hard=self.hard, soft=self.soft)


@dataclass(frozen=True)
class OptimSettings:
    """The training; either ``epochs`` or ``steps``, see `FitSettings`."""

    learning_rate: float
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    schedule: Schedule = "finishing"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        self.resolved(n_structures=1)

    def resolved(self, n_structures: int) -> FitSettings:
        """Return the settings of a training on so many structures."""
        others = {
            name: getattr(self, name)
            for name in ("learning_rate", "batch_size", "schedule", "seed")
        }
        if self.steps is not None:
            return FitSettings.for_steps(self.steps, n_structures, **others)
        return FitSettings(epochs=self.epochs or 0, **others)


@dataclass(frozen=True)
class TrainingSettings:
    """All of a YAML.

    Args:
        train: to learn from.
        validation: that chooses the best epoch.
        loss: of both sources.
        optim: of the training.
        out: folder of the run.
        cache: folder of the trunk's features.
        student: which and what of it.
        force_share: see `CachedData`.
    """

    train: DataSettings
    validation: DataSettings
    loss: LossSettings
    optim: OptimSettings
    out: str
    cache: str
    student: StudentSettings = field(default_factory=StudentSettings)
    force_share: float = 1.0


def read_training(path: str | Path, changes: tuple[str, ...] = ()) -> TrainingSettings:
    """Return a YAML's settings, with some of them changed.

    Args:
        path: of the YAML.
        changes: such as ``optim.seed=3``; values are YAML.

    Raises:
        ConfigError: with everything that is wrong.
    """
    raw = _yaml(Path(path).read_text(), str(path))
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: expected a mapping, got {raw!r}")
    for change in changes:
        raw = _changed(dict(raw), change)
    return read_config(TrainingSettings, raw, Path(path).name)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: no YAML ({error})") from error


def _changed(raw: dict[str, Any], change: str) -> dict[str, Any]:
    key, found, value = change.partition("=")
    if not found or not key:
        raise ConfigError(f"expected a change such as optim.seed=3, got {change!r}")
    first, dot, rest = key.partition(".")
    if not dot:
        return {**raw, first: _yaml(value, change)}
    inner = raw.get(first, {})
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{change!r}: {first} is {inner!r}, which has nothing in it")
    return {**raw, first: _changed(dict(inner), f"{rest}={value}")}
