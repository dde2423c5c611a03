"""Each structure is looked at where it is read, so that a bad one ends a run with its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.fairchem.preflight import check_structure, read


@dataclass
class Needs:
    """What a run needs of each structure; known only after its data loaders are made.

    Args:
        labels: that the loss compares.
        elements: "student" and "teacher" to the number of elements that the model knows.
    """

    labels: tuple[str, ...] = ()
    elements: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What stands in the place of a structure, and then of its batch, that cannot be trained on.

    An error that a worker of the data loader raises comes with the worker's traceback as its text.

    Args:
        reason: with the place of the structure.
    """

    reason: str

    def to(self, *_: Any, **__: Any) -> Fault:
        """Return it, as a batch is moved to a device."""
        return self

    def pin_memory(self) -> Fault:
        """Return it, as a batch is pinned."""
        return self


class Watched(Dataset[Any]):
    """A data set that gives a `Fault` in place of a structure that a run cannot use.

    Args:
        dataset: of fairchem.
        name: "train" or "val", for messages.
        needs: what is looked for.
    """

    def __init__(self, dataset: Dataset[Any], name: str, needs: Needs) -> None:
        self.dataset, self.name, self.needs = dataset, name, needs

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        """Return a structure as it is, or what is wrong with it."""
        where = f"dataset.{self.name}[{index}]"
        try:
            data = read(self.dataset, index, where)
            check_structure(data, where, self.needs.labels, self.needs.elements)
        except ConfigError as error:
            return Fault(str(error))
        return data


class FaultFirst:
    """A collater that hands a fault on in place of the batch that it is in.

    Args:
        collate: structures to a batch.
    """

    def __init__(self, collate: Callable[[list[Any]], Batch]) -> None:
        self.collate = collate

    def __call__(self, data: list[Any]) -> Batch | Fault:
        """Return a batch, or the first fault of its structures."""
        faults = [item for item in data if isinstance(item, Fault)]
        return faults[0] if faults else self.collate(data)


def has_edges(backbone: EquiformerV2Backbone, batch: Batch) -> bool:
    """Return whether any atom of a batch has a neighbour, as a model sees it."""
    return backbone.generate_graph(batch).edge_index.shape[1] > 0


@contextmanager
def naming_lone_atoms(backbone: EquiformerV2Backbone, batch: Batch, who: str) -> Iterator[None]:
    """Say which structures a model failed on because no atom of the batch has a neighbour.

    EquiformerV2 takes the minimum over all edges, which a batch of lone atoms does not have.

    Raises:
        ConfigError: naming the structures and the cutoff; any other error as it was.
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        with torch.no_grad():
            lone = not has_edges(backbone, batch)
        if not lone:
            raise
        raise ConfigError(
            f"no atom of a batch has a neighbour within the {who}'s {backbone.cutoff} Å "
            f"(structures {', '.join(structure_ids(batch))}), which EquiformerV2 cannot compute; "
            "leave such structures out, or take larger batches, in which others stand beside them"
        ) from error
