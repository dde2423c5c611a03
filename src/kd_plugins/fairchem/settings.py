"""The ``task: distill:`` block of a fairchem YAML, and checks of fairchem's own settings."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kd_plugins.config import ConfigError, distance, read_config, reader, weight
from kd_plugins.core.contrastive import Crack, Instance, Negatives
from kd_plugins.core.distances import Distance
from kd_plugins.core.negatives import SampledNegatives
from kd_plugins.core.schedules import Schedule
from kd_plugins.core.terms import (
    CrackTerm,
    Degrees,
    DistanceTerm,
    DistillationLoss,
    InstanceTerm,
    Term,
)
from kd_plugins.doctor.examine import check_allow
from kd_plugins.numbers import check_number, check_seed, check_whole, shown

_WHOLE = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "max_epochs": 0}
"""Whole numbers of ``optim``, with the least that each may be."""
_REQUIRED = ("num_workers", "max_epochs", "lr_initial")
Features = Literal["all", "each", "l0"]
"""Which degrees l of the embeddings a term compares, see `CrackSettings`."""


@dataclass(frozen=True)
class TeacherSettings:
    """Where the teacher comes from.

    Args:
        checkpoint: path of a fairchem EquiformerV2 checkpoint, hydra or the older single class.
        weights: which weights to take where the file holds both raw and averaged ones.
        trust_pickle: allow the file to run code while it is read; for files you trust.
    """

    checkpoint: str
    weights: Literal["ema", "raw"] | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class StudentSettings:
    """How the student starts.

    Args:
        initialize: ``scratch`` as fairchem does, or ``teacher``: every tensor copied from the
            teacher's tensor of the same name, so a shallower student gets its first blocks
            ("pretrained" in CRACK's tables); it then also takes the teacher's normalizers.
        freeze: shell-style patterns over parameter names that are not trained.
        trust_pickle: allow the file of fairchem's ``--checkpoint`` to run code while it is read;
            for files you trust.
    """

    initialize: Literal["scratch", "teacher"]
    freeze: tuple[str, ...] = ()
    trust_pickle: bool = False


def read_negatives(raw: object) -> Negatives:
    """Return the negatives that are meant by local, global or ``{sample: K, seed: 0}``.

    Raises:
        ValueError: for anything else.
    """
    if raw in ("local", "global"):
        return "local" if raw == "local" else "global"
    if isinstance(raw, Mapping) and "sample" in raw and set(raw) <= {"sample", "seed"}:
        return SampledNegatives(**raw)
    raise ValueError(
        f"expected local, global or {{sample: K}}, with a seed beside it or without, got {raw!r}; "
        "keys are drawn from each rank's own batch, so sample does not go with global"
    )


@dataclass(frozen=True)
class CrackSettings:
    """CRACK (Lim, Choung, Han 2025) over the student's edges.

    See `kd_plugins.core.Crack` for the settings that are not described here.

    Args:
        features: relations over l = 0, as in the paper, over all degrees l at once, or over each
            degree by itself, whose losses are added up (ARK, Lim et al. 2026).
        lmax: highest degree for ``features: each``; all that both models have if left out.
        excess: also log how far the loss is above that of a student that is its teacher.
        negatives: relations of each rank's own batch, or ``global``: of all ranks' batches, at the
            price of sending all their embeddings and of as many times the time as there are ranks;
            or ``{sample: K, seed: 0}``, see `kd_plugins.core.SampledNegatives`.
    """

    weight: Schedule = reader(weight)
    temperature: float = 0.15
    anchor: Literal["teacher", "student"] = "teacher"
    edges: Literal["undirected", "directed"] = "undirected"
    tolerance: float = 1e-3
    features: Features = "l0"
    lmax: int | None = None
    excess: bool = False
    negatives: Negatives = reader(read_negatives, default="local")

    def __post_init__(self) -> None:
        """Check the settings now, with the place in the YAML at hand, by building the term."""
        self.term("crack")

    def term(self, name: str) -> Term:
        """Return the term of the loss."""
        settings = self.temperature, self.anchor, self.edges, self.tolerance, self.negatives
        relation, quantity = Crack(*settings), _quantity(self.features)
        degrees = _degrees(self.features, self.lmax)
        return CrackTerm(name, relation, self.weight, quantity, self.excess, degrees)


@dataclass(frozen=True)
class InstanceSettings:
    """Instance-level InfoNCE over atoms; see `kd_plugins.core.Instance` and `CrackSettings`."""

    weight: Schedule = reader(weight)
    temperature: float = 0.15
    anchor: Literal["teacher", "student"] = "teacher"
    features: Features = "l0"
    lmax: int | None = None
    negatives: Negatives = reader(read_negatives, default="local")

    def __post_init__(self) -> None:
        """Check the settings now, by building the term."""
        self.term("instance")

    def term(self, name: str) -> Term:
        """Return the term of the loss."""
        relation = Instance(self.temperature, self.anchor, self.negatives)
        degrees = _degrees(self.features, self.lmax)
        return InstanceTerm(name, relation, self.weight, _quantity(self.features), degrees=degrees)


@dataclass(frozen=True)
class NodeToNodeSettings:
    """Matching node embeddings atom by atom; see `CrackSettings` for ``features`` and ``lmax``."""

    features: Features
    weight: Schedule = reader(weight)
    distance: Distance = reader(distance)
    lmax: int | None = None

    def __post_init__(self) -> None:
        """Check the settings now, by building the term."""
        self.term("n2n")

    def term(self, name: str) -> Term:
        """Return the term of the loss."""
        quantity, degrees = _quantity(self.features), _degrees(self.features, self.lmax)
        return DistanceTerm(name, quantity, self.distance, self.weight, degrees)


def _quantity(features: Features) -> str:
    return "node_embeddings" if features == "l0" else "equivariant_embeddings"


def _degrees(features: Features, lmax: int | None) -> Degrees | None:
    """Return the degrees to compare by themselves, for ``features: each`` only."""
    if features == "each":
        return Degrees(lmax)
    if lmax is not None:
        raise ValueError(
            f"lmax: {shown(lmax)} goes with features: each, and features is {features}; "
            "leave lmax out"
        )
    return None


@dataclass(frozen=True)
class SoftTargetSettings:
    """The teacher's own output as a target, in the student's normalised units."""

    weight: Schedule = reader(weight)
    distance: Distance = reader(distance)

    def term(self, name: str) -> Term:
        """Return the term of the loss."""
        return DistanceTerm(name, name, self.distance, self.weight)


@dataclass(frozen=True)
class HessianSettings:
    """Matching force derivatives along random directions, by central differences.

    Args:
        step: length h in Å of the displacement of a whole structure, whose direction has unit
            length over all its atoms; 5e-3 keeps float32 noise and curvature error near 1 % in
            small cells, larger ones bear a larger h.
        probes: directions a structure and training step; a distance that sums over features adds
            them up, one that averages does not.
    """

    step: float
    probes: int
    weight: Schedule = reader(weight)
    distance: Distance = reader(distance)

    def __post_init__(self) -> None:
        """Refuse a step or a number of probes that measures nothing."""
        if not 0 < self.step < 0.5:
            raise ValueError(f"step must be > 0 and < 0.5 Å, got {self.step}")
        if self.probes < 1:
            raise ValueError(f"probes must be >= 1, got {self.probes}")

    def term(self, name: str) -> Term:
        """Return the term of the loss."""
        return DistanceTerm(name, "force_derivatives", self.distance, self.weight)


@dataclass(frozen=True)
class TermsSettings:
    """The terms of the loss; one that is left out is not computed."""

    crack: CrackSettings | None = None
    instance: InstanceSettings | None = None
    n2n: NodeToNodeSettings | None = None
    atomic_energies: SoftTargetSettings | None = None
    energy: SoftTargetSettings | None = None
    forces: SoftTargetSettings | None = None
    stress: SoftTargetSettings | None = None
    hessian: HessianSettings | None = None

    def loss(self) -> DistillationLoss:
        """Return the loss that the settings describe."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return DistillationLoss(
            tuple(settings.term(name) for name, settings in chosen.items() if settings is not None)
        )


