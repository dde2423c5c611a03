"""CHGNet's own Trainer with hard and soft targets."""

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
from kd_plugins.chgnet.loss import Criterion, DistillLoss, Ratios, Source, plain
from kd_plugins.chgnet.preflight import check_loaders, check_magmoms, check_student, checked_allow
from kd_plugins.chgnet.run_folder import (
    BEST,
    LAST,
    check_folder,
    locked,
    read_checkpoint,
    write_checkpoint,
)
from kd_plugins.chgnet.student import HEAD, freeze_except
from kd_plugins.chgnet.validation import check_apart
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number, check_seed, check_whole

Schedule = Literal["finishing", "chgnet"]
"""``chgnet``: CHGNet 0.4.2's cosine over 10 steps an epoch, which stays near its start where an
epoch has fewer than 10 batches. ``finishing``: the same cosine over the steps that are taken."""

PARTS = 10
FINAL = 1e-2
"""What the cosine ends at, as a share of the learning rate; CHGNet's default."""

OURS = "distillation"
"""Under which a checkpoint keeps what is not CHGNet's; CHGNet does not look there."""
_DECIDED = (
    *("targets", "torch_seed", "data_seed", "allow_missing_labels"),
    *("energy_loss_ratio", "force_loss_ratio", "stress_loss_ratio", "mag_loss_ratio"),
)
_CHOICES = {
    "optimizer": ("Adam", "AdamW", "RAdam", "SGD"),
    "scheduler": (
        *("CosLR", "CosineAnnealingLR", "Cos", "cos", "CosRestartLR", "ExponentialLR", "Exp"),
        *("Exponential", "MultiStepLR", "multistep"),
    ),
}
"""CHGNet's Trainer has no word for others."""
_MORE = ("momentum", "weight_decay", "scheduler_params")
"""What it takes without naming it."""


