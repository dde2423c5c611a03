"""The data sets of a fairchem YAML as structures to label, under the ids that its trainer finds.

`kd-plugins label --fairchem X.yml` labels them by hand, `targets: auto` before the first step.
"""

from __future__ import annotations

import itertools
import logging
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import fairchem.core.datasets.oc22_lmdb_dataset  # noqa: F401  registers itself with fairchem
import numpy as np
import torch
import yaml
from fairchem.core.common import distutils
from fairchem.core.common.utils import load_config
from fairchem.core.datasets.base_dataset import create_dataset
from torch.distributed.distributed_c10d import _get_default_store
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError, read_yaml
from kd_plugins.core.terms import Term
from kd_plugins.fairchem.batch_teacher import EqV2Teacher
from kd_plugins.fairchem.checkpointing import Checkpoint
from kd_plugins.fairchem.convert import structures
from kd_plugins.fairchem.data import StoredTargets, check_storable, used_quantities
from kd_plugins.fairchem.matching import SHOWN, DatasetMatch, check_ids, gather_objects, read_ids
from kd_plugins.fairchem.settings import check_sources
from kd_plugins.fairchem.teacher import GRAPH_SETTINGS, FrozenEquiformerV2
from kd_plugins.fairchem.unlabelled import SPLIT as UNLABELLED
from kd_plugins.fairchem.unlabelled import settings_of
from kd_plugins.store import StoreError
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.store import MANIFEST, TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_atoms
from kd_plugins.teachers.labelling import label
from kd_plugins.teachers.registry import TeacherSpec
from kd_plugins.teachers.teacher import TeacherError

SPLITS = ("train", "val", UNLABELLED)
"""The splits that a training reads."""
PLAIN = ("ase_db", "ase_read", "ase_read_multi")
"""Formats of fairchem that hold numbers and text only; the files of all others are pickles."""
LONGEST_LABELLING = timedelta(days=30)
"""Time that the other ranks wait for the first to label; torch's own limit is half an hour."""
_MESSAGES = itertools.count()
"""Numbers of the first rank's messages, the same on all ranks."""
_LABEL_SETTINGS = ("a2g_args", "lin_ref", "include_relaxed_energy", "keep_in_memory")
_YAML = (".yml", ".yaml")


class DatasetStructures:
    """The structures of some data sets, each as fairchem's loader gives it to a training.

    Args:
        datasets: "train", "val" and so on to a data set of fairchem.
    """

    def __init__(self, datasets: Mapping[str, Dataset[Any]]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets.values())  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[LabelledStructure]:
        """Yield each structure with its id, after a check that no id stands for two of them.

        Raises:
            ConfigError: for an id of two structures, or one that cannot be read.
        """
        return self.without(())

    def without(self, held: Collection[str]) -> Iterator[LabelledStructure]:
        """Yield the structures of other ids than those of a store."""
        for name, found in self.ids.items():
            for index, its_id in enumerate(found):
                if its_id not in held:
                    (structure,) = structures(self._batch(name, index))
                    yield LabelledStructure(its_id, to_atoms(structure))

    @cached_property
    def ids(self) -> dict[str, list[str]]:
        """The ids of each data set, in order, after a check that each stands for one structure."""
        ids = {
            name: list(read_ids(dataset, name, range(len(dataset))))  # type: ignore[arg-type]
            for name, dataset in self.datasets.items()
        }
        check_ids(self.datasets, ids)
        return ids

    def _batch(self, name: str, index: int) -> Batch:
        try:
            return Batch.from_data_list([self.datasets[name][index]])
        except Exception as error:  # each data format fails in its own way
            raise ConfigError(
                f"dataset.{name}[{index}] cannot be read: {type(error).__name__}: {error}"
            ) from error


def read_datasets(
    sources: str | Path | Sequence[str | Path], trust_pickle: bool = False
) -> DatasetStructures:
    """Return the structures that a training would see, with its ids, for `label`.

    Args:
        sources: a YAML of fairchem, of which ``dataset.train`` and ``dataset.val`` are taken with
            their ``first_n``, ``select_args`` and so on; or data sets: an ASE database
            (``.db``, ``.json``, ``.aselmdb``), an LMDB, a folder of ``.lmdb`` files.
        trust_pickle: read data sets that are pickles, as OC20's LMDBs are, which may run any
            code; in a YAML ``trust_pickle: true`` beside ``src`` does the same for that data set.

    Raises:
        ConfigError: for a YAML that cannot be read or has no data set, a data set that is not
            there, is empty, or holds pickles that are not trusted, and transforms that move atoms.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)

    # All YAMLs are read before any data set, so that a wrong one costs no minutes.
    blocks = [_dataset_block(Path(source).expanduser()) for source in given]

    datasets: dict[str, Dataset[Any]] = {}
    for source, block in zip(given, blocks, strict=True):
        check_sources(block)
        check_storable((), block)
        for name, settings in _splits(block, source).items():
            unique = name if name not in datasets else f"{name} of {source}"
            datasets[unique] = _open(settings, f"{source}: dataset.{name}", name, trust_pickle)
    return DatasetStructures(datasets)


def read_fairchem_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML of fairchem with what it includes.

    Raises:
        FileNotFoundError: if it is not there.
        ConfigError: if it cannot be read, or one that it includes.
    """
    read_yaml(path)  # fairchem's own reader names neither file nor line
    try:
        config, _, conflicts = load_config(path)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, OSError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{path}: what it includes cannot be read: {message}") from error
    if conflicts:
        raise ConfigError(f"{path}: its includes set the same keys to other values: {conflicts}")
    return config


