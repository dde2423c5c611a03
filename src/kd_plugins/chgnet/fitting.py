"""Training the readout on features of a frozen trunk: DistillTrainer's steps without the trunk."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from kd_plugins.chgnet.data import DistillData
from kd_plugins.chgnet.frozen_trunk import CachedData, FrozenTrunk, TrunkFeatures
from kd_plugins.chgnet.loss import DistillLoss, concatenate, to_python
from kd_plugins.chgnet.preflight import check_loaders, check_magmoms, check_student, checked_allow
from kd_plugins.chgnet.run_folder import (
    BEST,
    LAST,
    check_run_folder,
    lock_run_folder,
    read_run_checkpoint,
    write_checkpoint,
)
from kd_plugins.chgnet.student import count_trainable
from kd_plugins.chgnet.trainer import (
    LearningRateSchedule,
    check_patience,
    cosine_length,
    describe_stop,
    is_schedule_step,
    make_cosine,
)
from kd_plugins.chgnet.validation import check_apart
from kd_plugins.numbers import check_number, check_seed, check_whole

# An epoch takes milliseconds, so a checkpoint after each would take longer than the training.
SECONDS = 20.0
"""Between checkpoints, so the most that a killed run does again."""


@dataclass(frozen=True)
class FitSettings:
    """How a student's readout MLP is trained; the defaults are those of Taniguchi 2024.

    Args:
        epochs: passes over the structures (paper: 100).
        batch_size: structures a step (paper: 32); fewer structures than that are one batch.
        learning_rate: of Adam, at the start (paper: 0.01).
        schedule: of the learning rate.
        seed: of the order of structures.
        patience: epochs without a lower validation score after which the training ends early; None
            for all epochs.
    """

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 0.01
    schedule: LearningRateSchedule = "finishing"
    seed: int = 0
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, to_python(value))

        for name in ("epochs", "batch_size"):
            check_whole(name, getattr(self, name), least=1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_seed("seed", self.seed)
        check_patience(self.patience)
        cosine_length(self.schedule, self.epochs, 1)

    @classmethod
    def for_steps(cls, steps: int, n_structures: int, **others: Any) -> FitSettings:
        """Return settings for a budget of optimizer steps, in whole epochs.

        >>> FitSettings.for_steps(2400, n_structures=250, batch_size=32).epochs
        300
        """
        epochs = epochs_for(steps, n_structures, others.get("batch_size", cls.batch_size))
        return cls(epochs=epochs, **others)


def epochs_for(steps: int, n_structures: int, batch_size: int) -> int:
    """Return the whole epochs that take at least so many optimizer steps.

    Raises:
        ValueError: for a number that is not above 0.

    >>> epochs_for(2400, n_structures=250, batch_size=32)
    300
    """
    counts = {"steps": steps, "n_structures": n_structures, "batch_size": batch_size}
    for name, count in counts.items():
        check_whole(name, count, least=1)

    # Both divisions round up: the last batch may be small, the last epoch may do more.
    n_batches = -(-n_structures // batch_size)
    return -(-steps // n_batches)


@dataclass
class Fitted:
    """A trained student.

    Args:
        model: with the weights of the last epoch.
        best: with those of the epoch of the lowest validation score.
        errors: an epoch's mean absolute errors, ``train_soft_e``, ``val_hard_f`` and so on in
            CHGNet's units, with ``val_score``; see `DistillLoss`.
        steps: optimizer steps that were taken.
        untrained: the validation errors before the first step, by the same names; empty in a run
            that an early version started.
        stopped: why the training ended before its last epoch; empty if it did not.
    """

    model: CHGNet
    best: CHGNet
    errors: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    untrained: dict[str, float] = field(default_factory=dict)
    stopped: str = ""


def fit(
    trunk: FrozenTrunk,
    train: CachedData,
    validation: CachedData,
    loss: DistillLoss,
    settings: FitSettings,
    folder: str | Path | None = None,
    *,
    check: bool = True,
    progress: bool = True,
    allow: Sequence[str] = (),
) -> Fitted:
    """Train the readout MLP of the trunk's model on features.

    Does what `DistillTrainer` does with the same data, loss, batches and Adam, to rounding. In a
    folder it writes ``last.pth.tar`` and ``best.pth.tar``, which ``CHGNet.from_file`` reads. Called
    again with the same folder and settings, it resumes from the last checkpoint.

    Args:
        trunk: of the student; its ``model`` is trained in place.
        train: features and targets to learn.
        validation: those that choose the best epoch.
        loss: the same object that `DistillTrainer` uses.
        settings: of the training.
        folder: of this run's files; without one nothing is kept.
        check: first compare the targets with the student, see `check_student`, and validation with
            training structures. A study of many runs on the same data needs this once only.
        progress: show a bar.
        allow: names of errors to overrule, see `check_student` and `check_apart`.

    Raises:
        DataError: if the data lack a target or cannot be right, see `check_student`.
        ValueError: if the folder's last checkpoint is damaged, or the loss is one of vectors and
            the features have a share of the forces only.
        FileExistsError: if the folder holds a run with other settings or data, or another training
            is writing there.
        FloatingPointError: if the training diverges.
    """
    allow = checked_allow(allow)
    folder = None if folder is None else check_run_folder(folder, "folder")
    loaders = [
        DataLoader(train, settings.batch_size, shuffle=True, collate_fn=_collate),
        DataLoader(validation, settings.batch_size, collate_fn=_collate),
    ]

    check_magmoms(trunk.model, loss.ratios)
    check_loaders(loss, *loaders, report=check)
    for data in (train, validation):
        loss.check_force_share(data.force_share)
    if check and not _has_checkpoint(folder):
        check_apart(train.data, validation.data, allow)
        check_student(trunk.model, train.data, loss.ratios, validation.data, allow)

    with nullcontext() if folder is None else lock_run_folder(folder):
        training = _Training(trunk, loss, settings, folder, *loaders)
        if not training.resume():
            training.fitted.untrained = training.validate(loaders[1])
            # The loader draws the order of structures from torch's global generator.
            torch.manual_seed(settings.seed)
            training.save()

        left = range(len(training.fitted.errors), settings.epochs)
        for _ in tqdm(left, "training the readout", unit=" epochs", disable=not progress):
            if describe_stop(training.fitted.errors, settings.patience):
                break
            training.epoch(*loaders)
        training.save()

    training.fitted.stopped = describe_stop(training.fitted.errors, settings.patience)
    return training.fitted


def describe_fit(
    trunk: FrozenTrunk,
    loss: DistillLoss,
    settings: FitSettings,
    train: DistillData,
    validation: DistillData,
    force_share: float,
) -> dict[str, Any]:
    """Return everything that decides how a training ends; a resumed run is compared by it."""
    return {
        **vars(settings),
        "hard": loss.ratios.hard,
        "soft": loss.ratios.soft,
        "criterion": loss.name,
        "delta": loss.delta,
        "select": loss.select,
        # None as in checkpoints of versions that did not have it.
        "l2_to_start": loss.l2_to_start or None,
        "trainable": list(count_trainable(trunk.model).names),
        "force_share": force_share,
        "trunk": trunk.fingerprint,
        "data": train.fingerprint,
        "validation": validation.fingerprint,
    }


def read_last(folder: Path | None, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the last checkpoint of the run with these settings, or None where there is no run.

    Args:
        folder: of the run.
        wanted: as `describe_fit` returns it.

    Raises:
        ValueError: if it is damaged.
        FileExistsError: if it is of another run.
    """
    if folder is None or not _has_checkpoint(folder):
        return None

    path = folder / LAST
    state = read_run_checkpoint(path)
    kept = state.get("settings")
    if not isinstance(kept, dict):
        raise FileExistsError(f"{path} is of another kind of run; choose another folder")

    refuse_other_settings(folder, kept, wanted)
    return state


