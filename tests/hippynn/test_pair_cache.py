"""Cached pairs are hippynn's own ones, or there is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.experiment import assemble_for_training

from kd_plugins.hippynn import DataError, cache_pairs, distillation_loss
from tests.hippynn import small


def prepared(shared_file: Callable[[str], Path]) -> tuple[Any, Any, Any]:
    data, model = small.database(small.frames(shared_file, large=8)), small.hipnn()
    small.initialise(model, data)
    loss = distillation_loss(
        model.energy, model.forces, weights={"energy": 1, "forces": 1}, energies="total"
    )
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    return data, loss, modules


def errors(data: Any, modules: Any) -> dict[str, float]:
    return modules.evaluator.evaluate(data.make_generator("train", "eval", 4), "train")


def test_cached_pairs_give_the_same_errors(shared_file: Callable[[str], Path]) -> None:
    """Also of cells that are smaller than the cutoff."""
    data, loss, modules = prepared(shared_file)
    lengths = [np.linalg.norm(a["cell"], axis=2).min() for a in data.splits.values()]
    assert min(lengths) < 4.0
    expected = errors(data, modules)
    images = cache_pairs(modules.model, data)
    assert images > 1
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    assert errors(data, modules) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match="reads cached pairs already"):
        cache_pairs(modules.model, data)


def test_too_few_images_are_refused(shared_file: Callable[[str], Path]) -> None:
    """hippynn's own function adds up pairs there, and says nothing with a recent torch."""
    data, _, modules = prepared(shared_file)
    with pytest.raises(DataError, match="n_images is 1, but the smallest cell needs"):
        cache_pairs(modules.model, data, n_images=1)
    assert "AutoPrecomputedPairs" not in data.splits["train"]


def test_atoms_outside_of_their_cell_make_no_difference(
    shared_file: Callable[[str], Path],
) -> None:
    data, loss, modules = prepared(shared_file)
    for arrays in data.splits.values():
        arrays["positions"][:, 0] += 20 * arrays["cell"][:, 0]
    expected = errors(data, modules)
    cache_pairs(modules.model, data)
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    assert errors(data, modules) == pytest.approx(expected, rel=1e-4)


def test_a_cell_without_volume_is_refused(shared_file: Callable[[str], Path]) -> None:
    data, _, modules = prepared(shared_file)
    data.splits["valid"]["cell"][0] = torch.zeros(3, 3)
    with pytest.raises(DataError, match="split 'valid': a cell has no volume"):
        cache_pairs(modules.model, data)