class DistillTrainer(Trainer):
    """CHGNet's Trainer, taught by labels (hard targets) and a teacher (soft targets).

    Its loop, optimizer, logs and files are CHGNet's; the loss is `DistillLoss`, and only the
    parameters that you name train. Where CHGNet's Trainer would surprise, this one does not: it
    chooses the best model by the errors against the teacher and keeps that model, not the last one;
    ``load`` restores freezing, loss and random state, so that a run that was stopped ends bit for
    bit as an uninterrupted one; the seed counts from the first batch; the cosine ends with the
    last epoch.

    ``train`` writes, besides CHGNet's files, ``last.pth.tar`` (to go on from) and
    ``best.pth.tar``, each whole at any moment. ``CHGNet.from_file`` reads all of them.

    Args:
        model: the student.
        soft: weights of the teacher's ``energy``, ``forces`` and ``stress``, see `Ratios`.
        hard: weights of the labels, ``magmoms`` among them.
        trainable: prefixes of the parameters that train.
        criterion: ``MAE`` (paper 004), ``MSE`` or ``Huber``.
        delta: of Huber's, in CHGNet's units.
        select: see `DistillLoss`.
        schedule: of the learning rate, where it is CHGNet's cosine.
        seed: of the order of structures and all else that is random, from the first batch on.
        allow: names of errors to overrule, see `check_student` and `check_apart`.
        host: what CHGNet's Trainer takes besides: ``epochs``, ``learning_rate``, ``optimizer``,
            ``scheduler``, ``print_freq``, ``use_device``, ``wandb_path`` ...

    Raises:
        ValueError: if a prefix matches nothing, a weight is none, or an argument of CHGNet's is
            decided by ours.

    Source: paper 004, "Loss function in knowledge distillation".
    """

    def __init__(
        self,
        model: CHGNet,
        *,
        soft: Mapping[str, Any] | None = None,
        hard: Mapping[str, Any] | None = None,
        trainable: Sequence[str] = HEAD,
        criterion: Criterion = "MAE",
        delta: float = 0.1,
        select: Source | None = None,
        schedule: Schedule = "finishing",
        seed: int = 0,
        allow: Sequence[str] = (),
        **host: Any,
    ) -> None:
        if not isinstance(model, CHGNet):
            raise ValueError(f"model: expected a CHGNet, got a {type(model).__name__}")
        _check_host(host)
        seed = check_seed("seed", seed)
        self.allow = checked_allow(allow)
        ratios = Ratios(hard=hard or {}, soft=soft or {})
        loss = DistillLoss(ratios, criterion, delta, select)
        cosine_length(schedule, 1, 1)
        self.trainable = freeze_except(model, trainable)
        check_magmoms(model, ratios)
        if model.composition_model is None:
            raise ValueError("CHGNet's Trainer needs a model with a composition_model")
        host = plain(host)
        super().__init__(model, targets=ratios.task, **copy.deepcopy(host))
        self.criterion = loss
        loss.parameters_to_train = [p for p in model.parameters() if p.requires_grad]
        self.schedule, self.seed = schedule, seed
        self.errors: list[dict[str, float]] = []
        self.trainer_args = {
            **{"soft": ratios.soft, "hard": ratios.hard, "trainable": list(trainable)},
            **{"criterion": criterion, "delta": loss.delta, "select": loss.select},
            **{"schedule": schedule, "seed": seed, **host},
        }
        self._random_state: torch.Tensor | None = None
        self._learned: str | None = None
        self._validated: str | None = None
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
            DataError: if a loader lacks a target, there are fewer structures than a batch, they do
                not fit the student, or are not those of the run that is to go on.
            FloatingPointError: if the training diverges.
            FileExistsError: if the folder holds another run, or another training is writing there.
        """
        folder = check_folder(save_dir, "save_dir")
        check_loaders(self.criterion, train_loader, val_loader, test_loader)
        self._check_same(train_loader, val_loader)
        if check and not self.starting_epoch:
            self._check_targets(train_loader.dataset, val_loader.dataset)
        self._claim(folder)

        with locked(folder):
            self._claim(folder)  # now that nobody else writes there
            self._begin(len(train_loader))
            if self.best_model is not None:
                self._save_best(str(folder))  # which a kill after last.pth.tar may have left out
            references = self.model.composition_model
            trains = any(parameter.requires_grad for parameter in references.parameters())
            super().train(
                train_loader,
                val_loader,
                test_loader,
                save_dir=str(folder),
                train_composition_model=trains,
                **host,
            )

    def _check_same(self, train: DataLoader, validation: DataLoader) -> None:
        """Refuse to go on with other data or batches than the run began with, as far as it says."""
        if isinstance(train.dataset, DistillData):
            if self._learned not in (None, train.dataset.fingerprint):
                raise DataError("the run that is to go on learned from other structures or targets")
            self._learned = train.dataset.fingerprint

        if isinstance(validation.dataset, DistillData):
            if self._validated not in (None, validation.dataset.fingerprint):
                raise DataError(
                    "the run that is to go on was validated on other structures or targets"
                )
            self._validated = validation.dataset.fingerprint

        if self._batch_size not in (None, train.batch_size):
            raise DataError(
                f"the run that is to go on has batches of {self._batch_size}, not of "
                f"{train.batch_size}"
            )
        self._batch_size = train.batch_size

    def _check_targets(self, train: Any, validation: Any) -> None:
        if not isinstance(train, DistillData):
            return
        beside = validation if isinstance(validation, DistillData) else None
        if beside is not None:
            check_apart(train, beside, self.allow)
        check_student(self.model, train, self.criterion.ratios, beside, self.allow)

    def _claim(self, folder: Path) -> None:
        held = sorted(folder.glob("*.pth.tar")) if folder.is_dir() else []
        if held and not self.starting_epoch:
            raise FileExistsError(
                f"{folder} holds {held[0].name} of another run; go on with "
                f"DistillTrainer.load({LAST!r}), or choose another save_dir"
            )

    @property
    def is_of_all_forces(self) -> bool:
        """Whether it goes on with a run of an earlier version, which knew no ``force_share``."""
        return self._learned is not None and self._validated is None

    def _begin(self, n_batches: int) -> None:
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
        """Write CHGNet's checkpoint with what resuming needs besides, in one go."""
        buffer = io.BytesIO()
        super().save(buffer)
        buffer.seek(0)
        state = torch.load(buffer, map_location="cpu", weights_only=True)
        state[OURS] = {
            "step": self.criterion.step,
            "errors": self.errors,
            "random_state": torch.get_rng_state(),
            "best": self.best_model.state_dict() if self.best_model is not None else None,
            "learned": self._learned,
            "validated": self._validated,
            "batch_size": self._batch_size,
        }
        write_checkpoint(Path(filename), state)

    def save_checkpoint(self, epoch: int, mae_error: dict, save_dir: str) -> None:
        """Write the files of an epoch; see CHGNet."""
        scores = [errors["val_score"] for errors in self.errors]
        is_best = scores[-1] == min(scores)
        best = copy.deepcopy(self.model) if is_best else self.best_model
        self.best_model = best
        os.makedirs(save_dir, exist_ok=True)
        self.save(os.path.join(save_dir, LAST))
        try:
            super().save_checkpoint(epoch, mae_error, save_dir)
        except OSError as error:
            for half in Path(save_dir).glob(f"best[EF]_epoch{epoch}_*"):
                half.unlink()  # CHGNet copies them, so they may be half there
            if error.filename is None:  # which has a name and a remedy of ours
                raise
            raise OSError(
                f"{save_dir}: CHGNet's files of epoch {epoch} could not be written "
                f"({error.strerror}); make room, then the same call goes on"
            ) from error
        self.best_model = best  # CHGNet takes the model that goes on training
        if is_best:
            self._save_best(save_dir)

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
    def load(cls, path: str | Path) -> DistillTrainer:
        """Return the trainer that goes on from a checkpoint, ``last.pth.tar``.

        Raises:
            ValueError: if the checkpoint is not one of this trainer, or is damaged.
        """
        file = Path(path).expanduser()
        state = read_checkpoint(file)
        if OURS not in state:
            raise ValueError(f"{file} was not written by DistillTrainer; load it with CHGNet's")
        try:
            with warnings.catch_warnings():
                # CHGNet reads the file once more, without the restriction it was read under above
                warnings.simplefilter("ignore", FutureWarning)
                trainer = super().load(str(file))
            trainer._restore(state[OURS])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f"{file}: is damaged ({type(error).__name__}: {error}); to train anew, remove it"
            ) from error
        return trainer

    def _restore(self, kept: Mapping[str, Any]) -> None:
        self.criterion.step, self.errors = kept["step"], kept["errors"]
        self._random_state, self._learned = kept["random_state"], kept.get("learned")
        self._validated, self._batch_size = kept.get("validated"), kept.get("batch_size")
        if kept["best"] is not None:
            self.best_model = copy.deepcopy(self.model)
            self.best_model.load_state_dict(kept["best"])


