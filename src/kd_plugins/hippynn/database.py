"""A database beside the model that is to be trained on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from hippynn.experiment import assembly
from hippynn.graphs import find_relatives, find_unique_relative
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.inputs import CellNode, PositionsNode, SpeciesNode
from hippynn.graphs.nodes.tags import Encoder

from kd_plugins.hippynn.arrays import ArrayNames, DataError
from kd_plugins.hippynn.geometry import FLAT, check_geometry, finite, refuse
from kd_plugins.hippynn.loss import TEACHER, WEIGHT

logger = logging.getLogger(__name__)

CACHE = assembly._PAIRCACHE_DB_NAME
"""What hippynn calls the array of cached pairs."""


def check_database(modules: Any, database: Any) -> None:
    """Refuse a database that hippynn's training would stop on, or learn something else from.

    Targets that a loss reads and nobody has added, elements that the model does not know,
    structures that are not periodic, numbers of another kind than the model's, labels that are not
    finite. `cache_pairs` does this as well.

    Args:
        modules: of ``assemble_for_training`` or of ``load_checkpoint``.
        database: a hippynn ``Database``.

    Raises:
        DataError: naming split, array and rows.
    """
    if not hasattr(modules, "evaluator"):
        raise DataError(
            "modules: expected the training modules of assemble_for_training, got "
            f"{type(modules).__name__}"
        )
    check_splits(database, needed=("train", "valid"))
    info = modules.evaluator.db_info
    graph = graph_of(modules.model)
    names, known = names_of(graph), elements_of(graph)
    for split, arrays in database.splits.items():
        where = f"split {split!r}: "
        _check_arrays(arrays, [*info["inputs"], *info["targets"]], where)
        check_geometry(arrays, names, where)
        _check_elements(arrays[names.species], known, where)
        _check_kind(arrays[names.positions], graph, names.positions, where)
        _check_targets(arrays, info["targets"], arrays[names.species], where)
        if names.cell is None:
            _warn_of_cells(arrays, where)


def check_splits(database: Any, needed: Sequence[str] = ()) -> None:
    """Refuse what is no database, or one that has not been split.

    Raises:
        DataError: naming the splits that there are.
    """
    splits = getattr(database, "splits", None)
    if not isinstance(splits, dict):
        raise DataError(f"database: expected a hippynn Database, got {type(database).__name__}")
    missing = [split for split in needed if split not in splits]
    if missing or not splits:
        what = (
            f"has no split {missing[0]!r} among {', '.join(splits)}"
            if splits
            else "has not been split"
        )
        raise DataError(
            f"the database {what}; split it first, such as with make_trainvalidtest_split"
        )


def graph_of(model: Any) -> Any:
    """Return the graph of a model that may be spread over devices."""
    return model.module if isinstance(model, torch.nn.DataParallel) else model


def names_of(graph: Any) -> ArrayNames:
    """Return what the database must call the geometry, by the nodes that read it."""
    nodes = graph.nodes_to_compute
    try:
        (cell,) = find_relatives(nodes, CellNode)
        cells = cell.db_name
    except NodeNotFound:
        cells = None
    species, positions = (find_unique_relative(nodes, k) for k in (SpeciesNode, PositionsNode))
    return ArrayNames(species=species.db_name, positions=positions.db_name, cell=cells)


def elements_of(graph: Any) -> frozenset[int]:
    """Return the atomic numbers that a model knows."""
    encoder: Any = find_unique_relative(graph.nodes_to_compute, Encoder)
    return frozenset(encoder.torch_module.species_set.tolist()) - {0}


def _check_arrays(arrays: Mapping[str, Any], wanted: Iterable[str], where: str) -> None:
    for name in wanted:
        if name in arrays or name == CACHE:
            continue
        quantity = name.removeprefix(TEACHER).removesuffix(WEIGHT)
        term = quantity if quantity == "atomic_energies" else TEACHER + quantity
        remedy = (
            f"call add_teacher_targets(database, teacher, [..., {quantity!r}]) before, or leave "
            f"{term!r} out of the weights"
            if name.startswith(TEACHER)
            else "does a node of the model have another db_name?"
        )
        held = ", ".join(sorted(arrays))
        raise DataError(
            f"{where}no array {name!r}, which the loss or model reads; {remedy} (there is {held})"
        )


def _check_elements(species: torch.Tensor, known: frozenset[int], where: str) -> None:
    unknown = sorted(set(species.unique().tolist()) - known - {0})
    if unknown:
        listed = ", ".join(map(str, sorted(known)))
        refuse(
            torch.isin(species, torch.tensor(unknown, device=species.device)).any(dim=1),
            f"{where}the model does not know element {unknown[0]} (it knows {listed})",
            "add it to possible_species; hippynn stops on it, or takes it for padding",
        )


def _check_kind(positions: torch.Tensor, graph: Any, name: str, where: str) -> None:
    weights = next(p.dtype for p in graph.parameters() if p.is_floating_point())
    if positions.dtype != weights:
        raise DataError(
            f"{where}{name!r} is {positions.dtype}, but the model's weights are {weights}; make "
            f"the arrays with the model's dtype, or the model with torch.set_default_dtype"
        )


def _check_targets(
    arrays: Mapping[str, Any], targets: Iterable[str], species: torch.Tensor, where: str
) -> None:
    n = len(species)
    for name in targets:
        value = arrays[name]
        if len(value) != n:
            raise DataError(
                f"{where}{name!r}: expected {n} rows as of the species, got {len(value)}"
            )
        if not value.is_floating_point():
            continue
        lost = ~finite(value, species)
        refuse(lost, f"{where}{name!r} is NaN or inf", "take these structures out")
        if name.startswith(TEACHER) and name.endswith(WEIGHT):
            below = (value < 0).reshape(n, -1).any(dim=1)
            refuse(below, f"{where}{name!r} is negative", "a weight of 0 takes a target away")


def _warn_of_cells(arrays: Mapping[str, Any], where: str) -> None:
    cells = arrays.get(ArrayNames.cell)
    if cells is not None and cells.shape[1:] == (3, 3):
        volumes = torch.linalg.det(cells.detach().cpu().double()).abs()
        if bool((volumes > FLAT).any()):
            logger.warning(
                f"{where}there are cells, but the model has none, so that nothing is periodic; is "
                "a CellNode or periodic=True missing?"
            )
