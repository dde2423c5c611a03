"""One call from data to a student, by the cheaper of two exact ways."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from torch.utils.data import DataLoader
from tqdm import tqdm

from kd_plugins.chgnet.data import DistillData, GraphSample
from kd_plugins.chgnet.fitting import (
    FitSettings,
    Fitted,
    describe_fit,
    fit,
    read_last,
    refuse_other_settings,
)
from kd_plugins.chgnet.frozen_trunk import (
    N_STRAINS,
    CachedData,
    FrozenTrunk,
    UnsuitableTrunk,
    check_force_share,
    choose_coordinates,
    count_coordinates,
    is_cached,
)
from kd_plugins.chgnet.loss import Criterion, DistillLoss, Ratios, TargetKind
from kd_plugins.chgnet.preflight import check_data, check_magmoms, check_student, checked_allow
from kd_plugins.chgnet.run_folder import (
    LAST,
    check_not_in_use,
    check_run_folder,
    lock_run_folder,
    read_run_checkpoint,
)
from kd_plugins.chgnet.student import ALL, HEAD, count_trainable, freeze_except
from kd_plugins.chgnet.summary import describe_result
from kd_plugins.chgnet.trainer import OURS, DistillTrainer
from kd_plugins.chgnet.validation import check_apart
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_whole
from kd_plugins.teachers.teacher import resolve_device

Way = Literal["cached", "plain"]
ChosenWay = Literal["auto", "cached", "plain"]
"""``auto`` takes the cheaper one."""

IN_WORDS: Mapping[Way, str] = {"cached": "on cached features", "plain": "with CHGNet's Trainer"}

PROBED = 3 * 2
"""Coordinates along which a trial differentiates: those of two atoms."""


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
    trainable: Sequence[str] | Literal["all"] = HEAD,
    criterion: Criterion = "MAE",
    delta: float = 0.1,
    select: TargetKind | None = None,
    l2_to_start: float = 0.0,
    settings: FitSettings = FitSettings(),  # noqa: B008 - frozen
    force_share: float = 1.0,
    allow: Sequence[str] = (),
    way: ChosenWay = "auto",
    device: str = "auto",
    workers: int = 1,
) -> Distilled:
    """Train a student; on cached features where that is cheaper, else with CHGNet's Trainer.

    Both ways take the same steps to the same weights. Features serve where nothing but the readout
    MLP trains and they are the cheaper way; all else is trained with the whole model. What either
    would cost is estimated by trials, and printed with the choice. At the end the validation errors
    are printed beside the untrained student's, and where the training stopped if that was early.
    Called again, it resumes where it stopped. Whatever can be checked is checked before features
    are computed or a step is taken.

    Args:
        model: the student, trained in place.
        train: to learn from.
        validation: that chooses the best epoch.
        out: folder of the run, with ``last.pth.tar`` and ``best.pth.tar``.
        cache: folder of features, which runs with the same trunk share.
        soft: see `Ratios`; energy 1 and forces 1, as in Taniguchi 2024, if neither this nor
            ``hard`` is given.
        hard: see `Ratios`.
        trainable: see `freeze_except`.
        criterion: see `DistillLoss`.
        delta: see `DistillLoss`.
        select: see `DistillLoss`.
        l2_to_start: see `DistillLoss`.
        settings: of the training.
        force_share: of the force components that count, the same ones in either way; 1 is exact,
            see `CachedData`.
        allow: names of errors to overrule, see `check_student` and `check_apart`.
        way: ``cached`` or ``plain`` takes that way without an estimate, see `Distilled`.
        device: where features are computed and CHGNet's Trainer trains: ``auto`` (CUDA where there
            is one; of the Trainer, what CHGNet chooses), ``cpu``, ``cuda`` or ``cuda:1``. A run may
            go on on another one.
        workers: processes that compute features, see `CachedData`.

    Raises:
        DataError: if the data lack a target or cannot be right, or validation structures are those
            to learn from.
        ValueError: for what `Ratios`, `freeze_except` and `CachedData` refuse, a damaged
            checkpoint in ``out``, or ``way: cached`` where the trunk trains or is unsuitable.
        FileExistsError: if ``out`` holds another run, or one of the other way, or another training
            is writing there.
        OSError: if ``out`` or ``cache`` cannot be written.
    """
    if not isinstance(model, CHGNet):
        raise ValueError(f"model: expected a CHGNet, got a {type(model).__name__}")
    if not isinstance(settings, FitSettings):
        raise ValueError(f"settings: expected FitSettings, got {settings!r}")

    # An empty mapping is a user's choice, and then refused by Ratios.
    paper = {"energy": 1, "forces": 1} if soft is None and hard is None else {}
    ratios = Ratios(hard=hard or {}, soft=soft or paper)
    loss = DistillLoss(ratios, criterion, delta, select, l2_to_start)
    check_force_share(force_share)
    loss.check_force_share(force_share)
    allow = checked_allow(allow)
    if way not in get_args(ChosenWay):
        raise ValueError(f"way: unknown {way!r}{suggestion(str(way), get_args(ChosenWay))}")

    resolve_device(device)
    check_whole("workers", workers, least=1)

    out, cache = check_run_folder(out, "out"), check_run_folder(cache, "cache")
    if out.resolve() == cache.resolve():
        raise ValueError(f"out: expected another folder than cache, got {out} for both")
    check_not_in_use(out)

    check_data(loss, train, validation, settings.batch_size)
    print(freeze_except(model, trainable))
    check_magmoms(model, loss.ratios)

    task = _Task(
        *(model, loss, train, validation, settings, out, cache, float(force_share), way),
        device=device,
        workers=workers,
    )
    if not task.resumes:
        check_apart(train, validation, allow)
        check_student(model, train, loss.ratios, validation, allow)

    with lock_run_folder(out):
        taken, reason = task.choose()
        print(f"training {IN_WORDS[taken]}: {reason}")
        fitted = task.on_features() if taken == "cached" else task.with_trainer(trainable)

    print(describe_result(fitted))
    return Distilled(fitted, taken, reason)


@dataclass(frozen=True)
class _Task:
    """A training that has been checked, and the two ways to do it."""

    model: CHGNet
    loss: DistillLoss
    train: DistillData
    validation: DistillData
    settings: FitSettings
    out: Path
    cache: Path
    force_share: float
    way: ChosenWay
    device: str
    workers: int

    @property
    def resumes(self) -> bool:
        """Whether there is a run to resume."""
        return (self.out / LAST).is_file()

    def choose(self) -> tuple[Way, str]:
        """Return the way of the run that is there, or the cheaper one, and why."""
        if self.resumes:
            last = self.out / LAST
            kept: Way = "plain" if OURS in read_run_checkpoint(last) else "cached"
            if self.way not in ("auto", kept):
                raise FileExistsError(
                    f"{last} is of a training {IN_WORDS[kept]}, which cannot go on with way: "
                    f"{self.way}; choose another folder, or way: auto"
                )
            return kept, f"goes on from {last}"
        if self.way == "plain":
            return "plain", "as way: plain says"

        others = [name for name in count_trainable(self.model).names if not name.startswith(HEAD)]
        if others and self.way == "cached":
            raise ValueError(
                f"way: cached is for a frozen trunk, but {others[0]} trains; take plain or auto"
            )
        if others:
            cost = _format_time(self._cost_of_the_model())
            reason = f"{others[0]} trains, so that the trunk is not frozen; about {cost}"
            return "plain", reason

        try:
            trunk = FrozenTrunk(self.model, self.device)
        except UnsuitableTrunk as error:
            if self.way == "cached":
                raise ValueError(f"way: cached: {error}") from error
            return "plain", str(error)
        if self.way == "cached":
            return "cached", "as way: cached says"

        found = estimate(
            trunk,
            self.train,
            self.validation,
            self.settings.epochs,
            self.cache,
            self.force_share,
        )
        free = shutil.disk_usage(_nearest_folder(self.cache)).free
        if found.prefers_cache and found.size > free:
            return "plain", f"{found}, but the disk has {free / 1e9:.1f} GB left"
        return ("cached" if found.prefers_cache else "plain"), str(found)

    def _cost_of_the_model(self) -> float:
        """Return the seconds of the training with the whole model, from a trial."""
        samples = sorted(self.train.samples, key=lambda sample: sample.n_atoms)
        step = _time_step(self.model, samples[len(samples) // 2], resolve_device(self.device))
        return self.settings.epochs * (len(self.train) + len(self.validation)) * step

    def on_features(self) -> Fitted:
        """Train with `fit`."""
        trunk = FrozenTrunk(self.model, self.device)
        data = (self.train, self.validation)

        # Before features are computed for a run that is refused.
        wanted = describe_fit(trunk, self.loss, self.settings, *data, self.force_share)
        read_last(self.out, wanted)

        train, validation = (
            CachedData(one, trunk, self.cache, force_share=self.force_share, workers=self.workers)
            for one in data
        )
        return fit(trunk, train, validation, self.loss, self.settings, self.out, check=False)

    def with_trainer(self, trainable: Sequence[str] | Literal["all"]) -> Fitted:
        """Train with `DistillTrainer`."""
        wanted, force_share = self._trainer_arguments(trainable), self.force_share
        use_device = None if self.device == "auto" else self.device
        if self.resumes:
            trainer = DistillTrainer.load(self.out / LAST, use_device=use_device)
            if trainer.is_of_all_forces:
                force_share = 1.0
            kept = {name: trainer.trainer_args.get(name) for name in wanted}
            refuse_other_settings(self.out, kept, wanted)
        else:
            trainer = DistillTrainer(self.model, use_device=use_device, **wanted)
            # Not kept with the run, which may go on on another device.
            del trainer.trainer_args["use_device"]

        loaders = [
            DataLoader(
                _with_force_share(data, force_share),
                self.settings.batch_size,
                shuffle=shuffle,
                collate_fn=collate_graphs,
            )
            for data, shuffle in ((self.train, True), (self.validation, False))
        ]
        with _progress(trainer, len(loaders[0])):
            # All checks of the data were made in `distill`.
            trainer.train(*loaders, save_dir=str(self.out), check=False)

        # A resumed trainer has made a model of its own.
        self.model.load_state_dict(trainer.model.state_dict())
        return Fitted(
            self.model,
            trainer.get_best_model(),
            trainer.errors,
            trainer.criterion.step,
            trainer.untrained,
            trainer.stopped,
        )

    def _trainer_arguments(self, trainable: Sequence[str] | Literal["all"]) -> dict[str, Any]:
        ratios, settings = self.loss.ratios, self.settings
        return {
            "soft": ratios.soft,
            "hard": ratios.hard,
            "trainable": trainable if trainable == ALL else list(trainable),
            "criterion": self.loss.name,
            "delta": self.loss.delta,
            "select": self.loss.select,
            "schedule": settings.schedule,
            "seed": settings.seed,
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "l2_to_start": self.loss.l2_to_start,
            "patience": settings.patience,
        }


@contextmanager
def _progress(trainer: DistillTrainer, n_batches: int) -> Iterator[None]:
    """Show a bar of the optimizer's steps while CHGNet's Trainer, which has none, trains."""
    done = len(trainer.errors) * n_batches
    with tqdm(
        desc="training", total=trainer.epochs * n_batches, initial=done, unit=" steps"
    ) as bar:
        hook = trainer.optimizer.register_step_post_hook(lambda *_: bar.update())
        try:
            yield
        finally:
            hook.remove()


@dataclass(frozen=True)
class CostEstimate:
    """Seconds and bytes of both ways, from trials on one structure of middle size.

    Args:
        plain: seconds of the training with the whole model.
        build: seconds until all features are there; 0 if they are.
        cached: seconds of the training on features.
        size: bytes of the features on disk.

    >>> print(CostEstimate(plain=7200.0, build=300.0, cached=60.0, size=2 * 10**9))
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
        build = f" ({_format_time(self.build)} for {self.size / 1e9:.1f} GB of features)"
        return (
            f"with cached features about {_format_time(self.build + self.cached)}"
            f"{build if self.build else ''}, with the whole model {_format_time(self.plain)}"
        )


