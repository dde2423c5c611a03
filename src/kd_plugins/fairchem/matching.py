"""Data sets matched with a store of targets: ids, missing targets, and a note of what was checked.

Every structure has to be read once to find its id. Which data was matched with which store is then
noted beside the store, and the next start reads a sample.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from fairchem.core.common import distutils
from fairchem.core.datasets.ase_datasets import AseReadDataset, AseReadMultiStructureDataset
from fairchem.core.datasets.base_dataset import Subset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.convert import structure_ids, structures
from kd_plugins.fairchem.preflight import read
from kd_plugins.fairchem.unlabelled import SPLIT
from kd_plugins.store.check_note import CheckNote, digest_of

if TYPE_CHECKING:
    from kd_plugins.fairchem.data import StoredTargets

MISSING = "missing"
"""Name of the error that structures have no target, in ``allow``."""
SHOWN = 5
"""Missing ids that a message names."""
SAME_ID_REMEDY = (
    "targets are kept by sid/fid, so give each structure its own: in an ASE database as data of "
    "its row, db.update(id, data={'sid': ..., 'fid': 0}) (key-value pairs are not read by "
    "fairchem, which counts rows instead, in each data set anew), in an LMDB as sid and fid of "
    "each Data"
)
FEWEST_TO_SHARE = 2000
"""Structures from which on their ids are read in several processes; they take 0.1 s to start."""
HEAD_BYTES = 8192
"""Of a file that is compared: SQLite counts changes there, and LMDB has its two first pages."""
_NOT_OF_STRUCTURES = ("transforms", "lin_ref", "keep_in_memory", "trust_pickle", "metadata_path")
"""Settings of a data set that change labels, speed or the choice of structures, known otherwise."""


# ----------------------------------------------------------------------------------------------
# The check before training


def match(
    stored: StoredTargets,
    datasets: Mapping[str, Dataset[Any]],
    limit: int,
    seed: int,
    device: torch.device,
    n_workers: int = 0,
) -> None:
    """Refuse data sets of which a structure has no target; ranks share the work.

    An id must not stand for two structures, in one data set or across all. Some structures are
    compared with those that were labelled; the others are when their batch is made. Where the same
    data was matched with the same store before, only these are read.

    Args:
        stored: the targets.
        datasets: "train", "val" and "unlabelled" to a data set of fairchem.
        limit: how many of each to compare.
        seed: by which they are drawn.
        device: over which ranks communicate.
        n_workers: processes that read ids, in each rank.

    Raises:
        ConfigError: with an id of two structures, with the number of structures without a target
            and the first few, or with one that is not the structure that was labelled.
    """
    matching = DatasetMatch(stored, datasets)
    note = matching.find_note()

    if note is None:
        note = matching.check_all(device, n_workers)
        matching.keep(note)
    else:
        matching.log_note(note, limit)
    for name, count in note.missing.items():
        warn_of_missing(count, note.sizes[name], name)

    rank, n_ranks = distutils.get_rank(), distutils.get_world_size()
    for name, dataset in datasets.items():
        places = draw_places(len(dataset), limit, seed)[rank::n_ranks]  # type: ignore[arg-type]
        bar = tqdm(places, f"comparing {name}", leave=False, disable=not distutils.is_master())
        for place in bar:
            where = f"dataset.{name}[{place}]"
            stored.attach(Batch.from_data_list([read(dataset, place, where)]))


class DatasetMatch:
    """One match of data sets with a store.

    Args:
        stored: the targets.
        datasets: "train", "val" and "unlabelled" to a data set of fairchem.
    """

    def __init__(self, stored: StoredTargets, datasets: Mapping[str, Dataset[Any]]) -> None:
        self.stored, self.datasets = stored, datasets

        # Taken first: what changes while it is read is not what was matched.
        self.name, self.data = identify(datasets)
        self.store = stored.store.content_digest()

    def find_note(self) -> CheckNote | None:
        """Return the note of this match, if every rank has one in its copy of the store."""
        found = None
        if self.name is not None:
            found = CheckNote.read(self.stored.store.folder, self.name)
        if found is not None and (found.data, found.store) != (self.data, self.store):
            found = None

        # With names of what is missing the error is worth another check.
        if found is not None and not self.stored.allows_missing and any(found.missing.values()):
            found = None
        return found if all(gather_objects(found is not None)) else None

    def check_all(self, device: torch.device, n_workers: int) -> CheckNote:
        """Match every structure; return what to note of it."""
        rank, n_ranks = distutils.get_rank(), distutils.get_world_size()
        store = self.stored.store
        if distutils.is_master():
            logging.info(
                f"targets: every structure of {_listed(self.datasets)} is matched with "
                f"{store.folder}, which has no note of these very files"
            )

        # Each rank reads every n-th structure, which takes 1 / n of the time.
        of_rank: dict[str, list[str]] = {}
        ids: dict[str, list[str]] = {}
        for name, dataset in self.datasets.items():
            places = range(rank, len(dataset), n_ranks)  # type: ignore[arg-type]
            of_rank[name] = list(read_ids(dataset, name, places, n_workers))
            ids[name] = _interleaved(gather_objects(of_rank[name]))
        check_ids(self.datasets, ids)

        held, missing = set(store.ids()), {}
        for name, found in of_rank.items():
            lacking = [its_id for its_id in found if its_id not in held]
            missing[name] = self._refuse_missing(lacking, len(ids[name]), name, device)
        return self.note(ids, missing)

    def note(self, ids: Mapping[str, Sequence[str]], missing: Mapping[str, int]) -> CheckNote:
        """Return what to note of a match that found nothing wrong."""
        digests = {name: digest_of(list(found)) for name, found in ids.items()}
        sizes = {name: len(found) for name, found in ids.items()}
        name, data, store = self.name or "", self.data, self.store or ""
        return CheckNote(name, data, store, digests, sizes, missing)

    def keep(self, note: CheckNote) -> None:
        """Write a note beside the store, where data and store are known and it may be written."""
        if self.name is None or self.store is None:
            return
        try:
            note.write(self.stored.store.folder)
        except OSError as error:
            logging.info(
                f"targets: the next start checks all again, since no note is kept: {error}"
            )

    def keep_labelled(self, ids: Mapping[str, Sequence[str]]) -> None:
        """Note that the store has every structure since it was labelled."""
        self.store = self.stored.store.content_digest()
        self.keep(self.note(ids, dict.fromkeys(ids, 0)))

    def log_note(self, note: CheckNote, limit: int) -> None:
        """Log what a note saves."""
        if distutils.is_master():
            logging.info(
                f"targets: all {sum(note.sizes.values())} structures of {_listed(self.datasets)} "
                f"were matched with {self.stored.store.folder} before; up to {limit} of each are "
                "compared now, every one when its batch comes"
            )

    def _refuse_missing(
        self, missing: list[str], size: int, name: str, device: torch.device
    ) -> int:
        """Return how many structures have no target, over all ranks, if that is allowed."""
        # All ranks must raise together, or those without a fault wait for the others forever.
        count = int(distutils.all_reduce(len(missing), device=device))
        if not count or (self.stored.allows_missing and name != SPLIT):
            return count

        store = self.stored.store
        shown = f": {', '.join(missing[:SHOWN])}" if missing else " (named by another rank)"
        raise ConfigError(
            f"dataset.{name}: {count} of {size} structures have no target in "
            f"{store.folder}{shown}; label this run's data sets by the names that it sees: "
            f"{label_command(store.manifest.teacher, store.folder)}"
            + (f"; if it is meant so, allow: [{MISSING}] overrules this" if name != SPLIT else "")
        )


def warn_of_missing(count: int, size: int, name: str) -> None:
    """Log that some structures of a data set have no target, which the YAML allows."""
    if count:
        logging.warning(
            f"dataset.{name}: {count} of {size} structures have no target and learn from their "
            f"labels alone (overruled by allow: [{MISSING}])"
        )


def label_command(teacher: str, store: object) -> str:
    """Return the command that labels the data sets of a run by the ids that it sees.

    Args:
        teacher: as a store's manifest has it, several joined by `` & ``.
        store: folder to label into.
    """
    teachers = teacher.replace(" & ", " --teacher ")
    return f"kd-plugins label --fairchem X.yml --teacher {teachers} --store {store}"


def draw_places(size: int, limit: int, seed: int) -> list[int]:
    """Return at most ``limit`` places, one drawn from each of as many equal parts.

    >>> [place // 25 for place in draw_places(100, 4, seed=0)]
    [0, 1, 2, 3]
    """
    n_parts = min(limit, size)
    bounds = [size * part // n_parts for part in range(n_parts + 1)] if n_parts else [0]
    generator = np.random.default_rng(seed)
    return [
        int(generator.integers(low, high))
        for low, high in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def gather_objects(value: Any) -> list[Any]:
    """Return the objects of all ranks, in the order of ranks."""
    if distutils.get_world_size() == 1:
        return [value]

    values: list[Any] = [None] * distutils.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _interleaved(ids: Sequence[Sequence[str]]) -> list[str]:
    """Return the ids of all structures, when rank r has those of places r, r + n, r + 2n, ..."""
    ordered = [""] * sum(len(found) for found in ids)
    for rank, found in enumerate(ids):
        ordered[rank :: len(ids)] = found
    return ordered


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# ----------------------------------------------------------------------------------------------
# Ids


class _Ids(Dataset[Any]):
    """The ids of some structures, or the error of one that cannot be read."""

    def __init__(self, dataset: Dataset[Any], name: str, places: Sequence[int]) -> None:
        self.dataset, self.name, self.places = dataset, name, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> str | ConfigError:
        place = self.places[index]
        try:
            return structure_id(read(self.dataset, place, f"dataset.{self.name}[{place}]"))
        except ConfigError as error:
            # Returned, as what a worker raises arrives with its whole traceback as its text.
            return error


def read_ids(
    dataset: Dataset[Any], name: str, places: Sequence[int], n_workers: int = 0
) -> Iterator[str]:
    """Yield the ids of some structures, as the trainer finds them.

    Args:
        dataset: of fairchem.
        name: of the data set, for messages.
        places: of the structures.
        n_workers: processes that read them, where there are many.

    Raises:
        ConfigError: naming the first structure that cannot be read.
    """
    n_workers = n_workers if len(places) >= FEWEST_TO_SHARE else 0
    if n_workers:
        # Here and not in a forked worker, where the end of an earlier trainer's process group would
        # wait for threads that the worker does not have.
        gc.collect()

    loader = DataLoader(
        _Ids(dataset, name, places),
        batch_size=100,
        collate_fn=list,
        num_workers=n_workers,
        # Of its own, or the run would draw other numbers than without this check.
        generator=torch.Generator(),
    )
    hides_bar = not distutils.is_master()
    with tqdm(
        total=len(places), desc=f"reading ids of {name}", leave=False, disable=hides_bar
    ) as bar:
        for found in loader:
            for its_id in found:
                if isinstance(its_id, ConfigError):
                    raise its_id
                yield its_id
            bar.update(len(found))


def structure_id(data: Any) -> str:
    """Return the id of one structure, as `structure_ids` finds it in a batch."""
    values = [data.get(name, 0) for name in ("sid", "fid")]

    # Making a batch of one takes as long as reading many a structure; torch rounds other numbers.
    if all(isinstance(value, str) or _is_whole(value) for value in values):
        return "/".join(
            str(value.item() if isinstance(value, Tensor) else value) for value in values
        )
    return structure_ids(Batch.from_data_list([data]))[0]


def _is_whole(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_floating_point()
    return type(value) is int


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

            # The same structure twice is no error: samplers and splits may repeat one.
            ours, theirs = (
                structures(Batch.from_data_list([datasets[which][place]]))[0]
                for which, place in (before, here)
            )
            difference = ours.difference(theirs)
            if difference is not None:
                raise ConfigError(
                    f"dataset.{before[0]}[{before[1]}] and dataset.{name}[{index}] are both called "
                    f"{its_id!r} and are not the same: {difference}; {SAME_ID_REMEDY}"
                )


# ----------------------------------------------------------------------------------------------
# Which data it is, without reading it


def identify(datasets: Mapping[str, Dataset[Any]]) -> tuple[str | None, str]:
    """Return a name of some data sets, and a digest of what they hold.

    The name is made of settings, chosen structures and paths. The digest is made of these and of
    the size, the time of the last change and the first bytes of each file, so that another file
    under the same name has another digest.

    Args:
        datasets: "train", "val" and so on to a data set of fairchem.

    Returns:
        the name, None for data whose files are not known, as those of a database server.
    """
    names, states = [], []
    for name, dataset in datasets.items():
        paths = _files(dataset)
        if paths is None:
            return None, ""
        config = {
            key: value
            for key, value in dataset.config.items()  # type: ignore[attr-defined]
            if key not in _NOT_OF_STRUCTURES
        }
        chosen = np.asarray(dataset.indices, dtype=np.int64).tobytes()  # type: ignore[attr-defined]
        chosen = hashlib.blake2b(chosen, digest_size=16).hexdigest()
        names.append([name, config, chosen, [str(path) for path in paths]])
        try:
            states.append([_state(path) for path in paths])
        except OSError:
            return None, ""
    return digest_of(names), digest_of([names, states])


def _files(dataset: Any) -> list[Path] | None:
    """Return the files that a data set of fairchem reads, or None if they are not known."""
    if not isinstance(dataset, Subset):
        return None

    source = dataset.dataset
    if hasattr(source, "dbs"):
        names = [str(getattr(database, "filename", "")) for database in source.dbs]
    elif hasattr(source, "envs") or hasattr(source, "env"):
        names = [file.path() for file in getattr(source, "envs", None) or [source.env]]
    elif isinstance(source, AseReadMultiStructureDataset):
        names = list(dict.fromkeys(one.rpartition(" ")[0] for one in source.ids))
    elif isinstance(source, AseReadDataset):
        names = [str(one) for one in source.ids]
    else:
        return None

    # OC22's choice of slabs is made by further files beside the data.
    if source.config.get("data2train", "all") != "all":
        return None

    # What SQLite has not yet written into the database itself lies beside it.
    paths = [Path(name).resolve() for name in names]
    logs = [path.with_name(f"{path.name}-wal") for path in paths]
    paths += [path for path in logs if path.is_file() and path.stat().st_size]
    return paths if all(path.is_file() for path in paths) else None


def _state(path: Path) -> tuple[int, int, str]:
    with path.open("rb") as file:
        head = hashlib.blake2b(file.read(HEAD_BYTES), digest_size=8).hexdigest()
    status = path.stat()
    return status.st_size, status.st_mtime_ns, head
