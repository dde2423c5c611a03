"""A trainer that dies in the middle of a run, as a killed process does."""

from __future__ import annotations

from typing import ClassVar

from kd_plugins.fairchem.trainer import EqV2DistillTrainer


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


class StoppingTrainer(EqV2DistillTrainer):
    """Stops at the end of the forward of one training step; nothing is saved on the way out."""

    stop_at: ClassVar[int]

    def _forward(self, batch):  # noqa: ANN001, ANN202 - fairchem's own signature
        out = super()._forward(batch)
        if self.model.training and self.step == self.stop_at:
            raise Killed
        return out
