"""A fairchem checkpoint as an ASE calculator, to be moved with."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from fairchem.core import OCPCalculator

from kd_plugins.teachers.teacher import TeacherError

TRAINER = "ocp"
"""Of which fairchem's others are; its EquiformerV2 trainer writes a name that it does not know."""


def fairchem(checkpoint: str) -> OCPCalculator:
    """Return the potential ``fairchem``: energy and forces of a checkpoint, by fairchem's own.

    It takes the weights that are stored as the model's: the averaged ones of
    ``best_checkpoint.pt``, and of ``checkpoint.pt`` those of the last step.

    Args:
        checkpoint: path of any checkpoint of fairchem-core 1.10, a student's too.

    Raises:
        TeacherError: if there is no such file.
    """
    if not Path(checkpoint).is_file():
        raise TeacherError(f"{checkpoint}: no such checkpoint")
    cpu = not torch.cuda.is_available()
    with quiet():
        return OCPCalculator(checkpoint_path=checkpoint, trainer=TRAINER, cpu=cpu, seed=0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep fairchem from printing a whole configuration, and torch from warning of its loading."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(level)