@dataclass(frozen=True)
class Auto:
    """A store in which the run labels what it lacks before its first step.

    Args:
        folder: of the store; ``targets`` beside the run's checkpoints if left out.
    """

    folder: str | None = None


def read_targets(raw: object) -> str | Auto | None:
    """Return the store of targets that is meant by ``FOLDER``, ``auto`` or ``{auto: FOLDER}``.

    Raises:
        ValueError: for anything else.
    """
    if raw is None or raw == "auto":
        return None if raw is None else Auto()
    if isinstance(raw, str) and raw.strip():
        return os.path.expanduser(raw)
    if isinstance(raw, Mapping) and set(raw) == {"auto"}:
        folder = raw["auto"]
        if isinstance(folder, str) and folder.strip():
            return Auto(os.path.expanduser(folder))
    raise ValueError(f"expected a folder, auto or {{auto: FOLDER}}, got {raw!r}")


@dataclass(frozen=True)
class DistillSettings:
    """The whole block.

    Args:
        teacher: where it comes from; beside ``targets`` it is only what the student starts from.
        targets: folder of a store that ``kd-plugins label`` filled; then no teacher is run. Or
            ``auto``, and the teacher labels each structure once before the first step, see `Auto`.
        student: how it starts.
        terms: of the loss, beside fairchem's own ``loss_functions``.
        projection: ``linear`` maps the student's embeddings to the teacher's width before they
            are compared (CRACK, section 3.1); ``none`` compares them as they are.
        seed: of the projection's first weights and the Hessian's directions.
        preflight: how many structures have their labels checked before training starts.
        allow: names of the doctor's errors about the teacher that do not stop the run, such as
            ``energy_unit``; each is logged.
        validation_structures: how many of ``dataset.val`` a validation during the training is of,
            drawn once by ``seed``; all if left out. ``--mode validate`` is always of all.
        align: subtract from the teacher's energies their offset to the labels, fitted per element
            on the first ``preflight`` training structures that have both; it is logged.
    """

    student: StudentSettings
    terms: TermsSettings
    teacher: TeacherSettings | None = None
    targets: str | Auto | None = reader(read_targets, default=None)
    projection: Literal["linear", "none"] = "linear"
    seed: int = 0
    preflight: int = 1000
    validation_structures: int | None = None
    allow: tuple[str, ...] = reader(check_allow, default=())
    align: bool = False

    def __post_init__(self) -> None:
        """Refuse a check of no structures, and a loss or a start without a teacher."""
        if self.teacher is None and self.targets is None:
            raise ValueError(
                "teacher: missing; expected a mapping with its checkpoint, or targets: a folder"
            )
        if self.teacher is None and isinstance(self.targets, Auto):
            raise ValueError("targets: auto needs a teacher; give teacher.checkpoint as well")
        if self.teacher is None and self.student.initialize == "teacher":
            raise ValueError(
                "student.initialize: teacher copies the teacher's weights, which targets do not "
                "hold; give teacher.checkpoint as well, which is then read for that only"
            )
        check_seed("seed", self.seed)
        if self.preflight < 1:
            raise ValueError(f"preflight must be >= 1, got {self.preflight}")
        if self.validation_structures is not None:
            check_whole("validation_structures", self.validation_structures, least=1)


