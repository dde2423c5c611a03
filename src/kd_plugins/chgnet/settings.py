"""A training described by a YAML, for ``python -m kd_plugins.chgnet``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_plugins.chgnet.fitting import FitSettings
from kd_plugins.chgnet.frozen_trunk import check_force_share
from kd_plugins.chgnet.loss import HARD, SOFT, Criterion, DistillLoss, Ratios, TargetKind
from kd_plugins.chgnet.preflight import checked_allow
from kd_plugins.chgnet.run_folder import check_run_folder
from kd_plugins.chgnet.student import ALL
from kd_plugins.chgnet.trainer import LearningRateSchedule
from kd_plugins.config import ConfigError, read_config, read_yaml, reader, set_dotted
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number, check_whole, shown
from kd_plugins.teachers.teacher import resolve_device


def _read_weights(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected quantities with weights, got {shown(raw)}")
    return raw


def _read_path(raw: object) -> str:
    """Return a path with ``~`` expanded."""
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError(f"expected a path, got {shown(raw)}")
    return str(Path(raw).expanduser())


def _read_paths(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple) or not raw:
        raise ValueError(f"expected a list of files, got {shown(raw)}")
    return tuple(map(_read_path, raw))


def _read_allow(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"expected a list of names, such as [energy_unit], got {shown(raw)}")
    return checked_allow(raw)


def _read_trainable(raw: object) -> tuple[str, ...] | Literal["all"]:
    if raw == ALL:
        return ALL
    if not isinstance(raw, list | tuple) or not all(isinstance(one, str) for one in raw):
        raise ValueError(
            f"expected all, or a list of prefixes of parameter names such as [mlp.], got "
            f"{shown(raw)}"
        )
    return tuple(raw)


@dataclass(frozen=True)
class DataSettings:
    """Where structures, labels and teacher targets come from: one source of a training.

    Args:
        structures: files, see `kd_plugins.structures.read_structures`.
        store: folder of the teacher's targets; none for labels alone.
        ids: how structures are named, see `read_structures`.
        part: keep one of two disjoint parts, 90 and 10 %, with no material in both; a material is
            ``mp_id`` of a structure's info, or its id up to the last slash.
        kind: keep only ``organic``, ``complex`` or ``inorganic`` ones, as in Taniguchi 2024.
        size: keep a random subset of so many, drawn with the seed of the training.
        missing: quantities that a structure may lack among its labels.
        bad: ``refuse`` bad structures, or ``leave_out`` and list them.
        weight: of its structures beside those of other sources, see `DistillData.weighted`; a
            source of weight 0 is not read.
        soft: factors of that weight by quantity, for the teacher's targets; 0 leaves them out.
        hard: the same for the labels.
        align: move its teacher's energies to the student's zero, see `align_targets`.
    """

    structures: tuple[str, ...] = reader(_read_paths)
    store: str | None = reader(lambda raw: None if raw is None else _read_path(raw), default=None)
    ids: str = "auto"
    part: Literal["train", "validation"] | None = None
    kind: Literal["organic", "complex", "inorganic"] | None = None
    size: int | None = None
    missing: tuple[str, ...] = ()
    bad: Literal["refuse", "leave_out"] = "refuse"
    weight: float = 1.0
    soft: Mapping[str, float] = field(default_factory=dict)
    hard: Mapping[str, float] = field(default_factory=dict)
    align: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            check_whole("size", self.size, least=1)
        check_number("weight", self.weight, least=0)
        for kind, allowed in (("soft", SOFT), ("hard", HARD)):
            for name, factor in getattr(self, kind).items():
                if name not in allowed:
                    hint = suggestion(name, allowed)
                    raise ValueError(f"{kind}: unknown quantity {name!r}{hint}")
                check_number(f"{kind}.{name}", factor, least=0)
        if self.align and self.store is None:
            raise ValueError("align: moves a teacher's energies, so the source needs a store")
        for name in self.missing:
            if name not in HARD:
                raise ValueError(f"missing: unknown quantity {name!r}{suggestion(name, HARD)}")


@dataclass(frozen=True)
class StudentSettings:
    """Which CHGNet is trained, and which of its weights.

    Args:
        model: name of pretrained weights, or path of a checkpoint.
        trainable: prefixes of the parameters that train, or ``all``, see `freeze_except`.
        align: first move its element references to the teacher's energies.
        trust_pickle: read a checkpoint that holds pickled code, which may do anything.
    """

    model: str = "0.3.0"
    trainable: tuple[str, ...] | Literal["all"] = reader(_read_trainable, default=("mlp.",))
    align: bool = False
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        # The empty text is a part of every text.
        has_empty = self.trainable != ALL and ("" in self.trainable or not self.trainable)
        if not self.model.strip() or has_empty:
            raise ValueError(
                "expected a model, and prefixes of parameter names such as 'mlp.' as trainable, "
                f"or all, got {self.model!r} and {list(self.trainable)}"
            )


@dataclass(frozen=True)
class LossSettings:
    """The loss; see `Ratios` and `DistillLoss`."""

    soft: Mapping[str, Any] = reader(_read_weights, default_factory=dict)
    hard: Mapping[str, Any] = reader(_read_weights, default_factory=dict)
    criterion: Criterion = "MAE"
    delta: float = 0.1
    select: TargetKind | None = None
    l2_to_start: float = 0.0

    def __post_init__(self) -> None:
        self.make()

    def make(self) -> DistillLoss:
        """Return the loss.

        Raises:
            ValueError: for what `Ratios` and `DistillLoss` refuse.
        """
        ratios = Ratios(hard=self.hard, soft=self.soft)
        return DistillLoss(ratios, self.criterion, self.delta, self.select, self.l2_to_start)

    @property
    def weighted(self) -> Mapping[str, tuple[str, ...]]:
        """Kind of targets, ``hard`` and ``soft``, to the quantities that have a weight."""
        return Ratios(hard=self.hard, soft=self.soft).weighted


@dataclass(frozen=True)
class OptimSettings:
    """The training; either ``epochs`` or ``steps``, and ``patience``, see `FitSettings`."""

    learning_rate: float
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    schedule: LearningRateSchedule = "finishing"
    seed: int = 0
    patience: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        self.resolved(n_structures=1)

    def resolved(self, n_structures: int) -> FitSettings:
        """Return the settings of a training on so many structures."""
        others = {
            name: getattr(self, name)
            for name in ("learning_rate", "batch_size", "schedule", "seed", "patience")
        }
        if self.steps is not None:
            return FitSettings.for_steps(self.steps, n_structures, **others)
        return FitSettings(epochs=self.epochs or 0, **others)


@dataclass(frozen=True)
class TrainingSettings:
    """All of a YAML.

    Args:
        train: to learn from, one source or several.
        validation: that chooses the best epoch, likewise.
        loss: weights of labels and teacher, and the distance.
        optim: of the training.
        out: folder of the run.
        cache: folder of the trunk's features.
        student: which one, and which of its weights train.
        force_share: see `CachedData`.
        allow: names of errors to overrule, which are then logged as warnings.
        way: ``cached`` on features, ``plain`` with CHGNet's Trainer, ``auto`` the cheaper one, see
            `kd_plugins.chgnet.distill`.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        workers: processes that compute features.
    """

    train: DataSettings | tuple[DataSettings, ...]
    validation: DataSettings | tuple[DataSettings, ...]
    loss: LossSettings
    optim: OptimSettings
    out: str = reader(_read_path)
    cache: str = reader(_read_path)
    student: StudentSettings = field(default_factory=StudentSettings)
    force_share: float = 1.0
    allow: tuple[str, ...] = reader(_read_allow, default=())
    way: Literal["auto", "cached", "plain"] = "auto"
    device: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        """Check everything that can be checked before structures are read."""
        resolve_device(self.device)
        check_whole("workers", self.workers, least=1)
        check_force_share(self.force_share)
        self.loss.make().check_force_share(self.force_share)
        for name in ("out", "cache"):
            try:
                check_run_folder(getattr(self, name), name)
            except OSError as error:
                raise ValueError(str(error)) from error

        if Path(self.out).resolve() == Path(self.cache).resolve():
            raise ValueError(f"out: expected another folder than cache, got {self.out!r} for both")

        if _blocks(self.train) == _blocks(self.validation) and "same_validation" not in self.allow:
            raise ValueError(
                "validation: these are the structures of train, whose errors would choose the most "
                "overfitted epoch; give other structures, or write allow: [same_validation]"
            )

        soft = self.loss.weighted["soft"]
        for part, sources in self.sources.items():
            if not sources:
                raise ValueError(
                    f"{part}: every source has the weight 0, or there is none; give structures"
                )
            if soft and all(source.store is None for source in sources.values()):
                (name, *_) = sources
                raise ValueError(
                    f"{name}.store: missing; the loss weighs soft {soft[0]}, so name the folder "
                    "of the teacher's targets, or take the weight away"
                )

    @property
    def sources(self) -> Mapping[str, Mapping[str, DataSettings]]:
        """``train`` and ``validation`` to their sources that have a weight, by place in the YAML.

        One block is called as its part, several ``train[0]`` and so on.
        """
        found: dict[str, dict[str, DataSettings]] = {}
        for part, given in (("train", self.train), ("validation", self.validation)):
            if isinstance(given, DataSettings):
                found[part] = {part: given} if given.weight else {}
            else:
                blocks = {f"{part}[{place}]": block for place, block in enumerate(given)}
                found[part] = {name: block for name, block in blocks.items() if block.weight}
        return found


def _blocks(given: DataSettings | tuple[DataSettings, ...]) -> tuple[DataSettings, ...]:
    return (given,) if isinstance(given, DataSettings) else given


def read_training(path: str | Path, changes: tuple[str, ...] = ()) -> TrainingSettings:
    """Return a YAML's settings, with some of them changed.

    Args:
        path: of the YAML.
        changes: such as ``optim.seed=3``; values are YAML.

    Raises:
        FileNotFoundError: without the file.
        ConfigError: with everything that is wrong.
    """
    raw = read_yaml(path)
    for change in changes:
        _change(raw, change)
    return read_config(TrainingSettings, raw, Path(path).name)


def _change(settings: dict[str, Any], change: str) -> None:
    """Change one key of settings, in place.

    Args:
        settings: of a YAML.
        change: ``key=value``, where a dot leads into a block.
    """
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected a change such as optim.seed=3, got {change!r}")
    try:
        set_dotted(settings, key, _read_value(value, change))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{change!r}: {error}") from None


def _read_value(text: str, typed: str) -> Any:
    try:
        return yaml.safe_load(text)
    # PyYAML makes numbers and dates itself, and lets Python's own errors through.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{typed}: no YAML ({reason})") from error
