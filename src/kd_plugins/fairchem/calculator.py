"""A fairchem checkpoint as an ASE calculator, for relaxations, dynamics and other students."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core import OCPCalculator

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpointing import check_model_names, load_checkpoint
from kd_plugins.teachers.teacher import TeacherError, resolve_device

TRAINER = "ocp"
"""The class that fairchem's other trainers extend: its EquiformerV2 trainer writes a name into
checkpoints that fairchem does not find again."""


def fairchem(
    checkpoint: str, trust_pickle: bool = False, device: str | None = None
) -> OCPCalculator:
    """Return the potential ``fairchem``: energy and forces of a checkpoint, by fairchem's own.

    It takes the weights that are stored as the model's: the averaged ones of
    ``best_checkpoint.pt``, and of ``checkpoint.pt`` those of the last step.

    Args:
        checkpoint: path of any checkpoint of fairchem-core 1.10, a student's too.
        trust_pickle: read a file that holds pickled code, and follow its configuration to modules
            and files that it names, which may do anything.
        device: such as ``cpu`` or ``cuda``; ``auto``, or left out, is a GPU where there is one.

    Raises:
        TeacherError: if there is no such file, or it is no checkpoint that can be read so.
    """
    where = torch.device(resolve_device(device or "auto"))
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise TeacherError(f"{checkpoint}: no such checkpoint")

    remedy = f"say so: fairchem checkpoint={checkpoint} trust_pickle=true"
    try:
        raw = load_checkpoint(path, trust_pickle=trust_pickle, remedy=remedy)
        config = None if trust_pickle else checked_config(raw, path)
    except (OSError, ConfigError) as error:
        raise TeacherError(str(error)) from error
    del raw

    if config is not None:
        # The rank of the training that wrote the file would choose among this machine's GPUs.
        is_any = where.type == "cuda" and where.index is None
        config["local_rank"] = torch.cuda.current_device() if is_any else where.index or 0
    cpu = where.type == "cpu"
    try:
        with quiet():
            return OCPCalculator(
                config_yml=config, checkpoint_path=path, trainer=TRAINER, cpu=cpu, seed=0
            )
    except Exception as error:  # whatever building a foreign model leads to
        first = " ".join(str(error).split())[:300]
        raise TeacherError(
            f"{path}: fairchem cannot build its model ({type(error).__name__}: {first})"
        ) from error


def checked_config(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a checkpoint's configuration without what would open or import something else.

    fairchem calls a model that is named as ``module.Class``, and reads scale factors, a model to
    start from and the pickle of a Slurm job from whatever files the configuration names.

    Args:
        raw: of the checkpoint.
        path: of its file, for messages.

    Raises:
        ConfigError: for a model that is named by a module, or that another file describes.
    """
    config = copy.deepcopy(raw["config"])
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict | str):
        raise ConfigError(f"{path.name}: not a fairchem checkpoint, its config has no model")
    model = config["model"]
    if isinstance(model, str):
        model = {**config.get("model_attributes", {}), "name": model}
        config.pop("model_attributes", None)

    finetuned = model.pop("finetune_config", None)
    if finetuned is not None and not (model.get("backbone") and model.get("heads")):
        raise ConfigError(
            f"{path.name}: its model starts from another file, {finetuned!r}, which is not opened; "
            "make one file of both with fairchem's convert_hydra_to_release.py"
        )
    check_model_names(model, path)

    # The file's own weights hold the scale factors, and come after those of the other file.
    parts = [part for part in (model, model.get("backbone")) if isinstance(part, dict)]
    for part in parts:
        if not isinstance(part.get("scale_file", {}), dict):
            part.pop("scale_file")
    if "finetune_config" in parts[-1] or not isinstance(raw.get("scale_dict") or {}, dict):
        raise ConfigError(f"{path.name}: part of its model is in another file, which is not opened")

    optimizer = {**config.get("optim", {}), "load_datasets_and_model_then_exit": False}
    # fairchem takes the first of a list, whose data it then leaves alone.
    own = {"model": model, "dataset": [{"src": ""}], "optim": optimizer, "is_debug": True}
    return {**config, **own, "slurm": {}}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep fairchem from printing a whole configuration, and torch from warning of its loading."""
    # Its trainer logs and prints the configuration, which is of the run that made the file.
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(level)