def estimate(
    trunk: FrozenTrunk,
    train: DistillData,
    validation: DistillData,
    epochs: int,
    folder: str | Path,
    force_share: float,
) -> CostEstimate:
    """Return what both ways of training would cost on this machine.

    Args:
        trunk: of the student.
        train: its structures.
        validation: those that are predicted once an epoch, without learning.
        epochs: of the training.
        folder: of the cache, see `CachedData`.
        force_share: of the force components, see `CachedData`.
    """
    # A step's time grows with the atoms about linearly, so the median stands for all.
    samples = sorted([*train.samples, *validation.samples], key=lambda sample: sample.n_atoms)
    middle = samples[len(samples) // 2]
    n_predicted = epochs * len(samples)

    # Trials: a step with the whole model, a row of the Jacobian, a step on features.
    plain_step = _time_step(trunk.model, middle, trunk.device)

    features = trunk.features(middle.graph, range(PROBED))
    probe = _time(lambda: trunk.features(middle.graph, range(PROBED)))
    row_of_an_atom = probe / (PROBED + N_STRAINS) / middle.n_atoms

    head = [parameter for parameter in trunk.model.parameters() if parameter.requires_grad]

    def step_on_features() -> None:
        forces = trunk.predict([features])["f"]
        torch.autograd.grad(forces[0].sum(), head, allow_unused=True)

    cached_step = _time(step_on_features)

    # A row takes time in proportion to the atoms, and holds 64 numbers of 4 bytes for each.
    missing = [sample for sample in samples if not is_cached(trunk, folder, sample, force_share)]
    n_numbers = sum(
        (count_coordinates(sample, force_share) + N_STRAINS) * sample.n_atoms for sample in missing
    )
    return CostEstimate(
        plain=n_predicted * plain_step,
        build=n_numbers * row_of_an_atom,
        cached=2 * n_predicted * cached_step,  # with the loss, the optimizer and the loader
        size=4 * 64 * n_numbers,
    )


def _time_step(model: CHGNet, sample: GraphSample, device: str) -> float:
    """Return the seconds of a step with the whole model on a device, and move it to the CPU."""
    model.to(device)
    seconds = _time(lambda: _step(model, sample, device))
    model.cpu()
    return seconds


def _step(model: CHGNet, sample: GraphSample, device: str) -> None:
    """Take the gradient of errors in energy and forces, as a step of the Trainer does."""
    graphs, _ = collate_graphs([(sample.graph, dict(sample.targets))])
    prediction = model([graph.to(device) for graph in graphs], task="efs")

    error = torch.nn.functional.l1_loss(prediction["e"], torch.zeros_like(prediction["e"]))
    total = error + sum(forces.abs().mean() for forces in prediction["f"])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    # The part that predicts magnetic moments is not used.
    torch.autograd.grad(total, weights, allow_unused=True)


def _time(call: Callable[[], object]) -> float:
    """Return the seconds of the faster of two calls, after one that warms up.

    Another program's work makes a call slower, never faster.
    """
    call()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():  # a GPU computes on after the call
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _format_time(seconds: float) -> str:
    """Return a time with its unit.

    >>> _format_time(90.0)
    '1.5 min'
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _with_force_share(data: DistillData, force_share: float) -> DistillData:
    """Return the data with the force components alone that the cache would have."""
    if force_share == 1:
        return data
    return data.along(lambda sample: choose_coordinates(sample, force_share, seed=0))


def _nearest_folder(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