def cosine_length(schedule: Schedule, epochs: int, n_batches: int) -> int:
    """Return the number of steps until the cosine has reached its end.

    >>> cosine_length("finishing", epochs=100, n_batches=2)
    200
    >>> cosine_length("chgnet", epochs=100, n_batches=2)
    1000
    """
    if schedule not in ("finishing", "chgnet"):
        raise ValueError(f"schedule: expected 'finishing' or 'chgnet', got {schedule!r}")
    return epochs * (min(PARTS, n_batches) if schedule == "finishing" else PARTS)


def make_cosine(
    optimizer: Optimizer, schedule: Schedule, epochs: int, n_batches: int
) -> CosineAnnealingLR:
    """Return the scheduler that CHGNet's Trainer makes, of the length above."""
    rate = optimizer.param_groups[0]["lr"]
    length = cosine_length(schedule, epochs, n_batches)
    return CosineAnnealingLR(optimizer, T_max=length, eta_min=FINAL * rate)


def is_step(batch: int, n_batches: int) -> bool:
    """Return whether the scheduler steps after a batch: at each tenth of an epoch, as CHGNet's."""
    return batch + 1 in np.arange(1, PARTS + 1) * n_batches // PARTS


def _check_host(host: Mapping[str, Any]) -> None:
    """Refuse arguments that CHGNet's Trainer does not have or that it fails on later.

    Raises:
        ValueError: saying which.
    """
    known = {*inspect.signature(Trainer.__init__).parameters, *_MORE}
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
    if "momentum" in host and optimizer != "SGD":  # CHGNet would take it for one of the loss's
        raise ValueError(f"momentum: is for SGD, not for {optimizer}; leave it out")
    device = str(host.get("use_device") or "")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"use_device: {device!r} asks for a GPU, and torch finds none here")