def _dataset_block(source: Path) -> Mapping[str, Any]:
    """Return the ``dataset`` block of a YAML, or one that stands for a data set."""
    if source.suffix in _YAML:
        dataset = read_fairchem_yaml(source).get("dataset")
        if isinstance(dataset, list | tuple):
            return dict(zip(("train", "val", "test"), dataset, strict=False))
        if not isinstance(dataset, Mapping):
            raise ConfigError(f"{source}: dataset: expected a mapping with train, got {dataset!r}")
        return dataset

    is_lmdb = source.suffix == ".lmdb" or (source.is_dir() and any(source.glob("*.lmdb")))
    return {"train": {"src": str(source), "format": "lmdb" if is_lmdb else "ase_db"}}


def _splits(dataset: Mapping[str, Any], source: object) -> dict[str, dict[str, Any]]:
    """Return the settings of each split, by the rule of fairchem's trainer: val has train's too."""
    chosen: dict[str, dict[str, Any]] = {}
    train = dataset.get("train") or {}
    for name in SPLITS:
        of_split = dataset.get(name)
        if not isinstance(of_split, Mapping) or "src" not in of_split:
            continue

        if name == UNLABELLED:
            chosen[name] = settings_of(dataset)
            continue

        # Trust is given to one file, so it is not inherited.
        inherited = train if of_split.get("use_train_settings", True) else {}
        inherited = {key: value for key, value in inherited.items() if key != "trust_pickle"}

        settings = {**inherited, **of_split}
        chosen[name] = {**settings, **(settings.pop(f"{name}_split_settings", None) or {})}
    if not chosen:
        raise ConfigError(f"{source}: neither dataset.train nor dataset.val has a src to label")
    return chosen


def _open(settings: Mapping[str, Any], where: str, split: str, trust_pickle: bool) -> Dataset[Any]:
    """Return a data set without its labels, which need not be there."""
    if not (trust_pickle or settings.get("trust_pickle") is True):
        _refuse_pickles(settings, where)

    bare = {key: value for key, value in settings.items() if key not in _LABEL_SETTINGS}

    # In the order of the file: fairchem would shuffle, and reading at random places is slow.
    if not {"first_n", "sample_n", "no_shuffle"} & set(bare):
        bare["no_shuffle"] = True

    try:
        dataset = create_dataset(bare, split)
    except Exception as error:  # each data format fails in its own way
        raise ConfigError(f"{where} cannot be opened: {type(error).__name__}: {error}") from error
    if len(dataset) == 0:
        raise ConfigError(f"{where} is empty")
    return dataset


