"""Loss weights that change over epochs, as a scheduler of hippynn's controller.

Pickles of runs name this module and its class, so both keep their names.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kd_plugins.core.schedules import Constant, Piecewise, Schedule
from kd_plugins.hippynn.loss import DistillationLoss

logger = logging.getLogger(__name__)


class LossSchedule(LRScheduler):
    """Sets the weights of a loss epoch by epoch.

    It is one of a hippynn controller's schedulers, beside that of the learning rate. It is saved
    and resumed with them, by hippynn's own loop and by Lightning. Whenever a weight changes, the
    patience starts anew: the controller's and, in hippynn's loop, that of a ``ReduceLROnPlateau``.
    The learning rate itself stays as it is.

    Args:
        loss: with schedules among its weights.
        hold_patience: let the controller's patience count from the last change on, so that it
            cannot end training before. Table 1 of Matin et al. 2025 keeps its first weights for 199
            epochs and the paper's patience is 50; its last weights are those of the teacher.

    Raises:
        ValueError: if it has none; when the controller is made, if ``max_epochs`` ends before the
            last change; before the first epoch, if ``termination_patience`` could and is not held.
    """

    _hold_patience = False
    """Of the class too, since schedules that version 0.1.0 has saved do not have it."""

    # LRScheduler is the base class because Lightning accepts no other; its constructor, which
    # would step the learning rate, is not called.
    def __init__(self, loss: DistillationLoss, *, hold_patience: bool = False) -> None:
        if not isinstance(loss, DistillationLoss):
            raise ValueError(
                "loss: expected the DistillationLoss that distillation_loss gives, got "
                f"{type(loss).__name__}"
            )
        if not loss.schedules:
            raise ValueError(
                "no weight of this loss changes; give distillation_loss a schedule, such as "
                "BORN_AGAIN, or train without LossSchedule"
            )

        # The weights' modules are those of the loss that trains: hippynn pickles loss and
        # controller in one file, so that they are the same objects again after loading.
        self._terms = [
            (name, schedule, loss.weights[name].torch_module)
            for name, schedule in loss.schedules.items()
        ]
        self.last_change = max(_last_change(name, one) for name, one, _ in self._terms)
        self._hold_patience = hold_patience
        self.last_epoch = 0

        self.optimizer: Any = None
        self._controller: Any = None
        self._metrics: Any = None
        self._apply()

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the present epoch."""
        return self._at(self.last_epoch)

    def set_controller(self, controller: Any) -> None:
        """Keep the controller; hippynn calls this when it makes one.

        Raises:
            ValueError: if it ends training before the last change.
        """
        if controller._max_epochs is not None and controller._max_epochs <= self.last_change:
            raise ValueError(
                f"max_epochs is {controller._max_epochs}, but the loss still changes at epoch "
                f"{self.last_change} (counted from 0); train longer or shorten the schedule"
            )
        self._controller, self.optimizer = controller, controller.optimizer

    def best_of_last_row(self, metric_tracker: Any) -> None:
        """Let the best model be one of those that were trained with the last weights.

        Otherwise hippynn may keep one that was best for earlier weights, so by another objective.

        Args:
            metric_tracker: what ``setup_training`` returns or ``load_checkpoint`` has restored.
        """
        self._metrics = metric_tracker

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next epoch; hippynn or Lightning calls this after each."""
        self._check_patience()
        before = self.weights
        self.last_epoch += 1
        if self.weights != before:
            self._apply()
            self._start_over()
        elif self._hold_patience and self.last_epoch < self.last_change:
            self._restore_patience()

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and its weights as a check when a run is resumed."""
        return {"last_epoch": self.last_epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the epoch of a saved state, and set its weights, which no checkpoint holds.

        Raises:
            ValueError: if that state is another schedule's.
        """
        saved, expected = state_dict["weights"], self._at(state_dict["last_epoch"])
        if saved != expected:
            raise ValueError(
                f"the saved schedule had the weights {saved} at epoch {state_dict['last_epoch']}, "
                f"this one has {expected}; resume with the schedule that the run began with"
            )
        self.last_epoch = state_dict["last_epoch"]
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the learning rates, which this scheduler does not change."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the metrics out of hippynn's structure file, which is written before epoch 0."""
        # The first moment at which the controller's patience is known.
        self._check_patience()
        return {**self.__dict__, "_metrics": None}

    def _at(self, epoch: int) -> dict[str, float]:
        return {name: float(schedule(epoch)) for name, schedule, _ in self._terms}

    def _apply(self) -> None:
        for name, _, module in self._terms:
            with torch.no_grad():
                module.value.fill_(self.weights[name])
        logger.info(f"epoch {self.last_epoch}: loss weights {self.weights}")

    def _start_over(self) -> None:
        """Start all patience anew, since another loss is minimised from this epoch on."""
        self._restore_patience()
        if self._controller is not None:
            for other in self._controller.scheduler_list:
                if isinstance(other, ReduceLROnPlateau) and hasattr(other, "mode_worse"):
                    other.best, other.num_bad_epochs = other.mode_worse, 0

        if self._metrics is not None and self.last_epoch == self.last_change:
            self._metrics.best_metric_values.get("valid", {}).pop(self._metrics.stopping_key, None)

    def _restore_patience(self) -> None:
        """Let the controller's patience, not that of the learning rate, count from here."""
        if self._controller is not None:
            self._controller.boredom = 0
            if hasattr(self._controller, "last_best"):
                self._controller.last_best = self.last_epoch - 1

    def _check_patience(self) -> None:
        """Refuse a patience that could end training before the last change."""
        if self._hold_patience:
            return
        patience = getattr(self._controller, "patience", None)
        changes = [0, *self._changes(), self.last_change]
        longest = max(late - soon for soon, late in zip(changes, changes[1:], strict=False))
        if patience is not None and patience < longest:
            raise ValueError(
                f"termination_patience is {patience} epochs, but the loss stays as it is for "
                f"{longest} before its last change at epoch {self.last_change}, so that training "
                f"may end before; give {longest} or more, or LossSchedule(..., hold_patience=True)"
            )

    def _changes(self) -> list[int]:
        """Return the epochs at which a weight changes."""
        epochs = range(1, self.last_change + 1)
        return [epoch for epoch in epochs if self._at(epoch) != self._at(epoch - 1)]


def _last_change(name: str, schedule: Schedule) -> int:
    """Return the epoch of a schedule's last change.

    Raises:
        ValueError: for a function, of which no end is known.
    """
    if isinstance(schedule, Constant):
        return 0
    last = schedule.steps[-1] if isinstance(schedule, Piecewise) else None
    last = getattr(schedule, "last_step", last)
    if last is None:
        raise ValueError(
            f"weight of {name!r}: expected a schedule of kd_plugins.core.schedules, which has a "
            f"last step, got {schedule!r}"
        )
    return int(last)