def read_settings(task: Mapping[str, Any]) -> DistillSettings:
    """Return the settings under ``task: distill:``.

    Raises:
        ConfigError: listing everything that is wrong with them.
    """
    if "distill" not in task:
        raise ConfigError(
            "task.distill is missing; the distillation trainers read their settings there "
            "(fairchem passes no other top-level key on)"
        )
    block = _with_empty_terms(task["distill"])
    return read_config(DistillSettings, block, "task.distill")


def _with_empty_terms(block: object) -> object:
    """Return the block with a term that was named and left empty as one that lacks its keys.

    YAML reads ``crack:`` with nothing after it as null, which would leave CRACK out.
    """
    if not isinstance(block, Mapping) or not isinstance(block.get("terms"), Mapping):
        return block
    terms = {name: {} if term is None else term for name, term in block["terms"].items()}
    return {**block, "terms": terms}


def check_host(given: Mapping[str, Any]) -> None:
    """Refuse settings on which fairchem would fail late, or without naming them.

    Args:
        given: the keyword arguments of fairchem's trainer.

    Raises:
        ConfigError: naming the key.
    """
    dataset = given.get("dataset")
    if isinstance(dataset, list):  # fairchem's older form
        dataset = dict(zip(("train", "val", "test"), dataset, strict=False))
    check_sources(dataset)

    _check_optim(given.get("optimizer"))
    if given.get("amp") and given.get("cpu"):
        logging.warning("--amp changes nothing on a CPU: this run is in full precision")


def _check_optim(optim: object) -> None:
    if not isinstance(optim, Mapping):
        raise ConfigError(
            f"optim: expected a mapping with batch_size, lr_initial, ..., got {optim!r}"
        )

    missing = [name for name in _REQUIRED if optim.get(name) is None]
    if missing:
        raise ConfigError(f"optim.{missing[0]}: missing; fairchem has no default for it")

    try:
        for name, least in _WHOLE.items():
            if name in optim:
                check_whole(f"optim.{name}", optim[name], least=least)
        check_number("optim.lr_initial", optim["lr_initial"], least=0)
        _check_warmup(optim.get("scheduler_params"))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_warmup(schedule: object) -> None:
    """Refuse a warm-up that is given twice, or in steps that are none."""
    if not isinstance(schedule, Mapping) or schedule.get("warmup_steps") is None:
        return
    check_whole("optim.scheduler_params.warmup_steps", schedule["warmup_steps"], least=1)
    if schedule.get("warmup_epochs") is not None:
        raise ValueError(
            "optim.scheduler_params: warmup_steps and warmup_epochs both give the warm-up; take "
            "one of them out (null does)"
        )


def check_sources(dataset: object) -> None:
    """Refuse data sets of which a file or folder is not there.

    Raises:
        ConfigError: naming the key and the path.
    """
    if not isinstance(dataset, Mapping):
        raise ConfigError(f"dataset: expected a mapping with train and its src, got {dataset!r}")

    for name, settings in dataset.items():
        if not isinstance(settings, Mapping) or settings.get("src") is None:
            continue

        src = settings["src"]
        paths = [src] if isinstance(src, str) else src
        if not isinstance(paths, list | tuple) or not all(isinstance(p, str) for p in paths):
            raise ConfigError(
                f"dataset.{name}.src: expected a path or a list of paths, got {src!r}"
            )
        for path in paths:
            # "://" is in the address of a database server, which is for fairchem to reach.
            if "://" not in path and not os.path.exists(path) and not glob.glob(path):
                raise ConfigError(
                    f"dataset.{name}.src: there is no {path!r} (paths count from {Path.cwd()})"
                )
