"""fairchem's own settings, checked before it starts, and its errors with the key or file named."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.data import check_sources
from kd_plugins.numbers import check_number, check_whole
from kd_plugins.store import StoreError

_WHOLE = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "max_epochs": 0}
"""Whole numbers of ``optim``, with the least that each may be."""
_REQUIRED = ("num_workers", "max_epochs", "lr_initial")
_WHERE = "the same command with --debug shows where"


def check_host(given: Mapping[str, Any]) -> None:
    """Refuse settings on which fairchem would fail late, or without naming them.

    Args:
        given: the keyword arguments of fairchem's trainer.

    Raises:
        ConfigError: naming the key.
    """
    dataset = given.get("dataset")
    if isinstance(dataset, list):  # fairchem's older form
        dataset = dict(zip(("train", "val", "test"), dataset, strict=False))
    check_sources(dataset)

    _check_optim(given.get("optimizer"))
    if given.get("amp") and given.get("cpu"):
        logging.warning("--amp changes nothing on a CPU: this run is in full precision")


def _check_optim(optim: object) -> None:
    if not isinstance(optim, Mapping):
        raise ConfigError(
            f"optim: expected a mapping with batch_size, lr_initial, ..., got {optim!r}"
        )

    missing = [name for name in _REQUIRED if optim.get(name) is None]
    if missing:
        raise ConfigError(f"optim.{missing[0]}: missing; fairchem has no default for it")

    try:
        for name, least in _WHOLE.items():
            if name in optim:
                check_whole(f"optim.{name}", optim[name], least=least)
        check_number("optim.lr_initial", optim["lr_initial"], least=0)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@contextmanager
def naming_setup() -> Iterator[None]:
    """Turn an error in fairchem's own set-up into one about the YAML.

    Raises:
        ConfigError: in place of errors that name nothing of the user's; others pass.
    """
    try:
        yield
    except (ConfigError, StoreError, ImportError):
        raise
    except Exception as error:  # whatever fairchem meets in a YAML that it does not check
        # Such an error names a file, which is the user's.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ConfigError(
            f"fairchem cannot set up this run by its YAML: {_shortened(error)}; {_WHERE}"
        ) from error


@contextmanager
def naming_misfit(path: Path) -> Iterator[None]:
    """Turn an error while a checkpoint is loaded into one that names the file.

    Raises:
        ConfigError: naming the file.
    """
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception as error:  # of the optimizer, the averages, the model, a normalizer
        raise ConfigError(
            f"checkpoint {path} does not fit this run ({_shortened(error)}); give one of the same "
            f"model and optim, or start from scratch under a new --timestamp-id; {_WHERE}"
        ) from error


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ZeroDivisionError):
        # Its cosine schedule divides by the steps of the warm-up, rounded down.
        text += " (is optim.scheduler_params.warmup_epochs less than one step of this data set?)"
    return f"{type(error).__name__}: {text[:300]}"
