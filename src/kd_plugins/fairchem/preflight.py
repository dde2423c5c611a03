"""Checks of the data before the first step, so that a bad label does not cost a training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from fairchem.core.common import distutils
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.convert import structure_ids


def check_dataset(
    dataset: Dataset[Any],
    name: str,
    targets: Iterable[str],
    elements: Mapping[str, int],
    limit: int,
) -> None:
    """Check evenly spaced structures of a data set.

    Args:
        dataset: of fairchem.
        name: "train" or "val", for messages.
        targets: labels that the loss needs.
        elements: "student" and "teacher" to the number of elements that the model knows.
        limit: how many structures to look at.

    Raises:
        ConfigError: for an empty data set, a missing or non-finite label or position, or an element
            that a model does not know.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ConfigError(f"dataset.{name} is empty")
    n_chosen = min(limit, size)
    chosen = [index * (size - 1) // max(n_chosen - 1, 1) for index in range(n_chosen)]
    bar = tqdm(chosen, f"checking {name} labels", leave=False, disable=not distutils.is_master())
    for index in bar:
        where = f"dataset.{name}[{index}]"
        check_structure(read(dataset, index, where), where, targets, elements)


def read(dataset: Dataset[Any], index: int, where: str) -> Any:
    """Return a structure of a data set.

    Raises:
        ConfigError: if it cannot be read, whatever the reason.
    """
    try:
        return dataset[index]
    except Exception as error:  # each data format fails in its own way
        raise ConfigError(f"{where} cannot be read: {error} (a missing label?)") from error


def check_structure(
    data: Any, where: str, targets: Iterable[str], elements: Mapping[str, int]
) -> None:
    """Refuse a structure without a label, with one that is not finite, or of unknown elements.

    Raises:
        ConfigError: with its place, and its sid where there is one.
    """
    if len(data.pos) == 0:
        raise ConfigError(f"{where} (sid {data.get('sid')}) has no atoms; leave it out")
    for name in ("pos", *targets):
        if name not in data:
            raise ConfigError(
                f"{where} has no {name!r}; the loss needs it (for an ase_db data set see "
                f"dataset.train.a2g_args, e.g. r_energy: true, r_forces: true)"
            )
        if not _finite(data[name]):
            raise ConfigError(f"{where} (sid {data.get('sid')}): {name!r} holds NaN or inf")
    highest = int(data.atomic_numbers.max())
    for who, known in elements.items():
        if highest >= known:
            raise ConfigError(
                f"{where} (sid {data.get('sid')}) holds element {highest}; the {who} knows atomic "
                f"numbers below {known} (model.backbone.max_num_elements)"
            )


def check_batch(batch: Batch, targets: Iterable[str]) -> None:
    """Refuse a batch with a label that is not finite, before it reaches the weights.

    Raises:
        ConfigError: naming the label and the structures of the batch.
    """
    for name in targets:
        if not _finite(batch[name]):
            raise ConfigError(
                f"label {name!r} holds NaN or inf in a batch of structures "
                f"{', '.join(structure_ids(batch))}"
            )


def _finite(value: object) -> bool:
    return bool(torch.isfinite(torch.as_tensor(value, dtype=torch.float64)).all())
