"""The command ``python -m kd_plugins.fairchem``: check the YAML, then run fairchem on it."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fairchem.core import _cli
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.label_datasets import read_fairchem_yaml
from kd_plugins.fairchem.trainer import DistillMixin
from kd_plugins.store import StoreError
from kd_plugins.teachers.teacher import TeacherError

OURS = "kd_plugins.fairchem.EqV2DistillTrainer"
ON_OCP = "kd_plugins.fairchem.DistillTrainer"
FORESEEN = (ConfigError, StoreError, TeacherError, OSError, ImportError)
"""Errors with a sentence that is enough; of any other the traceback is shown as well."""
_BY_NAME = ("ConfigError", "StoreError", "TeacherError", "CheckpointError", "FileNotFoundError")


class RankError(RuntimeError):
    """The error with which one of several ranks ended."""


def run(words: Sequence[str]) -> None:
    """Run fairchem's command line on words such as ``--mode train --config-yml X.yml``.

    Raises:
        ConfigError: for options or a YAML with which no run can start, or one that would train
            without its distillation.
        RankError: if one of several ranks failed.
    """
    arguments, changes = flags.get_parser().parse_known_args(words)
    _check_options(arguments, changes)

    arguments.config_yml = arguments.config_yml.expanduser()
    read_fairchem_yaml(arguments.config_yml)
    config = build_config(arguments, changes)
    check_config(config)

    try:
        if arguments.num_gpus == 1 or arguments.submit:
            _cli.main(arguments, changes)
        else:
            _launch(config, arguments.num_gpus, arguments.debug)
    except Exception as error:
        if not (isinstance(error, (*FORESEEN, RankError)) or arguments.debug):
            traceback.print_exc()
        raise


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a YAML with a ``task.distill`` that no trainer would read.

    Raises:
        ConfigError: naming the trainer to write, or the place where the block belongs.
    """
    if "distill" in config:
        raise ConfigError(
            "distill stands at the top of the YAML, from where fairchem passes nothing on; put it "
            "under task:"
        )

    task = config.get("task") or {}
    if not isinstance(task, Mapping):
        raise ConfigError(f"task: expected a mapping, got {task!r}")

    name = config.get("trainer", "ocp")
    close = get_close_matches("distill", map(str, task), n=1, cutoff=0.7)
    if not close or _is_ours(name) or task[close[0]] is None:  # null takes an included block away
        return

    ours = OURS if name in ("equiformerv2_forces", "equiformerv2_energy") else ON_OCP
    other = ON_OCP if ours == OURS else OURS
    raise ConfigError(
        f"task.{close[0]} asks for distillation, and trainer: {name} would train without it; write "
        f"trainer: {ours} (or {other}), or distill: null to train without it"
    )


@record
def run_rank(config: dict[str, Any]) -> None:
    """Run one of several ranks, in a process of its own."""
    _cli.Runner()(config)


def _launch(config: dict[str, Any], n_ranks: int, debug: bool) -> None:
    """Run ranks on this machine as fairchem does, and raise the error of one of them."""
    if not debug:
        # It logs each rank's traceback and its own, beside the error that it raises.
        for name in ("api", "errors", "errors.error_handler"):
            logger = logging.getLogger(f"torch.distributed.elastic.multiprocessing.{name}")
            logger.setLevel(logging.CRITICAL)

    if isinstance(config.get("optim"), dict):
        config["optim"]["num_workers"] = 0  # an open LMDB cannot be handed to a worker

    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=n_ranks, rdzv_backend="c10d", max_restarts=0
    )
    try:
        elastic_launch(settings, run_rank)(config)
    except ChildFailedError as error:
        raise _first_of(error) from error


def _first_of(error: ChildFailedError) -> RankError:
    """Return the error of one rank: a foreseen one, if any, as others follow from it."""
    errors = []
    for rank, failure in sorted(error.failures.items()):
        # A rank that raised leaves a mapping with its traceback; one that was killed a sentence.
        message, stack = failure.message, ""
        if isinstance(message, Mapping):
            message, stack = message["message"], message["extraInfo"]["py_callstack"]

        kind, _, sentence = message.partition(": ")
        is_unforeseen = kind not in _BY_NAME
        errors.append((is_unforeseen, rank, message if is_unforeseen else sentence, stack))

    is_unforeseen, rank, text, stack = min(errors)
    if is_unforeseen:
        print(stack, file=sys.stderr)
        text = f"rank {rank}: {text}"
    return RankError(text)


def _check_options(arguments: argparse.Namespace, changes: Sequence[str]) -> None:
    if arguments.mode is None:
        raise ConfigError("--mode: missing; expected train, validate, predict or run-relaxations")
    if arguments.mode != "train" and not arguments.checkpoint:
        raise ConfigError(f"--mode {arguments.mode} needs --checkpoint FILE")
    if arguments.num_gpus < 1:
        raise ConfigError(f"--num-gpus: expected 1 or more ranks, got {arguments.num_gpus}")
    for change in changes:
        if not change.startswith("--") or change.count("=") != 1:
            raise ConfigError(
                f"unknown option {change!r}; a key of the YAML is changed by --key.key=value, such "
                "as --optim.batch_size=4"
            )


def _is_ours(name: object) -> bool:
    """Return whether a trainer, by fairchem's short name or its class's full one, distils."""
    # A short name is in fairchem's registry, which holds fairchem's own trainers.
    module, _, attribute = str(name).rpartition(".")
    if not module:
        return False
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"trainer: {name} cannot be imported ({error}); did you mean {OURS} or {ON_OCP}?"
        ) from error
    return isinstance(found, type) and issubclass(found, DistillMixin)
