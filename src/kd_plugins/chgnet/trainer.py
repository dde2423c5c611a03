"""CHGNet's own Trainer with labels (hard targets) and a teacher (soft targets)."""

from __future__ import annotations

import copy
import inspect
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from chgnet.model import CHGNet
from chgnet.trainer import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from kd_plugins.chgnet.data import DataError, DistillData
from kd_plugins.chgnet.loss import Criterion, DistillLoss, Ratios, TargetKind, to_python
from kd_plugins.chgnet.preflight import check_loaders, check_magmoms, check_student, checked_allow
from kd_plugins.chgnet.run_folder import (
    BEST,
    LAST,
    check_run_folder,
    lock_run_folder,
    read_run_checkpoint,
    write_checkpoint,
)
from kd_plugins.chgnet.student import ALL, HEAD, freeze_except
from kd_plugins.chgnet.validation import check_apart
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number, check_seed, check_whole

LearningRateSchedule = Literal["finishing", "chgnet"]
"""``chgnet``: CHGNet 0.4.2's cosine over 10 steps an epoch, which stays near its start where an
epoch has fewer than 10 batches. ``finishing``: the same cosine over the steps that are taken."""

STEPS_AN_EPOCH = 10
"""How often CHGNet's Trainer steps its scheduler in an epoch, if that has as many batches."""

FINAL = 1e-2
"""What the cosine ends at, as a share of the learning rate; CHGNet's default."""

OURS = "distillation"
"""The key of a checkpoint that holds what CHGNet's checkpoints lack; CHGNet ignores it."""

# Arguments of CHGNet's Trainer that follow from soft, hard and seed.
_DECIDED = (
    *("targets", "torch_seed", "data_seed", "allow_missing_labels"),
    *("energy_loss_ratio", "force_loss_ratio", "stress_loss_ratio", "mag_loss_ratio"),
)

# For any other name CHGNet's Trainer fails without naming it.
_CHOICES = {
    "optimizer": ("Adam", "AdamW", "RAdam", "SGD"),
    "scheduler": (
        *("CosLR", "CosineAnnealingLR", "Cos", "cos", "CosRestartLR", "ExponentialLR", "Exp"),
        *("Exponential", "MultiStepLR", "multistep"),
    ),
}

# Arguments that it takes among its **kwargs.
_UNNAMED = ("momentum", "weight_decay", "scheduler_params")


class _NoMoreGain(Exception):
    """Ends CHGNet's loop where `DistillTrainer` has no patience left; its files are written."""


