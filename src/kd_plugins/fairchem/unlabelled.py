"""Structures that only the teacher labels: mixed with the training's, left out of fairchem's loss.

fairchem 1.10 has none without labels: each of its losses and metrics takes all of a batch. So the
structures of ``dataset.unlabelled`` are mixed with those of ``dataset.train``, and fairchem's own
loss and metrics are given the part of the batch that has labels. Means are then over that part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets.base_dataset import create_dataset
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.preflight import read

SPLIT = "unlabelled"
"""Its key under ``dataset``."""
_SELECTION = (
    *("first_n", "sample_n", "no_shuffle", "max_atoms", "subset_to", "select_args"),
    *("metadata_path", "train_split_settings", "splits", "trust_pickle"),
)
"""Settings of the training's data set that say which structures to take, not how to read them."""
_OF_LABELS = ("lin_ref", "include_relaxed_energy")
"""Settings that are of labels, as those of ``a2g_args`` are that follow."""
_READS_LABELS = ("r_energy", "r_forces", "r_stress")
_LEVELS = {"energy": "system", "forces": "atom", "stress": "system"}
"""Levels of labels that a data set may have without an output of that name."""


def settings_of(dataset: object) -> dict[str, Any] | None:
    """Return the settings of the unlabelled structures, by fairchem's rule for further data sets.

    They are read as the training's are, unless they say otherwise, and without labels.

    Args:
        dataset: the YAML's whole block.

    Raises:
        ConfigError: if there is a block for them without a ``src``, or its name is misspelt.
    """
    if not isinstance(dataset, Mapping):  # fairchem's older form, a list
        return None
    for name in dataset:
        if name != SPLIT and get_close_matches(str(name), [SPLIT]):
            raise ConfigError(f"dataset.{name}: unknown; did you mean {SPLIT!r}?")

    given = dataset.get(SPLIT)
    if given is None:
        return None
    if not isinstance(given, Mapping) or given.get("src") is None:
        raise ConfigError(
            f"dataset.{SPLIT}.src: missing; expected where the structures are that only the "
            "teacher labels"
        )

    inherited = dataset.get("train") or {}
    if not given.get("use_train_settings", True):
        inherited = {}
    settings = {key: value for key, value in inherited.items() if key not in _SELECTION}
    settings.update(given)

    arguments = dict(settings.get("a2g_args") or {})
    settings["a2g_args"] = {**arguments, **dict.fromkeys(_READS_LABELS, False)}
    return {key: value for key, value in settings.items() if key not in _OF_LABELS}


def open_unlabelled(settings: Mapping[str, Any]) -> Dataset[Any]:
    """Return the data set of unlabelled structures.

    Raises:
        ConfigError: if fairchem cannot open it.
    """
    try:
        return create_dataset(dict(settings), "train")
    except Exception as error:  # each data format fails in its own way
        raise ConfigError(
            f"dataset.{SPLIT} cannot be opened: {type(error).__name__}: {error}"
        ) from error


