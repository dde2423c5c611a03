"""hippynn's cached pairs, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hippynn.experiment.assembly import precompute_pairs
from hippynn.graphs import find_unique_relative
from hippynn.graphs.nodes.inputs import CellNode
from hippynn.graphs.nodes.pairs import PairUncacher
from hippynn.graphs.nodes.tags import PairIndexer

from kd_plugins.hippynn.arrays import DataError


def cache_pairs(
    model: Any, database: Any, n_images: int | None = None, batch_size: int = 10
) -> int:
    """Compute a database's pairs once: hippynn's ``precompute_pairs``, which then cannot be wrong.

    With too few images that function adds up pairs of different images where torch does not check
    sparse tensors, and says nothing. Here the images that the smallest cell needs are counted.
    As with hippynn's own, assemble the training modules anew afterwards, and take ``db_info``.

    Args:
        model: ``training_modules.model``.
        database: a split database.
        n_images: of cells on each side; counted if left out.
        batch_size: structures at a time.

    Returns:
        The number of images.

    Raises:
        DataError: for fewer images than needed, or a database without its cells.
    """
    node = find_unique_relative(model.nodes_to_compute, CellNode)
    finder = find_unique_relative(model.nodes_to_compute, PairIndexer)
    if isinstance(finder, PairUncacher):
        raise DataError("the model reads cached pairs already; there is nothing left to cache")
    needed = images_needed(database.splits, node.db_name, finder.dist_hard_max)
    if n_images is not None and n_images < needed:
        raise DataError(
            f"n_images is {n_images}, but the smallest cell needs {needed} within "
            f"{finder.dist_hard_max} Å; leave n_images out"
        )
    images = n_images or needed
    try:
        with torch.sparse.check_sparse_tensor_invariants():
            precompute_pairs(model, database, batch_size=batch_size, n_images=images)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"pairs need more than {images} images: atoms lie outside of their cells; wrap them, "
            f"or give a larger n_images ({error})"
        ) from error
    return images


def images_needed(splits: Mapping[str, Mapping[str, Any]], cell: str, cutoff: float) -> int:
    """Return over how many images of the flattest cell a cutoff (Å) reaches.

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
        areas = [np.cross(cells[:, k - 2], cells[:, k - 1]) for k in range(3)]
        heights = [volumes / np.linalg.norm(area, axis=1) for area in areas]
        needed = max(needed, int(np.ceil(cutoff / np.min(heights))))
    return needed