class DistillTrainer(Trainer):
    """CHGNet's Trainer, with a loss against labels (hard targets) and a teacher (soft targets).

    Its loop, optimizer, logs and files are CHGNet's. The loss is `DistillLoss`, and only the
    parameters that you name train. Four things differ from CHGNet's Trainer:

    - The best model is chosen by `DistillLoss.score`, and kept; CHGNet returns the last one.
    - ``load`` restores freezing, loss and random state, so that a resumed run equals an
      uninterrupted one bit for bit.
    - The seed determines the order of structures from the first batch on.
    - The cosine of the learning rate ends with the last epoch.

    ``train`` writes, besides CHGNet's files, ``last.pth.tar`` (to resume from) and
    ``best.pth.tar``, each whole at any moment. ``CHGNet.from_file`` reads all of them.

    Args:
        model: the student.
        soft: weights of the teacher's ``energy``, ``forces`` and ``stress``, see `Ratios`.
        hard: weights of the labels, ``magmoms`` among them.
        trainable: prefixes of the parameters that train, or ``all``, see `freeze_except`.
        criterion: see `DistillLoss`; ``MAE`` in Taniguchi 2024.
        delta: of Huber's, in CHGNet's units.
        select: see `DistillLoss`.
        schedule: of the learning rate, where it is CHGNet's cosine.
        seed: of the order of structures and all else that is random.
        l2_to_start: see `DistillLoss`.
        patience: epochs without a lower validation score after which the training ends early; None
            for all epochs.
        allow: names of errors to overrule, see `check_student` and `check_apart`.
        host: what CHGNet's Trainer takes besides: ``epochs``, ``learning_rate``, ``optimizer``,
            ``scheduler``, ``print_freq``, ``use_device``, ``wandb_path`` ...

    Raises:
        ValueError: if a prefix matches nothing, a weight cannot be read, or an argument of CHGNet's
            follows from ours.
    """

    def __init__(
        self,
        model: CHGNet,
        *,
        soft: Mapping[str, Any] | None = None,
        hard: Mapping[str, Any] | None = None,
        trainable: Sequence[str] | Literal["all"] = HEAD,
        criterion: Criterion = "MAE",
        delta: float = 0.1,
        select: TargetKind | None = None,
        schedule: LearningRateSchedule = "finishing",
        seed: int = 0,
        l2_to_start: float = 0.0,
        patience: int | None = None,
        allow: Sequence[str] = (),
        **host: Any,
    ) -> None:
        if not isinstance(model, CHGNet):
            raise ValueError(f"model: expected a CHGNet, got a {type(model).__name__}")
        _check_host_arguments(host)
        seed = check_seed("seed", seed)
        cosine_length(schedule, 1, 1)
        self.patience = check_patience(patience)
        self.allow = checked_allow(allow)

        ratios = Ratios(hard=hard or {}, soft=soft or {})
        loss = DistillLoss(ratios, criterion, delta, select, l2_to_start)
        self.trainable = freeze_except(model, trainable)
        check_magmoms(model, ratios)
        if model.composition_model is None:
            raise ValueError("CHGNet's Trainer needs a model with a composition_model")

        host = to_python(host)
        # CHGNet's schedulers take values out of scheduler_params, so they get a copy.
        super().__init__(model, targets=ratios.task, **copy.deepcopy(host))

        self.criterion = loss
        loss.parameters_to_train = [p for p in model.parameters() if p.requires_grad]
        loss.hold_start(model)
        self.schedule, self.seed = schedule, seed
        self.errors: list[dict[str, float]] = []
        self.untrained: dict[str, float] = {}

        # CHGNet's Trainer.load calls this class again with these.
        self.trainer_args = {
            **{"soft": ratios.soft, "hard": ratios.hard},
            "trainable": trainable if trainable == ALL else list(trainable),
            **{"criterion": criterion, "delta": loss.delta, "select": loss.select},
            **{"schedule": schedule, "seed": seed},
            **{"l2_to_start": loss.l2_to_start, "patience": patience, **host},
        }

        # Of the run that is resumed; None where a checkpoint does not say or the run is new.
        self._random_state: torch.Tensor | None = None
        self._train_fingerprint: str | None = None
        self._validation_fingerprint: str | None = None
        self._batch_size: int | None = None

    def train(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        test_loader: DataLoader | None = None,
        *,
        save_dir: str | Path,
        check: bool = True,
        **host: Any,
    ) -> None:
        """Train as CHGNet's Trainer does; the weights of the last epoch are left in ``model``.

        Args:
            train_loader: over a `DistillData`, with CHGNet's ``collate_graphs``.
            val_loader: likewise.
            test_loader: likewise; CHGNet then leaves its best weights in ``model``.
            save_dir: folder of this run's files.
            check: compare the targets with the student first, see `check_student`, and validation
                with training structures.
            host: ``save_test_result``, ``wandb_log_freq``.

        Raises:
            DataError: if a loader lacks a target or yields nothing, the structures do not fit the
                student, or are not those of the run that is resumed.
            FloatingPointError: if the training diverges.
            FileExistsError: if the folder holds another run, or another training is writing there.
        """
        folder = check_run_folder(save_dir, "save_dir")
        check_loaders(self.criterion, train_loader, val_loader, test_loader, report=check)
        self._check_same_run(train_loader, val_loader)
        if check and not self.starting_epoch:
            self._check_targets(train_loader.dataset, val_loader.dataset)
        self._refuse_other_run(folder)

        with lock_run_folder(folder):
            # Once more: another training may have ended here between the check and the lock.
            self._refuse_other_run(folder)

            if not self.starting_epoch and not self.untrained:
                # Before the seed is set: a loader draws from torch's generator.
                self.untrained = self._measure(val_loader)
            self._restore_random_state(len(train_loader))
            if self.best_model is not None:
                # A kill between the two files leaves last.pth.tar with its best.pth.tar missing.
                self._save_best(str(folder))

            # CHGNet's Trainer would freeze or unfreeze the references by its own argument.
            references = self.model.composition_model
            trains = any(parameter.requires_grad for parameter in references.parameters())
            host |= {"save_dir": str(folder), "train_composition_model": trains}
            try:
                self._train_as_host(train_loader, val_loader, test_loader, **host)
            except _NoMoreGain:
                # What CHGNet does after its last epoch: nothing, or the test.
                self._train_as_host(train_loader, val_loader, test_loader, **host)

    def _train_as_host(self, *loaders: Any, **host: Any) -> None:
        """Run CHGNet's loop, without epochs if the training has ended early."""
        if self.stopped:
            self.starting_epoch = self.epochs
        super().train(*loaders, **host)

    @property
    def stopped(self) -> str:
        """Why the training ended before its last epoch; empty if it did not."""
        return describe_stop(self.errors, self.patience)

    def _measure(self, loader: DataLoader) -> dict[str, float]:
        """Return validation errors of the model as it is now, by the names of `errors`."""
        self.model.to(self.device).eval()
        self.criterion.eval()

        # A loader of our own: that of the user may have a generator, whose state must not change.
        batches = DataLoader(loader.dataset, loader.batch_size or 1, collate_fn=loader.collate_fn)
        for graphs, targets in batches:
            for graph in graphs:
                graph.atom_frac_coord.requires_grad = "f" in self.targets
            prediction = self.model([one.to(self.device) for one in graphs], task=self.targets)
            held = {name: self.move_to(value, self.device) for name, value in targets.items()}
            self.criterion(held, prediction)

        found = self.criterion.take_errors()
        found["score"] = self.criterion.score(found)
        return {f"val_{name}": value for name, value in found.items()}

    def _check_same_run(self, train: DataLoader, validation: DataLoader) -> None:
        """Refuse to resume with other data or batches, as far as the checkpoint names them."""
        if isinstance(train.dataset, DistillData):
            if self._train_fingerprint not in (None, train.dataset.fingerprint):
                raise DataError("the run that is to go on learned from other structures or targets")
            self._train_fingerprint = train.dataset.fingerprint

        if isinstance(validation.dataset, DistillData):
            if self._validation_fingerprint not in (None, validation.dataset.fingerprint):
                raise DataError(
                    "the run that is to go on was validated on other structures or targets"
                )
            self._validation_fingerprint = validation.dataset.fingerprint

        if self._batch_size not in (None, train.batch_size):
            raise DataError(
                f"the run that is to go on has batches of {self._batch_size}, not of "
                f"{train.batch_size}"
            )
        self._batch_size = train.batch_size

    def _check_targets(self, train: Any, validation: Any) -> None:
        if not isinstance(train, DistillData):
            return

        checked = validation if isinstance(validation, DistillData) else None
        if checked is not None:
            check_apart(train, checked, self.allow)
        check_student(self.model, train, self.criterion.ratios, checked, self.allow)

    def _refuse_other_run(self, folder: Path) -> None:
        held = sorted(folder.glob("*.pth.tar")) if folder.is_dir() else []
        if held and not self.starting_epoch:
            raise FileExistsError(
                f"{folder} holds {held[0].name} of another run; go on with "
                f"DistillTrainer.load({LAST!r}), or choose another save_dir"
            )

    @property
    def is_of_all_forces(self) -> bool:
        """Whether it resumes a run of an early version, which had no ``force_share``."""
        return self._train_fingerprint is not None and self._validation_fingerprint is None

    def _restore_random_state(self, n_batches: int) -> None:
        """Take up the random state of the run that is resumed, or seed a new one."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
            return

        torch.manual_seed(self.seed)
        if isinstance(self.scheduler, CosineAnnealingLR):
            self.scheduler.T_max = cosine_length(self.schedule, self.epochs, n_batches)

    def _train(self, *arguments: Any, **keywords: Any) -> dict:
        self.criterion.train()
        self.errors.append({})
        result = super()._train(*arguments, **keywords)
        self._log("train")
        return result

    def _validate(self, *arguments: Any, **keywords: Any) -> dict:
        self.criterion.eval()
        result = super()._validate(*arguments, **keywords)
        self._log("test" if keywords.get("is_test") else "val")
        return result

    def _log(self, phase: str) -> None:
        found = self.criterion.take_errors()
        if phase == "val":
            found["score"] = self.criterion.score(found)
        self.errors[-1] |= {f"{phase}_{name}": value for name, value in found.items()}

    def save(self, filename: str = "training_result.pth.tar") -> None:
        """Write CHGNet's checkpoint with what resuming needs besides, whole."""
        # CHGNet writes straight to the file, where a kill would leave half of it.
        buffer = io.BytesIO()
        super().save(buffer)
        buffer.seek(0)
        state = torch.load(buffer, map_location="cpu", weights_only=True)

        state[OURS] = {
            "step": self.criterion.step,
            "errors": self.errors,
            "untrained": self.untrained,
            "start": self.criterion.start,
            "random_state": torch.get_rng_state(),
            "best": self.best_model.state_dict() if self.best_model is not None else None,
            "learned": self._train_fingerprint,
            "validated": self._validation_fingerprint,
            "batch_size": self._batch_size,
        }
        write_checkpoint(Path(filename), state)

    def save_checkpoint(self, epoch: int, mae_error: dict, save_dir: str) -> None:
        """Write the files of an epoch; see CHGNet."""
        scores = [errors["val_score"] for errors in self.errors]
        is_best = scores[-1] == min(scores)
        # A copy: CHGNet's Trainer keeps a reference to the model, which goes on changing.
        best = copy.deepcopy(self.model) if is_best else self.best_model
        self.best_model = best

        os.makedirs(save_dir, exist_ok=True)
        self.save(os.path.join(save_dir, LAST))
        try:
            super().save_checkpoint(epoch, mae_error, save_dir)
        except OSError as error:
            # CHGNet copies these, so they may be half written.
            for half in Path(save_dir).glob(f"best[EF]_epoch{epoch}_*"):
                half.unlink()
            if error.filename is None:  # of write_checkpoint, with a name and a remedy
                raise
            raise OSError(
                f"{save_dir}: CHGNet's files of epoch {epoch} could not be written "
                f"({error.strerror}); make room, then the same call goes on"
            ) from error

        # CHGNet sets it to the model that goes on training.
        self.best_model = best
        if is_best:
            self._save_best(save_dir)
        if self.stopped and epoch + 1 < self.epochs:
            # CHGNet's loop has no other end before its last epoch.
            raise _NoMoreGain

    def _save_best(self, folder: str) -> None:
        live, self.model = self.model, self.best_model
        self.save(os.path.join(folder, BEST))
        self.model = live

    def get_best_model(self) -> CHGNet:
        """Return the model of the epoch with the lowest score, see `DistillLoss.score`.

        Raises:
            RuntimeError: before any training.
        """
        if self.best_model is None:
            raise RuntimeError("the model needs to be trained first")
        return self.best_model

    @classmethod
    def load(cls, path: str | Path, use_device: str | None = None) -> DistillTrainer:
        """Return the trainer that resumes from a checkpoint, ``last.pth.tar``.

        Args:
            path: of the checkpoint.
            use_device: to go on on; that of the run if left out.

        Raises:
            ValueError: if the checkpoint is not one of this trainer, or is damaged.
        """
        file = Path(path).expanduser()
        state = read_run_checkpoint(file)
        if OURS not in state:
            raise ValueError(f"{file} was not written by DistillTrainer; load it with CHGNet's")

        try:
            with warnings.catch_warnings():
                # CHGNet reads the file again and warns of pickles; above it was read without any.
                warnings.simplefilter("ignore", FutureWarning)
                trainer = super().load(str(file))
            if use_device is not None:
                trainer._move(use_device)
            trainer._restore(state[OURS])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f"{file}: is damaged ({type(error).__name__}: {error}); to train anew, remove it"
            ) from error
        return trainer

    def _move(self, device: str) -> None:
        self.device = device
        self.model.to(device)
        # Adam's moments go to where their parameters are.
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def _restore(self, kept: Mapping[str, Any]) -> None:
        self.criterion.step, self.errors = kept["step"], kept["errors"]
        # Early versions kept neither.
        self.untrained, self.criterion.start = kept.get("untrained", {}), kept.get("start", {})
        self._random_state = kept["random_state"]
        self._train_fingerprint = kept.get("learned")
        self._validation_fingerprint = kept.get("validated")
        self._batch_size = kept.get("batch_size")

        if kept["best"] is not None:
            self.best_model = copy.deepcopy(self.model)
            self.best_model.load_state_dict(kept["best"])