class MixedDataset(Dataset[Any]):
    """The training's structures, and behind them those without labels.

    Each has ``kd_labelled``. Those without labels have NaN in their place, so that a batch has one
    set of keys and no invented number can be learnt.

    Args:
        labelled: data set of fairchem.
        unlabelled: data set of fairchem; labels that it has are not used.
        outputs: fairchem's outputs, of which the labels are.

    Raises:
        ConfigError: if the first structures cannot be read, or do not have the same keys.
    """

    def __init__(
        self, labelled: Dataset[Any], unlabelled: Dataset[Any], outputs: Mapping[str, Any]
    ) -> None:
        self.parts = {"train": labelled, SPLIT: unlabelled}
        example = read(labelled, 0, "dataset.train[0]")
        other = read(unlabelled, 0, f"dataset.{SPLIT}[0]")

        self._levels = {**_LEVELS, **{name: output["level"] for name, output in outputs.items()}}
        self._labels = {name: example[name] for name in self._levels if name in example}
        self._keys = set(example.keys()) - set(self._labels)
        missing = sorted(self._keys - set(other.keys()))
        if missing:
            raise ConfigError(
                f"dataset.{SPLIT}[0] has no {missing[0]!r}, which dataset.train[0] has; a batch of "
                f"both needs it: write it into the data set, or leave it out of dataset.train"
            )

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())  # type: ignore[arg-type]

    def place(self, index: int) -> tuple[str, int]:
        """Return the name of the data set that a structure is of, and its place there."""
        n_labelled = len(self.parts["train"])  # type: ignore[arg-type]
        return ("train", index) if index < n_labelled else (SPLIT, index - n_labelled)

    def __getitem__(self, index: int) -> Data:
        """Return a structure, marked by whether it has labels."""
        name, place = self.place(index)
        data = self.parts[name][place]
        if name == "train":
            data = copy.copy(data)  # a data set that is kept in memory gives its own
        else:
            kept = {key: value for key, value in data.to_dict().items() if key in self._keys}
            data = Data(**kept, **self._placeholders(len(data.pos)))
        data.kd_labelled = name == "train"
        return data

    def _placeholders(self, n_atoms: int) -> dict[str, Any]:
        """Return NaN of the shape and type that each label has."""
        found: dict[str, Any] = {}
        for name, label in self._labels.items():
            if not isinstance(label, Tensor):
                found[name] = float("nan")
            elif self._levels[name] == "atom":
                found[name] = label.new_full((n_atoms, *label.shape[1:]), float("nan"))
            else:
                found[name] = torch.full_like(label, float("nan"))
        return found

    # What fairchem's sampler needs to balance the batches of several ranks.

    def metadata_hasattr(self, name: str) -> bool:
        """Return whether both data sets know a property of each structure without reading it."""
        return all(part.metadata_hasattr(name) for part in self.parts.values())  # type: ignore[attr-defined]

    def get_metadata(self, name: str, index: int | Iterable[int]) -> Any:
        """Return that property of one structure or several."""
        if isinstance(index, Iterable):
            return np.array([self.get_metadata(name, one) for one in index])
        part, place = self.place(int(index))
        return self.parts[part].get_metadata(name, place)  # type: ignore[attr-defined]


def note_labelled(batch: Batch) -> Batch:
    """Note which structures and atoms of a batch have labels, where some have none.

    It is done where the batch is made, on the CPU: in the step, their number would be waited for.
    """
    if "kd_labelled" not in batch:
        return batch

    is_labelled = batch.kd_labelled
    if not is_labelled.all():
        batch.kd_labelled_structures = is_labelled.nonzero().flatten()
        batch.kd_labelled_atoms = is_labelled[batch.batch].nonzero().flatten()
    return batch


def is_mixed(batch: Batch) -> bool:
    """Return whether some structures of a batch have no labels."""
    return "kd_labelled_structures" in batch


def labelled_part(
    out: Mapping[str, Tensor], batch: Batch, outputs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Data]:
    """Return the student's outputs and the batch of the structures that have labels.

    The batch has what fairchem's losses, references, normalizers and metrics read.

    Args:
        out: of the student, output name to (B, ...) or (N, ...).
        batch: of which some structures have none.
        outputs: fairchem's outputs, with their levels.
    """
    rows, atoms = batch.kd_labelled_structures, batch.kd_labelled_atoms

    def select(name: str, values: Tensor) -> Tensor:
        if outputs[name]["level"] == "atom":
            return values.index_select(0, atoms)
        # Tensors of structures come one below the other, such as stress (3 B, 3).
        return values.reshape(len(batch.natoms), -1).index_select(0, rows)

    part = Data()
    for name in outputs:
        if name in batch:
            part[name] = select(name, batch[name])
    for name in ("atomic_numbers", "fixed", "pos"):
        part[name] = batch[name].index_select(0, atoms)
    for name in ("natoms", "cell"):
        part[name] = batch[name].index_select(0, rows)

    places = torch.arange(len(rows), device=rows.device)
    part.batch = places.repeat_interleave(part.natoms, output_size=len(atoms))
    return {name: select(name, values) for name, values in out.items()}, part


def loss_of_none(out: Mapping[str, Tensor], batch: Batch, loss_functions: Iterable[Any]) -> Tensor:
    """Return fairchem's loss of a batch without any label: 0, with a graph.

    Other ranks may have labels, and fairchem's means are over those of all ranks, so each of them
    is taken, of nothing. fairchem's own loss cannot give nothing its shape.

    Args:
        out: of the student.
        batch: of this rank.
        loss_functions: fairchem's, each a target's name with ``fn`` and ``coefficient``.
    """
    none = {name: values[:0] for name, values in out.items()}
    losses = [
        info["coefficient"] * info["fn"](none[name], none[name].detach(), natoms=batch.natoms[:0])
        for name, info in loss_functions
    ]
    # Where no rank has a label, a mean is 0 / 0.
    return torch.nan_to_num(sum(losses, start=batch.pos.new_zeros(())))