# Settings that checkpoints of early versions lack; such runs are resumed all the same.
_ADDED_LATER = ("select", "trainable", "force_share", "validation")


def refuse_other_settings(folder: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Args:
        folder: of the run.
        kept: settings of its checkpoint.
        wanted: those that it should have.

    Raises:
        FileExistsError: naming what differs.
    """
    differing = sorted(
        name
        for name in kept.keys() | wanted.keys()
        if kept.get(name) != wanted.get(name) and (name in kept or name not in _ADDED_LATER)
    )
    if not differing:
        return

    def in_words(settings: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {settings.get(name)!r}" for name in differing)

    raise FileExistsError(
        f"{folder} holds a run with other settings, {in_words(kept)}; choose another folder for "
        f"{in_words(wanted)}"
    )


def _has_checkpoint(folder: Path | None) -> bool:
    return folder is not None and (folder / LAST).is_file()


class _Training:
    """The state of a training on features, and its epochs."""

    def __init__(
        self,
        trunk: FrozenTrunk,
        loss: DistillLoss,
        settings: FitSettings,
        folder: Path | None,
        loader: DataLoader[Any],
        validation: DataLoader[Any],
    ) -> None:
        self.trunk, self.loss, self.settings, self.folder = trunk, loss, settings, folder
        model = trunk.model

        # The trunk is not in the graph, so a plain backward() takes no time for the positions.
        loss.parameters_to_train = []
        loss.step = 0
        loss.hold_start(model)

        train_set: Any = loader.dataset
        validation_set: Any = validation.dataset
        self.description = describe_fit(
            trunk, loss, settings, train_set.data, validation_set.data, train_set.force_share
        )

        head = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(head, settings.learning_rate)
        self.scheduler = make_cosine(
            self.optimizer, settings.schedule, settings.epochs, len(loader)
        )
        self.fitted = Fitted(model, copy.deepcopy(model))
        self.saved = time.monotonic()

    def epoch(self, train: DataLoader[Any], validation: DataLoader[Any]) -> None:
        """Train one epoch, validate, and keep the model if it is the best yet."""
        self.loss.train()
        for batch, (features, targets) in enumerate(train):
            out = self.loss(targets, self.trunk.predict(features))
            self.optimizer.zero_grad()
            out["loss"].backward()
            self.optimizer.step()
            self.fitted.steps += 1
            if is_schedule_step(batch, len(train)):
                self.scheduler.step()
        errors = {f"train_{name}": value for name, value in self.loss.take_errors().items()}

        self.fitted.errors.append(errors | self.validate(validation))
        self._keep_best()

    def validate(self, loader: DataLoader[Any]) -> dict[str, float]:
        """Return the errors of the model as it is now, ``val_soft_e`` and so on, and its score."""
        self.loss.eval()
        # Not under torch.no_grad(): forces are a gradient.
        for features, targets in loader:
            prediction = self.trunk.predict(features)
            self.loss(targets, {name: value.detach() for name, value in prediction.items()})
        found = self.loss.take_errors()
        found["score"] = self.loss.score(found)
        return {f"val_{name}": value for name, value in found.items()}

    def _keep_best(self) -> None:
        scores = [errors["val_score"] for errors in self.fitted.errors]
        if scores[-1] == min(scores):
            # Nothing but the readout differs between the two models.
            self.fitted.best.mlp.load_state_dict(self.fitted.model.mlp.state_dict())

        if time.monotonic() - self.saved > SECONDS:
            self.save()
            self.saved = time.monotonic()

    def save(self) -> None:
        """Write both checkpoints, each whole."""
        if self.folder is None:
            return

        state = {
            "model": self.fitted.model.as_dict(),
            "best": self.fitted.best.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "settings": self.description,
            "errors": self.fitted.errors,
            "untrained": self.fitted.untrained,
            "start": self.loss.start,
            "steps": self.fitted.steps,
            "loss_step": self.loss.step,
            "random_state": torch.get_rng_state(),
        }
        # The last one last: it decides from where the run is resumed.
        write_checkpoint(self.folder / BEST, {"model": self.fitted.best.as_dict()})
        write_checkpoint(self.folder / LAST, state)

    def resume(self) -> bool:
        """Restore the folder's last checkpoint; return whether there is one."""
        state = read_last(self.folder, self.description)
        if state is None:
            return False

        try:
            self._restore(state)
        except (KeyError, TypeError, RuntimeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{self.folder}/{LAST}: is damaged ({type(error).__name__}); to train anew, remove "
                "it"
            ) from error
        return True

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.fitted.model.load_state_dict(state["model"]["state_dict"])
        self.fitted.best.load_state_dict(state["best"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.fitted.errors, self.fitted.steps = state["errors"], state["steps"]
        # Early versions kept neither.
        self.fitted.untrained = state.get("untrained", {})
        self.loss.start = state.get("start", {})
        self.loss.step = state["loss_step"]
        torch.set_rng_state(state["random_state"])


def _collate(
    samples: Sequence[tuple[TrunkFeatures, dict[str, Tensor]]],
) -> tuple[list[TrunkFeatures], dict[str, Tensor]]:
    """Return features, and targets as tensors like those of `FrozenTrunk.predict`."""
    features, targets = collate_graphs(list(samples))

    tensors: dict[str, Tensor] = {}
    for name, parts in targets.items():
        if isinstance(parts, Tensor):  # CHGNet stacks the energies itself
            tensors[name] = parts
        elif name.endswith("s"):  # stress, (3, 3) a structure
            tensors[name] = torch.stack(parts)
        else:
            tensors[name] = concatenate(parts)
    return features, tensors