def _refuse_pickles(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what fairchem would unpickle on the way: the data, or the sizes beside them.

    Raises:
        ConfigError: naming the file, and how to trust it.
    """
    trusting = "--trust-pickle, or trust_pickle: true beside src in the YAML"
    kind = settings.get("format", "lmdb")
    if kind not in PLAIN:
        raise ConfigError(
            f"{where} has format {kind}, whose structures are pickles, and reading them may run "
            f"any code; if you trust where {settings['src']} comes from: {trusting}"
        )

    # fairchem reads the sizes of structures from this file beside the data, to balance batches.
    src = settings["src"]
    paths = [Path(path) for path in ([src] if isinstance(src, str) else src)]
    beside = [(path.parent if path.is_file() else path) / "metadata.npz" for path in paths]
    named = settings.get("metadata_path")
    for path in [Path(named)] if named else beside:
        if path.is_file() and not _is_plain(path):
            raise ConfigError(
                f"{where}: {path} is no npz of plain numbers, and fairchem would unpickle it, "
                f"which may run any code; make it anew, or if you trust where it comes from: "
                f"{trusting}"
            )


def _is_plain(path: Path) -> bool:
    """Return whether an npz can be read without unpickling anything."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return all(arrays[name] is not None for name in arrays.files)
    except Exception:  # whatever reading a foreign file leads to
        return False


def open_automatic_store(
    folder: Path, checkpoint: Checkpoint, model: FrozenEquiformerV2, terms: Sequence[Term]
) -> StoredTargets:
    """Return the store that a run with `targets: auto` labels and reads; the first rank makes it.

    Args:
        folder: of the store.
        checkpoint: of the teacher.
        model: built of the checkpoint.
        terms: of the loss; their quantities are kept, in float32.

    Raises:
        ConfigError: on all ranks, if the folder holds another teacher's targets, other quantities
            or something else, or the ranks are on several machines.
    """
    machines = sorted(set(gather_objects(socket.gethostname())))
    if len(machines) > 1:
        raise ConfigError(
            f"task.distill.targets: auto needs all ranks on one machine, got {', '.join(machines)}:"
            " a store is not safe on a shared file system; label with kd-plugins label, and give "
            "each machine a copy of that store"
        )

    # A term's quantity that the model lacks stays in the list, for the labeller to refuse.
    used = used_quantities(terms, model.quantities)
    quantities = tuple(dict.fromkeys([*used, *(term.quantity for term in terms)]))

    # A store has one writer, and the others must not read it before it is there.
    error = None
    if distutils.is_master():
        try:
            TargetStore.create(folder, _manifest(folder, checkpoint, model, quantities))
        except StoreError as caught:
            error = f"task.distill.targets: {caught}"
    _raise_on_all_ranks(error)
    return StoredTargets(TargetStore.open(folder), quantities, model.width, model.lmax)


def _manifest(
    folder: Path,
    checkpoint: Checkpoint,
    model: FrozenEquiformerV2,
    quantities: Sequence[str],
) -> Manifest:
    """Return the manifest of the store to be made, with the names of the one that is there.

    A store of version 0.1.0 has the edges' settings in its fingerprint, and another name; a copy of
    the checkpoint has another path. All of them hold this very teacher's targets.
    """
    weights = "raw" if checkpoint.averages is None else "ema"
    name = str(TeacherSpec("eqv2", {"checkpoint": str(checkpoint.path), "weights": weights}))
    fingerprint = f"EquiformerV2 {model.fingerprint}"

    if (folder / MANIFEST).is_file():
        found = TargetStore.open(folder).manifest
        edges = " ".join(f"{key}={getattr(model.backbone, key)}" for key in GRAPH_SETTINGS)
        is_same = found.fingerprint in (fingerprint, f"{fingerprint} {edges}")
        if is_same and found.teacher.partition(" ")[0] == "eqv2":
            name, fingerprint = found.teacher, found.fingerprint

    versions = {name: metadata.version(name) for name in ("fairchem-core", "torch")}
    return Manifest(name, fingerprint, dict.fromkeys(quantities, "float32"), versions=versions)


def label_missing(
    stored: StoredTargets,
    model: FrozenEquiformerV2,
    datasets: Mapping[str, Dataset[Any]],
    device: torch.device,
) -> None:
    """Label the structures of a run that its store lacks; the first rank does, the others wait.

    A run that is killed meanwhile goes on where it was. Nothing is read where a note says that the
    store has these very data sets.

    Args:
        stored: from `open_automatic_store`.
        model: of the teacher.
        datasets: "train", "val" and "unlabelled" to a data set of fairchem.
        device: of the model.

    Raises:
        ConfigError: on all ranks, if a structure cannot be read or labelled, or one id stands for
            two of them.
    """
    matching = DatasetMatch(stored, datasets)
    if matching.find_note() is not None:
        return

    error = None
    if distutils.is_master():
        try:
            error = _label_on_this_rank(matching, model, device)
        except ConfigError as caught:
            error = str(caught)
        except (StoreError, TeacherError) as caught:
            error = f"task.distill.targets: {caught}"
    _raise_on_all_ranks(error)


def _label_on_this_rank(
    matching: DatasetMatch, model: FrozenEquiformerV2, device: torch.device
) -> str | None:
    """Label what is missing; return the structures that cannot be labelled, with the reasons."""
    store = matching.stored.store
    found = DatasetStructures(matching.datasets)
    held = set(store.ids())
    missing = {its_id for ids in found.ids.values() for its_id in ids} - held
    logging.info(f"targets: {store.folder} holds {len(held)} structures, lacks {len(missing)}")
    if not missing:
        matching.keep_labelled(found.ids)
        return None

    teacher = EqV2Teacher(model, device)
    teacher.name, teacher.fingerprint = store.manifest.teacher, store.manifest.fingerprint
    report = label(
        found.without(held), teacher, store.folder, store.manifest.dtypes, total=len(missing)
    )
    if not report.failed:
        matching.keep_labelled(found.ids)
        return None
    shown = [f"{its_id} ({reason})" for its_id, reason in list(report.failed.items())[:SHOWN]]
    return (
        f"task.distill.targets: the teacher cannot label {len(report.failed)} structures: "
        f"{', '.join(shown)}; leave them out"
    )


def _raise_on_all_ranks(error: str | None) -> None:
    """Raise the first rank's error, if any, on all ranks, which wait for it.

    Through the store that the ranks met by: a collective operation would give up after minutes, and
    a process group of its own may wait forever when torch 2.4 takes it down.
    """
    if distutils.get_world_size() > 1:
        key = f"kd_plugins/{next(_MESSAGES)}"
        store = _get_default_store()
        if distutils.is_master():
            store.set(key, error or "")
        store.wait([key], LONGEST_LABELLING)
        error = store.get(key).decode() or None
    if error is not None:
        raise ConfigError(error)