def check_patience(patience: int | None) -> int | None:
    """Return how many epochs a training goes on without a gain; None for all."""
    return patience if patience is None else check_whole("patience", patience, least=1)


def describe_stop(errors: Sequence[Mapping[str, float]], patience: int | None) -> str:
    """Return why a training ends after these epochs; nothing if it goes on.

    Args:
        errors: of each epoch, with ``val_score``.
        patience: epochs without a lower score that end it; None for no such end.

    >>> describe_stop([{"val_score": 2.0}, {"val_score": 1.0}, {"val_score": 1.5}], patience=1)
    'stopped after epoch 3: no lower validation score than that of epoch 2 in 1 epoch (patience)'
    """
    scores = [epoch["val_score"] for epoch in errors]
    if patience is None or not scores:
        return ""

    best = scores.index(min(scores)) + 1
    if len(scores) - best < patience:
        return ""
    counted = f"{patience} epoch{'s' if patience > 1 else ''}"
    return (
        f"stopped after epoch {len(scores)}: no lower validation score than that of epoch {best} "
        f"in {counted} (patience)"
    )


def cosine_length(schedule: LearningRateSchedule, epochs: int, n_batches: int) -> int:
    """Return the number of scheduler steps until the cosine has reached its end.

    >>> cosine_length("finishing", epochs=100, n_batches=2)
    200
    >>> cosine_length("chgnet", epochs=100, n_batches=2)
    1000
    """
    if schedule not in ("finishing", "chgnet"):
        raise ValueError(f"schedule: expected 'finishing' or 'chgnet', got {schedule!r}")

    taken = min(STEPS_AN_EPOCH, n_batches)
    return epochs * (taken if schedule == "finishing" else STEPS_AN_EPOCH)


