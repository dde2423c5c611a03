"""The data sets of a fairchem YAML as structures to label, under the ids that its trainer finds."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fairchem.core.datasets.oc22_lmdb_dataset  # noqa: F401  registers itself with fairchem
import numpy as np
import yaml
from fairchem.core.common.utils import load_config
from fairchem.core.datasets.base_dataset import create_dataset
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.config import read_yaml as config_file
from kd_plugins.fairchem.cached import check_storable, structures
from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.fairchem.identities import check_ids
from kd_plugins.structures.readers import LabelledStructure, to_atoms

SPLITS = ("train", "val")
"""What a training reads."""
PLAIN = ("ase_db", "ase_read", "ase_read_multi")
"""Formats of fairchem that hold numbers and text only; the files of all others are pickles."""
_LABELS = ("a2g_args", "lin_ref", "include_relaxed_energy", "keep_in_memory")
_YAML = (".yml", ".yaml")


class Structures:
    """The structures of some data sets, each as fairchem's loader gives it to a training.

    Args:
        datasets: "train", "val" and so on to a data set of fairchem.
    """

    def __init__(self, datasets: Mapping[str, Dataset[Any]]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets.values())  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[LabelledStructure]:
        """Yield each structure with its id, after a look that no id stands for two of them.

        Raises:
            ConfigError: for an id of two structures, or one that cannot be read.
        """
        ids = {name: self._ids(name) for name in self.datasets}
        check_ids(self.datasets, ids)

        for name, found in ids.items():
            for index, its_id in enumerate(found):
                (structure,) = structures(self._batch(name, index))
                yield LabelledStructure(its_id, to_atoms(structure))

    def _ids(self, name: str) -> list[str]:
        bar = tqdm(range(len(self.datasets[name])), f"reading ids of {name}", leave=False)  # type: ignore[arg-type]
        return [structure_ids(self._batch(name, index))[0] for index in bar]

    def _batch(self, name: str, index: int) -> Batch:
        try:
            return Batch.from_data_list([self.datasets[name][index]])
        except Exception as error:  # each data format fails in its own way
            raise ConfigError(
                f"dataset.{name}[{index}] cannot be read: {type(error).__name__}: {error}"
            ) from error


def read_datasets(
    sources: str | Path | Sequence[str | Path], trust_pickle: bool = False
) -> Structures:
    """Return the structures that a training would see, with its ids, for `label`.

    Args:
        sources: a YAML of fairchem, whose ``dataset.train`` and ``dataset.val`` are taken with
            their ``first_n``, ``select_args`` and so on; or data sets: an ASE database
            (``.db``, ``.json``, ``.aselmdb``), an LMDB, a folder of ``.lmdb`` files.
        trust_pickle: read data sets that are pickles, as OC20's LMDBs are, which may run any
            code; in a YAML ``trust_pickle: true`` beside ``src`` says the same of that data set.

    Raises:
        ConfigError: for a YAML that cannot be read or has no data set, a data set that is not
            there, is empty, or holds pickles that nobody trusts, and transforms that move atoms.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    blocks = [_block(Path(source).expanduser()) for source in given]

    datasets: dict[str, Dataset[Any]] = {}
    for source, block in zip(given, blocks, strict=True):
        check_sources(block)
        check_storable((), block)
        for name, settings in _splits(block, source).items():
            unique = name if name not in datasets else f"{name} of {source}"
            datasets[unique] = _open(settings, f"{source}: dataset.{name}", name, trust_pickle)
    return Structures(datasets)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML of fairchem with what it includes.

    Raises:
        FileNotFoundError: if it is not there.
        ConfigError: if it cannot be read, or one that it includes.
    """
    config_file(path)  # fairchem's own reader names neither file nor line
    try:
        config, _, conflicts = load_config(path)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, OSError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}: what it includes cannot be read: {said}") from error
    if conflicts:
        raise ConfigError(f"{path}: its includes set the same keys to other values: {conflicts}")
    return config


def check_sources(dataset: object) -> None:
    """Refuse data sets of which a file or folder is not there.

    Raises:
        ConfigError: naming the key and the path.
    """
    if not isinstance(dataset, Mapping):
        raise ConfigError(f"dataset: expected a mapping with train and its src, got {dataset!r}")
    for name, settings in dataset.items():
        if not isinstance(settings, Mapping) or settings.get("src") is None:
            continue
        src = settings["src"]
        paths = [src] if isinstance(src, str) else src
        if not isinstance(paths, list | tuple) or not all(isinstance(p, str) for p in paths):
            raise ConfigError(
                f"dataset.{name}.src: expected a path or a list of paths, got {src!r}"
            )
        for path in paths:
            # "://" is in the address of a database server, which is for fairchem to reach.
            if "://" not in path and not os.path.exists(path) and not glob.glob(path):
                raise ConfigError(
                    f"dataset.{name}.src: there is no {path!r} (paths count from {Path.cwd()})"
                )


def _block(source: Path) -> Mapping[str, Any]:
    """Return the ``dataset`` block of a YAML, or one that stands for a data set."""
    if source.suffix in _YAML:
        dataset = read_yaml(source).get("dataset")
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
        own = dataset.get(name)
        if not isinstance(own, Mapping) or "src" not in own:
            continue
        inherited = train if own.get("use_train_settings", True) else {}
        # Whether to trust a file is said of that very file, so it is not inherited.
        inherited = {key: value for key, value in inherited.items() if key != "trust_pickle"}
        settings = {**inherited, **own}
        chosen[name] = {**settings, **(settings.pop(f"{name}_split_settings", None) or {})}
    if not chosen:
        raise ConfigError(f"{source}: neither dataset.train nor dataset.val has a src to label")
    return chosen


def _open(settings: Mapping[str, Any], where: str, split: str, trust_pickle: bool) -> Dataset[Any]:
    """Return a data set without its labels, which need not be there."""
    if not (trust_pickle or settings.get("trust_pickle") is True):
        _refuse_pickles(settings, where)
    bare = {key: value for key, value in settings.items() if key not in _LABELS}
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
        ConfigError: naming the file, and how to say that it is trusted.
    """
    trusting = "--trust-pickle, or trust_pickle: true beside src in the YAML"
    kind = settings.get("format", "lmdb")
    if kind not in PLAIN:
        raise ConfigError(
            f"{where} has format {kind}, whose structures are pickles, and reading them may run "
            f"any code; if you trust where {settings['src']} comes from: {trusting}"
        )
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
