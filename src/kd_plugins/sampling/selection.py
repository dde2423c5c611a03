"""Choose structures to label: far from each other, where teachers disagree, or at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kd_plugins.names import suggestion
from kd_plugins.numbers import check_seed, check_whole, shown
from kd_plugins.sampling.descriptors import (
    Vectors,
    check_stored,
    embedding_descriptors,
    soap_descriptors,
)
from kd_plugins.sampling.subsets import nested_subset
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure

By = Literal["distance", "spread", "random"]

SPREADS = ("forces_std", "atomic_energies_std", "stress_std", "energy_std")
"""Spreads over an ensemble's teachers; the first that a store holds is taken."""


@dataclass(frozen=True)
class Selection:
    """Structures that were chosen from a pool.

    Args:
        structures: in the order in which they were chosen, so that the first n are what a selection
            of n would be.
        scores: (count,) of each when it was chosen: its distance to the nearest chosen before it,
            or its spread; NaN where there is none.
        quantity: whose score it is, for a reader.
        covering_radius: the largest distance of a structure of the pool to the nearest chosen one;
            None where structures were not described.
    """

    structures: tuple[LabelledStructure, ...]
    scores: Vectors
    quantity: str
    covering_radius: float | None = None


def select(
    pool: Sequence[LabelledStructure],
    count: int,
    by: By = "distance",
    store: TargetStore | None = None,
    beside: Sequence[LabelledStructure] = (),
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Choose structures of a pool.

    The order of the pool changes nothing. Methods:

    - ``distance``: farthest points (`farthest_points`) among descriptors of the structures: of the
      store's node embeddings (`embedding_descriptors`), or of SOAP without a store.
    - ``spread``: where the teachers of an ensemble, whose targets the store holds, disagree most.
      Of forces the atom with the largest spread counts, of energies the spread an atom.
    - ``random``: `nested_subset`.

    Args:
        pool: to choose from.
        count: how many.
        by: the method.
        store: of targets of the pool and, for ``distance``, of ``beside``.
        beside: structures that are labelled already: they are not chosen again, and by ``distance``
            what is chosen is far from them.
        seed: of ``random``.
        progress: show bars.

    Raises:
        ValueError: for a count below 1 or above what there is, an id that comes twice, a method
            without what it needs, or a store without embeddings or spreads.
        KeyError: for structures that are not in the store.
        ImportError: without a store, if DScribe is not installed.
    """
    if by not in get_args(By):
        raise ValueError(f"by: unknown method {shown(by)}{suggestion(str(by), get_args(By))}")
    check_seed("seed", seed)
    # By id, so that the order of the pool changes nothing, not even by rounding.
    beside = _sorted("beside", beside)
    taken = {one.structure_id for one in beside}
    pool = [one for one in _sorted("pool", pool) if one.structure_id not in taken]
    check_whole("count", count, least=1)
    if count > len(pool):
        also = f" besides the {len(beside)} that are chosen already" if beside else ""
        raise ValueError(f"count: the pool holds {len(pool)} structures{also}, got {count}")

    if by == "random":
        by_id = {one.structure_id: one for one in pool}
        ids = nested_subset(by_id, count, seed)
        return Selection(tuple(by_id[one] for one in ids), np.full(count, np.nan), "none")
    if by == "spread":
        return _select_by_spread(pool, count, store, progress)

    everything = [*pool, *beside]
    if store is None:
        vectors = soap_descriptors(everything, progress)
    else:
        vectors = embedding_descriptors(everything, store, progress)
    chosen, distances, radius = farthest_points(
        vectors[: len(pool)], count, vectors[len(pool) :], progress
    )
    structures = tuple(pool[index] for index in chosen)
    return Selection(structures, distances, "distance", radius)


def farthest_points(
    points: Vectors, count: int, beside: Vectors | None = None, progress: bool = False
) -> tuple[NDArray[np.int64], Vectors, float]:
    """Choose points one after the other, each as far as possible from all chosen before.

    The first is that nearest to the mean, or without a choice the farthest from ``beside``. For
    every count the largest distance of a point to its nearest chosen one is at most twice the least
    that any choice of so many points has (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5).

    Args:
        points: (n, D).
        count: how many, 1 to n.
        beside: (m, D) points that are chosen already.
        progress: show a bar.

    Returns:
        Indices (count,) of the chosen; the distance (count,) of each to the nearest chosen before
        it, NaN for a first one; and the largest distance of a point to its nearest chosen one.

    >>> farthest_points(np.array([[0.0], [1.0], [5.0], [9.0]]), 3)
    (array([2, 0, 3]), array([nan,  5.,  4.]), 1.0)
    """
    distances = np.full(len(points), np.inf)
    for point in () if beside is None else beside:
        distances = np.minimum(distances, _distances(points, point))

    is_first = beside is None or not len(beside)
    chosen, found = [], []
    bar = tqdm(range(count), "choose", unit=" structures", disable=None if progress else True)
    for _ in bar:
        if is_first:
            index, distance = int(np.argmin(_distances(points, points.mean(axis=0)))), np.nan
            is_first = False
        else:
            index = int(np.argmax(distances))
            distance = float(distances[index])
        chosen.append(index)
        found.append(distance)

        distances = np.minimum(distances, _distances(points, points[index]))
        # Of several points at one place, one that is not chosen yet goes before those that are.
        distances[chosen] = -1.0

    radius = max(0.0, float(distances.max()))
    return np.array(chosen), np.array(found), radius


def _distances(points: Vectors, point: Vectors) -> Vectors:
    return np.linalg.norm(points - point, axis=1)


def _select_by_spread(
    pool: list[LabelledStructure], count: int, store: TargetStore | None, progress: bool
) -> Selection:
    """Return the structures with the largest spread; of equal ones, those first by id."""
    if store is None:
        raise ValueError(
            "by spread: needs the store of an ensemble's targets (--store); kd-plugins label makes "
            "it, with --teacher given twice or more"
        )
    quantity = next((name for name in SPREADS if name in store.manifest.dtypes), None)
    if quantity is None:
        raise ValueError(
            f"{store.folder} has no spread, it has {', '.join(store.manifest.dtypes)}; label with "
            "an ensemble (kd-plugins label --teacher A --teacher B)"
        )
    check_stored(pool, store)

    bar = tqdm(pool, "spread", unit=" structures", disable=None if progress else True)
    spreads = np.array([_spread(one, store, quantity) for one in bar])
    order = np.argsort(-spreads, kind="stable")[:count]
    return Selection(tuple(pool[index] for index in order), spreads[order], quantity)


def _spread(structure: LabelledStructure, store: TargetStore, quantity: str) -> float:
    """Return how far the teachers are apart on a structure, in the quantity's unit."""
    values = store.read(structure.structure_id, to_structure(structure.atoms)).values
    if quantity not in values:
        # Such as the stress of a molecule.
        raise ValueError(f"{store.folder}: {structure.structure_id!r} has no {quantity}")

    spread = values[quantity].double().numpy()
    if quantity == "forces_std":
        return float(np.linalg.norm(spread, axis=-1).max())
    if quantity == "energy_std":
        return float(spread.max()) / len(structure.atoms)
    return float(spread.max())


def _sorted(argument: str, structures: Sequence[LabelledStructure]) -> list[LabelledStructure]:
    counts = Counter(one.structure_id for one in structures)
    repeated = [name for name, many in counts.items() if many > 1]
    if repeated:
        raise ValueError(
            f"{argument}: {repeated[0]!r} stands for two structures; give each an id of its own"
        )
    return sorted(structures, key=lambda one: one.structure_id)