def make_cosine(
    optimizer: Optimizer, schedule: LearningRateSchedule, epochs: int, n_batches: int
) -> CosineAnnealingLR:
    """Return the scheduler that CHGNet's Trainer makes, of that length."""
    rate = optimizer.param_groups[0]["lr"]
    length = cosine_length(schedule, epochs, n_batches)
    return CosineAnnealingLR(optimizer, T_max=length, eta_min=FINAL * rate)


def is_schedule_step(batch: int, n_batches: int) -> bool:
    """Return whether the scheduler steps after a batch: at each tenth of an epoch, as CHGNet's."""
    return batch + 1 in np.arange(1, STEPS_AN_EPOCH + 1) * n_batches // STEPS_AN_EPOCH


def _check_host_arguments(host: Mapping[str, Any]) -> None:
    """Refuse arguments that CHGNet's Trainer does not have or that it fails on later.

    Raises:
        ValueError: naming the argument.
    """
    known = {*inspect.signature(Trainer.__init__).parameters, *_UNNAMED}
    known -= {"self", "model", "targets", "kwargs", *_DECIDED}

    for name, value in host.items():
        if name in _DECIDED:
            raise ValueError(f"{name} follows from soft, hard and seed here; leave it out")
        if name not in known:
            raise ValueError(f"unknown argument {name!r}{suggestion(name, known)}")
        if name in _CHOICES and value not in _CHOICES[name]:
            hint = suggestion(str(value), _CHOICES[name])
            raise ValueError(f"{name}: CHGNet has no {value!r}{hint}")
        if name in ("epochs", "print_freq"):
            check_whole(name, value, least=1)
        if name == "learning_rate":
            check_number(name, value, above=0)

    optimizer = host.get("optimizer", "Adam")
    if "momentum" in host and optimizer != "SGD":
        # CHGNet would hand it on to its loss, which has no such argument.
        raise ValueError(f"momentum: is for SGD, not for {optimizer}; leave it out")

    device = str(host.get("use_device") or "")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"use_device: {device!r} asks for a GPU, and torch finds none here")
