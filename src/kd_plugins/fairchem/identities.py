"""Which structure is meant by an id: no two may share one, in a data set or across several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.cached import structures
from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.store.structure import Structure

REMEDY = (
    "targets are kept by sid/fid, so give each structure its own: in an ASE database as data of "
    "its row, db.update(id, data={'sid': ..., 'fid': 0}) (key-value pairs are not read by "
    "fairchem, which counts rows instead, in each data set anew), in an LMDB as sid and fid of "
    "each Data"
)


def read_ids(dataset: Dataset[Any], places: Iterable[int]) -> list[str]:
    """Return the ids of some structures, as the trainer finds them."""
    return [structure_ids(Batch.from_data_list([dataset[place]]))[0] for place in places]


def check_ids(datasets: Mapping[str, Dataset[Any]], ids: Mapping[str, Sequence[str]]) -> None:
    """Refuse data sets in which one id stands for two structures.

    Args:
        datasets: "train", "val" and so on to a data set of fairchem.
        ids: the same names to the ids of all its structures, in order.

    Raises:
        ConfigError: naming both places, the id, and how the structures differ.
    """
    first: dict[str, tuple[str, int]] = {}
    for name, found in ids.items():
        for index, its_id in enumerate(found):
            here = name, index
            before = first.setdefault(its_id, here)
            if before == here:
                continue

            ours, theirs = (_structure(datasets[which], place) for which, place in (before, here))
            difference = ours.difference(theirs)
            if difference is not None:
                raise ConfigError(
                    f"dataset.{before[0]}[{before[1]}] and dataset.{name}[{index}] are both called "
                    f"{its_id!r} and are not the same: {difference}; {REMEDY}"
                )


def _structure(dataset: Dataset[Any], place: int) -> Structure:
    return structures(Batch.from_data_list([dataset[place]]))[0]
