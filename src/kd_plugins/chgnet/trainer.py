"""CHGNet's own Trainer with hard and soft targets."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from chgnet.model import CHGNet
from chgnet.trainer import Trainer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from kd_plugins.chgnet.data import DataError, DistillData
from kd_plugins.chgnet.freezing import HEAD, freeze_except
from kd_plugins.chgnet.loss import Criterion, DistillLoss, Source
from kd_plugins.chgnet.preflight import check_loaders, check_magmoms, check_student
from kd_plugins.chgnet.schedule import Schedule, cosine_length
from kd_plugins.chgnet.weights import Ratios, plain

OURS = "distillation"
"""Under which a checkpoint keeps what is not CHGNet's; CHGNet does not look there."""
LAST, BEST = "last.pth.tar", "best.pth.tar"
_DECIDED = (
    *("targets", "torch_seed", "data_seed", "allow_missing_labels"),
    *("energy_loss_ratio", "force_loss_ratio", "stress_loss_ratio", "mag_loss_ratio"),
)


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
        **host: Any,
    ) -> None:
        for name in host.keys() & set(_DECIDED):
            raise ValueError(f"{name} follows from soft, hard and seed here; leave it out")
        ratios = Ratios(hard=hard or {}, soft=soft or {})
        loss = DistillLoss(ratios, criterion, delta, select)
        cosine_length(schedule, 1, 1)
        self.trainable = freeze_except(model, trainable)
        check_magmoms(model, ratios)
        if model.composition_model is None:
            raise ValueError("CHGNet's Trainer needs a model with a composition_model")
        host, seed = plain(host), int(seed)
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

    def train(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        test_loader: DataLoader | None = None,
        *,
        save_dir: str,
        **host: Any,
    ) -> None:
        """Train as CHGNet's Trainer does; the weights of the last epoch are left in ``model``.

        Args:
            train_loader: over a `DistillData`, with CHGNet's ``collate_graphs``.
            val_loader: likewise.
            test_loader: likewise; CHGNet then leaves its best weights in ``model``.
            save_dir: folder of this run's files.
            host: ``save_test_result``, ``wandb_log_freq``.

        Raises:
            DataError: if a loader lacks a target, there are fewer structures than a batch, they do
                not fit the student, or are not those of the run that is to go on.
            FloatingPointError: if the training diverges.
            FileExistsError: if the folder holds another run.
        """
        check_loaders(self.criterion, train_loader, val_loader, test_loader)
        if isinstance(train_loader.dataset, DistillData):
            self._check(train_loader.dataset)
        self._claim(Path(save_dir))
        self._begin(len(train_loader))
        if self.best_model is not None:
            self._save_best(save_dir)  # which a kill after last.pth.tar may have left out
        references = self.model.composition_model
        trains = any(parameter.requires_grad for parameter in references.parameters())
        super().train(
            train_loader,
            val_loader,
            test_loader,
            save_dir=str(save_dir),
            train_composition_model=trains,
            **host,
        )

    def _check(self, data: DistillData) -> None:
        if self._learned not in (None, data.fingerprint):
            raise DataError("the run that is to go on learned from other structures or targets")
        self._learned = data.fingerprint
        if not self.starting_epoch:
            check_student(self.model, data, self.criterion.ratios)

    def _claim(self, folder: Path) -> None:
        held = sorted(folder.glob("*.pth.tar")) if folder.is_dir() else []
        if held and not self.starting_epoch:
            raise FileExistsError(
                f"{folder} holds {held[0].name} of another run; go on with "
                f"DistillTrainer.load({LAST!r}), or choose another save_dir"
            )

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
        }
        partial = Path(f"{filename}.partial")
        torch.save(state, partial)
        os.replace(partial, filename)

    def save_checkpoint(self, epoch: int, mae_error: dict, save_dir: str) -> None:
        """Write the files of an epoch; see CHGNet."""
        scores = [errors["val_score"] for errors in self.errors]
        is_best = scores[-1] == min(scores)
        best = copy.deepcopy(self.model) if is_best else self.best_model
        self.best_model = best
        os.makedirs(save_dir, exist_ok=True)
        self.save(os.path.join(save_dir, LAST))
        super().save_checkpoint(epoch, mae_error, save_dir)
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
    def load(cls, path: str) -> DistillTrainer:
        """Return the trainer that goes on from a checkpoint, ``last.pth.tar``.

        Raises:
            ValueError: if the checkpoint is not one of this trainer.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        if OURS not in state:
            raise ValueError(f"{path} was not written by DistillTrainer; load it with CHGNet's")
        trainer = super().load(path)
        kept = state[OURS]
        trainer.criterion.step, trainer.errors = kept["step"], kept["errors"]
        trainer._random_state, trainer._learned = kept["random_state"], kept.get("learned")
        if kept["best"] is not None:
            trainer.best_model = copy.deepcopy(trainer.model)
            trainer.best_model.load_state_dict(kept["best"])
        return trainer
