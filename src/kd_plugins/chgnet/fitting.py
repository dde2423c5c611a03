"""Training on cached features: DistillTrainer's steps without the trunk."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from kd_plugins.chgnet.loss import DistillLoss, joined
from kd_plugins.chgnet.preflight import check_loaders, check_magmoms, check_student
from kd_plugins.chgnet.schedule import FitSettings, is_step, make_cosine
from kd_plugins.chgnet.trainer import BEST, LAST
from kd_plugins.chgnet.trunk import Features, FrozenTrunk
from kd_plugins.chgnet.trunk_cache import CachedData

SECONDS = 20.0
"""Between checkpoints, so the most that a killed run does again."""


@dataclass
class Fitted:
    """A trained student.

    Args:
        model: with the weights of the last epoch.
        best: with those of the epoch of the lowest validation score.
        errors: an epoch's mean absolute errors, ``train_soft_e``, ``val_hard_f`` and so on in
            CHGNet's units, with ``val_score``; see `DistillLoss`.
        steps: optimizer steps that were taken.
    """

    model: CHGNet
    best: CHGNet
    errors: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0


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
) -> Fitted:
    """Train the readout MLP of the trunk's model on features.

    What `DistillTrainer` does with the same data, loss, batches and Adam, to rounding. In a folder
    it writes ``last.pth.tar`` and ``best.pth.tar``, which ``CHGNet.from_file`` reads; called again
    with the same folder and settings, it goes on from the last.

    Args:
        trunk: of the student; its ``model`` is trained in place.
        train: features and targets to learn.
        validation: those that choose the best epoch.
        loss: the same object that `DistillTrainer` uses.
        settings: of the training.
        folder: of this run's files; without one nothing is kept.
        check: compare the targets with the student first, see `check_student`; a study of many
            runs on the same data need do so once only.
        progress: show a bar.

    Raises:
        DataError: if the data lack a target or cannot be right, see `check_student`.
        FileExistsError: if the folder holds a run with other settings or data.
        FloatingPointError: if the training diverges.
    """
    loaders = [
        DataLoader(train, settings.batch_size, shuffle=True, collate_fn=_collate),
        DataLoader(validation, settings.batch_size, collate_fn=_collate),
    ]
    check_magmoms(trunk.model, loss.ratios)
    check_loaders(loss, *loaders)
    run = _Run(trunk, loss, settings, folder, loaders[0])
    if not run.resume():
        if check:
            check_student(trunk.model, train.data, loss.ratios)
        torch.manual_seed(settings.seed)
        run.save()
    left = range(len(run.fitted.errors), settings.epochs)
    for _ in tqdm(left, "training the readout", unit=" epochs", disable=not progress):
        run.epoch(*loaders)
    run.save()
    return run.fitted


class _Run:
    """The state of a training."""

    def __init__(
        self,
        trunk: FrozenTrunk,
        loss: DistillLoss,
        settings: FitSettings,
        folder: str | Path | None,
        loader: DataLoader[Any],
    ) -> None:
        self.trunk, self.loss, self.settings = trunk, loss, settings
        self.folder = None if folder is None else Path(folder)
        model = trunk.model
        loss.parameters_to_train = []  # the trunk is not in the graph: a plain backward is as short
        loss.step, self.data = 0, loader.dataset.data.fingerprint
        head = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(head, settings.learning_rate)
        length = settings.epochs, len(loader)
        self.scheduler = make_cosine(self.optimizer, settings.schedule, *length)
        self.fitted = Fitted(model, copy.deepcopy(model))
        self.saved = time.monotonic()

    def epoch(self, train: DataLoader[Any], validation: DataLoader[Any]) -> None:
        """Train one epoch, validate, keep the best."""
        self.loss.train()
        for batch, (features, targets) in enumerate(train):
            out = self.loss(targets, self.trunk.predict(features))
            self.optimizer.zero_grad()
            out["loss"].backward()
            self.optimizer.step()
            self.fitted.steps += 1
            if is_step(batch, len(train)):
                self.scheduler.step()
        errors = {f"train_{name}": value for name, value in self.loss.take_errors().items()}
        self.loss.eval()
        for features, targets in validation:
            prediction = self.trunk.predict(features)
            self.loss(targets, {name: value.detach() for name, value in prediction.items()})
        found = self.loss.take_errors()
        found["score"] = self.loss.score(found)
        self.fitted.errors.append(errors | {f"val_{name}": value for name, value in found.items()})
        self._keep()

    def _keep(self) -> None:
        scores = [errors["val_score"] for errors in self.fitted.errors]
        if scores[-1] == min(scores):
            self.fitted.best.mlp.load_state_dict(self.fitted.model.mlp.state_dict())
        if time.monotonic() - self.saved > SECONDS:
            self.save()
            self.saved = time.monotonic()

    def save(self) -> None:
        """Write both checkpoints, each in one go."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.fitted.model.as_dict(),
            "best": self.fitted.best.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "settings": self._described(),
            "errors": self.fitted.errors,
            "steps": self.fitted.steps,
            "loss_step": self.loss.step,
            "random_state": torch.get_rng_state(),
        }
        for name, content in ((BEST, {"model": self.fitted.best.as_dict()}), (LAST, state)):
            partial = self.folder / f"{name}.partial"
            torch.save(content, partial)
            os.replace(partial, self.folder / name)

    def resume(self) -> bool:
        """Go on from the folder's last checkpoint; return whether there is one."""
        path = None if self.folder is None else self.folder / LAST
        if path is None or not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        if "settings" not in state:
            raise FileExistsError(f"{path} is of another kind of run; choose another folder")
        if state["settings"] != self._described():
            raise FileExistsError(
                f"{self.folder} holds a run with other settings, {state['settings']}; choose "
                f"another folder for {self._described()}"
            )
        self.fitted.model.load_state_dict(state["model"]["state_dict"])
        self.fitted.best.load_state_dict(state["best"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.fitted.errors, self.fitted.steps = state["errors"], state["steps"]
        self.loss.step = state["loss_step"]
        torch.set_rng_state(state["random_state"])
        return True

    def _described(self) -> dict[str, Any]:
        ratios = self.loss.ratios
        return {
            **vars(self.settings),
            "hard": ratios.hard,
            "soft": ratios.soft,
            "criterion": self.loss.name,
            "delta": self.loss.delta,
            "trunk": self.trunk.fingerprint,
            "data": self.data,
        }


def _collate(rows: Sequence[tuple[Features, dict[str, Tensor]]]) -> tuple[list, dict[str, Tensor]]:
    """Return features and targets, these as tensors like those of `FrozenTrunk.predict`."""
    features, targets = collate_graphs(list(rows))
    return features, {
        name: parts
        if isinstance(parts, Tensor)
        else (torch.stack(parts) if name.endswith("s") else joined(parts))
        for name, parts in targets.items()
    }
