"""hippynn's cached pairs with enough periodic images, for a new model or a loaded one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hippynn.experiment.assembly import _PAIRCACHE_COMPATIBLE_COMPUTERS, precompute_pairs
from hippynn.graphs import GraphModule, find_relatives, find_unique_relative, get_subgraph
from hippynn.graphs.gops import swap_pairfinders
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.inputs import CellNode, PairIndices
from hippynn.graphs.nodes.pairs import PairUncacher, PeriodicPairIndexer
from hippynn.graphs.nodes.tags import PairIndexer

from kd_plugins.hippynn.convert import DataError
from kd_plugins.hippynn.coverage import check_splits
from kd_plugins.hippynn.preflight import CACHE, check_database, graph_of
from kd_plugins.numbers import check_whole


def cache_pairs(
    model: Any, database: Any, n_images: int | None = None, batch_size: int = 10
) -> int:
    """Compute a database's pairs once, with hippynn's ``precompute_pairs`` and enough images.

    With too few images that function adds up pairs of different images, without an error where
    torch does not check sparse tensors. Here the number of images is that which the smallest cell
    needs.

    Given training modules, it also does `check_database`, makes the model read the cached pairs and
    sets ``database.inputs`` and ``database.targets``, so that training can start. The modules may
    be new, or those of ``load_checkpoint``: of a run with cached pairs, whose database has been
    made anew, or of one without. No random number is drawn, so a resumed run equals an
    uninterrupted one.

    Args:
        model: training modules; or ``training_modules.model`` alone, after which the modules must
            be assembled anew.
        database: a split database.
        n_images: of cells on each side; counted if left out.
        batch_size: structures at a time.

    Returns:
        The number of images.

    Raises:
        DataError: for fewer images than needed, or a database that cannot be trained on.
        ValueError: for a number that is not above 0.
    """
    modules = model if hasattr(model, "evaluator") else None
    graph = graph_of(model if modules is None else modules.model)
    _check_arguments(graph, database, n_images, batch_size)
    if modules is not None:
        check_database(modules, database)

    finder = _pair_finder(graph)

    # A loaded model of a run with cached pairs reads them, but its new database has none yet.
    is_loaded = isinstance(finder, PairUncacher)
    if is_loaded and all(CACHE in arrays for arrays in database.splits.values()):
        raise DataError("the model reads cached pairs already; there is nothing left to cache")
    images = _n_images(graph, database, finder.dist_hard_max, n_images)

    if is_loaded:
        # A copy finds the pairs, and is then thrown away.
        twin = copy.deepcopy(graph)
        cutoff = {"dist_hard_max": finder.dist_hard_max}
        swap_pairfinders(twin.nodes_to_compute, PeriodicPairIndexer, module_kwargs=cutoff)
        _precompute(twin, database, images, batch_size)
    else:
        _precompute(graph, database, images, batch_size)

    if modules is not None:
        _read_cache(graph, modules.evaluator)
        info = modules.evaluator.db_info
        database.inputs, database.targets = info["inputs"], info["targets"]
    return images


def _check_arguments(graph: Any, database: Any, n_images: Any, batch_size: Any) -> None:
    if not isinstance(graph, GraphModule):
        raise DataError(
            f"expected training modules, or the model among them, got {type(graph).__name__}"
        )
    check_whole("batch_size", batch_size, least=1)
    if n_images is not None:
        check_whole("n_images", n_images, least=1)
    check_splits(database)
    if database.num_workers:
        raise DataError(
            f"the database has num_workers={database.num_workers}, but cached pairs are sparse, "
            "which workers cannot send; make it with num_workers=0"
        )


def _pair_finder(graph: Any) -> Any:
    """Return the node that finds or reads a model's pairs.

    Raises:
        DataError: for a model without cells, or with pairs that hippynn cannot cache.
    """
    finders = list(find_relatives(graph.nodes_to_compute, PairIndexer))
    usable = (*_PAIRCACHE_COMPATIBLE_COMPUTERS, PairUncacher)
    if len(finders) != 1 or not isinstance(finders[0], usable):
        found = ", ".join(sorted(type(one).__name__ for one in finders))
        raise DataError(
            f"the model finds its pairs with {found}; hippynn caches those of one "
            "PeriodicPairIndexer or DynamicPeriodicPairs, so of models with cells"
        )
    return finders[0]


def _n_images(graph: Any, database: Any, cutoff: float, n_images: int | None) -> int:
    try:
        cell = find_unique_relative(graph.nodes_to_compute, CellNode).db_name
    except NodeNotFound as error:
        raise DataError("the model has no cells, so there are no images to cache") from error
    needed = images_needed(database.splits, cell, cutoff)
    if n_images is not None and n_images < needed:
        raise DataError(
            f"n_images is {n_images}, but the smallest cell needs {needed} within {cutoff} Å; "
            "leave n_images out"
        )
    return n_images or needed


def _precompute(graph: Any, database: Any, images: int, batch_size: int) -> None:
    """Add the pairs to every split, or to none, on the device of its arrays."""
    device = next(graph.parameters()).device
    try:
        # With these checks on, pairs beyond the images are an error and not a wrong sum.
        with torch.sparse.check_sparse_tensor_invariants():
            precompute_pairs(graph, database, batch_size, device, n_images=images)
    except (RuntimeError, ValueError) as error:
        for arrays in database.splits.values():
            arrays.pop(CACHE, None)
        raise DataError(
            f"pairs need more than {images} images: atoms lie outside of their cells; wrap them, "
            f"or give a larger n_images ({error})"
        ) from error
    for arrays in database.splits.values():
        arrays[CACHE] = arrays[CACHE].to(arrays["indices"].device)


def _read_cache(graph: Any, evaluator: Any) -> None:
    """Make an assembled model read the cached pairs, as its nodes do already.

    Its weights stay the same objects, so optimizers and controllers go on with them.
    """
    caches = [n for n in get_subgraph(graph.nodes_to_compute) if isinstance(n, PairIndices)]
    inputs, is_training = list(graph.input_nodes), graph.training
    inputs += [node for node in caches if node not in inputs]

    # The constructor is called again, since a graph fixes its inputs when it is made.
    GraphModule.__init__(graph, inputs, graph.nodes_to_compute)
    graph.train(is_training)

    evaluator.n_inputs = len(inputs)
    evaluator.db_info["inputs"] = [node.db_name for node in inputs]


def images_needed(splits: Mapping[str, Mapping[str, Any]], cell: str, cutoff: float) -> int:
    """Return how many images of the flattest cell a cutoff (Å) reaches over.

    Raises:
        DataError: for a split without cells, or a cell without volume.
    """
    needed = 1
    for name, split in splits.items():
        if cell not in split:
            raise DataError(f"split {name!r} has no array {cell!r}; it has {', '.join(split)}")

        cells = split[cell].detach().cpu().double().numpy()
        volumes = np.abs(np.linalg.det(cells))
        if not (volumes > 0).all():
            raise DataError(f"split {name!r}: a cell has no volume; periodic pairs need one")

        # A cell's height over two of its vectors is its volume divided by their area.
        areas = [np.cross(cells[:, k - 2], cells[:, k - 1]) for k in range(3)]
        heights = [volumes / np.linalg.norm(area, axis=1) for area in areas]
        needed = max(needed, int(np.ceil(cutoff / np.min(heights))))
    return needed
