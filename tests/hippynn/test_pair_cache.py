"""Cached pairs equal the pairs that hippynn finds anew, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.experiment import assemble_for_training, load_checkpoint
from hippynn.experiment.serialization import load_model_from_cwd
from hippynn.tools import active_directory

from kd_plugins.hippynn import DataError, cache_pairs, distillation_loss
from tests.hippynn import fixtures


def prepare(shared_file: Callable[[str], Path]) -> tuple[Any, Any, Any]:
    data, model = fixtures.make_initialised(shared_file, large=8)
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
    data, loss, modules = prepare(shared_file)
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
    """hippynn's own function adds up pairs there, with a recent torch without an error."""
    data, _, modules = prepare(shared_file)
    with pytest.raises(DataError, match="n_images is 1, but the smallest cell needs"):
        cache_pairs(modules.model, data, n_images=1)
    assert "AutoPrecomputedPairs" not in data.splits["train"]


def test_atoms_outside_of_their_cell_change_nothing(
    shared_file: Callable[[str], Path],
) -> None:
    data, loss, modules = prepare(shared_file)
    for arrays in data.splits.values():
        arrays["positions"][:, 0] += 20 * arrays["cell"][:, 0]
    expected = errors(data, modules)
    cache_pairs(modules.model, data)
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    assert errors(data, modules) == pytest.approx(expected, rel=1e-4)


def test_cell_without_volume_is_refused(shared_file: Callable[[str], Path]) -> None:
    data, _, modules = prepare(shared_file)
    data.splits["valid"]["cell"][0] = torch.zeros(3, 3)
    with pytest.raises(DataError, match="split 'valid': a cell has no volume"):
        cache_pairs(modules.model, data)


def test_modules_read_cached_pairs_without_new_assembly(shared_file: Callable[[str], Path]) -> None:
    """Without being assembled anew, and with the same numbers as if they were."""
    data, loss, modules = prepare(shared_file)
    expected = errors(data, modules)
    parameters = [id(p) for p in modules.model.parameters()]
    torch.manual_seed(5)
    drawn = torch.random.get_rng_state()
    cache_pairs(modules, data)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert "AutoPrecomputedPairs" in data.inputs
    assert errors(data, modules) == pytest.approx(expected, rel=1e-5)
    assert sorted(id(p) for p in modules.model.parameters()) == sorted(parameters)

    again, info = assemble_for_training(loss.train, dict(loss.validation))
    data.inputs, data.targets = info["inputs"], info["targets"]
    assert errors(data, again) == pytest.approx(errors_of(modules, data), rel=0, abs=0)
    with pytest.raises(DataError, match="reads cached pairs already"):
        cache_pairs(modules, data)


def errors_of(modules: Any, data: Any) -> dict[str, float]:
    """Return the errors by modules that were assembled before others."""
    before = data.inputs, data.targets
    info = modules.evaluator.db_info
    data.inputs, data.targets = info["inputs"], info["targets"]
    found = errors(data, modules)
    data.inputs, data.targets = before
    return found


def trained(folder: Path, data: Any, cached: bool, epochs: int) -> Any:
    """Train for some epochs, with a checkpoint after each; return modules and metrics."""
    model = fixtures.make_hipnn()
    loss = distillation_loss(
        model.energy, model.forces, weights={"energy": 1, "forces": 1}, energies="total"
    )
    modules, controller, metrics = fixtures.set_up(model, data, loss, max_epochs=epochs)
    if cached:
        cache_pairs(modules, data)
    fixtures.train(folder, modules, data, controller, metrics, store_every=1)
    return modules, metrics


@pytest.mark.parametrize("cached", [True, False])
def test_loaded_run_resumes_with_newly_cached_pairs(
    cached: bool, shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of a run with cached pairs to the bit, of one without as closely as the pairs' order lets."""
    structures = fixtures.read_molybdenum(shared_file, large=8)
    whole, metrics = trained(tmp_path / "run", fixtures.make_database(structures), cached, epochs=4)

    data = fixtures.make_database(structures)
    structure = load_checkpoint(
        str(tmp_path / "run" / "experiment_structure.pt"),
        str(tmp_path / "run" / "checkpoint_epoch_1.pt"),
        weights_only=False,
    )
    modules, resumed = structure["training_modules"], structure["metric_tracker"]
    # The batches' order is drawn from the state that load_checkpoint has restored.
    drawn = torch.random.get_rng_state()
    cache_pairs(modules, data)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all("AutoPrecomputedPairs" in arrays for arrays in data.splits.values())
    with active_directory(str(tmp_path / "again")):
        fixtures.train_model(
            modules, data, structure["controller"], resumed, None, None, quiet=True
        )

    exact = {"rel": 0, "abs": 0} if cached else {"rel": 1e-4}
    for found, expected in zip(
        resumed.epoch_metric_values, metrics.epoch_metric_values, strict=True
    ):
        for split, values in expected.items():
            assert found[split] == pytest.approx(values, **exact)
    pairs = zip(modules.model.parameters(), whole.model.parameters(), strict=True)
    assert not cached or all(torch.equal(one, other) for one, other in pairs)
    model = load_model_from(tmp_path / "again")
    assert any(type(node).__name__ == "PairIndices" for node in model.input_nodes)


def load_model_from(folder: Path) -> Any:
    with active_directory(str(folder), create=False):
        return load_model_from_cwd(weights_only=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_images": 0}, "n_images: expected a whole number of 1 or more, got 0"),
        ({"n_images": 2.5}, "n_images: expected a whole number of 1 or more, got 2.5"),
        ({"batch_size": 0}, "batch_size: expected a whole number of 1 or more, got 0"),
        ({"batch_size": True}, "batch_size: expected a whole number of 1 or more"),
    ],
)
def test_bad_numbers_are_refused(
    settings: dict[str, Any], message: str, shared_file: Callable[[str], Path]
) -> None:
    data, _, modules = prepare(shared_file)
    with pytest.raises(ValueError, match=message):
        cache_pairs(modules, data, **settings)
    assert "AutoPrecomputedPairs" not in data.splits["train"]


def test_database_with_workers_is_refused(shared_file: Callable[[str], Path]) -> None:
    data, _, modules = prepare(shared_file)
    data.num_workers = 2
    with pytest.raises(DataError, match="num_workers=2, but cached pairs are sparse"):
        cache_pairs(modules, data)


def test_wrong_types_are_refused(shared_file: Callable[[str], Path]) -> None:
    data, _, modules = prepare(shared_file)
    with pytest.raises(DataError, match="expected training modules, or the model among them"):
        cache_pairs(modules.loss.nodes_to_compute, data)
