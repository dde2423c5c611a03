"""DistillLoss is the weighted sum of Taniguchi 2024, over the targets that are there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chgnet.trainer.trainer import CombinedLoss
from torch import Tensor

from kd_plugins.chgnet import CachedData, DistillData, DistillLoss, FrozenTrunk, Ratios
from kd_plugins.chgnet.fitting import _collate
from kd_plugins.core import DISTANCES, Huber, absolute_mean, masked_mean, squared_mean
from tests.chgnet import fixtures

Batch = tuple[dict[str, Any], dict[str, Any]]
SIZES = (2, 3)
RATIOS = (0.1, 0.5, 1, 2, 10)
TABLE_1 = [(0.0, 0.0), *itertools.product(RATIOS, RATIOS)]
"""r_HE and r_HF of Taniguchi 2024, Table 1, with soft targets alone first."""


def batch(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> Batch:
    """Return random targets of both sources and a prediction, as CHGNet has them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def values() -> dict[str, Any]:
        return {
            "e": draw(len(sizes)),
            "f": [draw(n, 3) for n in sizes],
            "s": [draw(3, 3) for _ in sizes],
            "m": [draw(n) for n in sizes],
        }

    prediction = values()
    for value in prediction.values():
        for one in [value] if isinstance(value, Tensor) else value:
            one.requires_grad_()

    soft = {f"soft_{letter}": value for letter, value in values().items() if letter != "m"}
    return {**values(), **soft}, prediction


def flat(values: Any) -> np.ndarray:
    """Return numbers of a batch, those that are missing left out."""
    parts = [values] if isinstance(values, Tensor) else [one for one in values if one is not None]
    joined = np.concatenate([part.detach().double().numpy().ravel() for part in parts])
    return joined[~np.isnan(joined)]


CRITERIA = {
    "MAE": lambda d: np.abs(d).mean(),
    "MSE": lambda d: np.square(d).mean(),
    "Huber": lambda d: np.where(np.abs(d) <= 0.3, 0.5 * d**2, 0.3 * (np.abs(d) - 0.5 * 0.3)).mean(),
}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_loss_is_the_weighted_sum_of_the_criterion_over_all_numbers(criterion: Any) -> None:
    hard = {"energy": 0.5, "forces": 2, "stress": 0.1, "magmoms": 3}
    soft = {"energy": 1, "forces": 0.25, "stress": 10}
    targets, prediction = batch()
    loss = DistillLoss(Ratios(hard=hard, soft=soft), criterion, delta=0.3)
    found = loss(targets, prediction)["loss"]
    expected = sum(
        weight * CRITERIA[criterion](flat(targets[prefix + name[0]]) - flat(prediction[name[0]]))
        for prefix, weights in (("", hard), ("soft_", soft))
        for name, weight in weights.items()
    )

    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_labels_alone_give_chgnets_loss_and_gradients_bit_for_bit(criterion: Any) -> None:
    targets, prediction = batch()
    labels = {letter: targets[letter] for letter in "efsm"}
    hard = {"energy": 1, "forces": 0.3, "stress": 0.1, "magmoms": 0.7}
    ratios = {"energy_loss_ratio": 1, "force_loss_ratio": 0.3, "stress_loss_ratio": 0.1}
    host = CombinedLoss(target_str="efsm", criterion=criterion, mag_loss_ratio=0.7, **ratios)

    expected = host(labels, prediction)
    found = DistillLoss(Ratios(hard=hard), criterion)(targets, prediction)

    for name in ("loss", "e_MAE", "f_MAE", "s_MAE", "m_MAE"):
        assert torch.equal(found[name], expected[name])

    inputs = [prediction["e"], *prediction["f"], *prediction["s"], *prediction["m"]]
    gradients = [torch.autograd.grad(one["loss"], inputs) for one in (found, expected)]

    for ours, plain in zip(*gradients, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("criterion", "distance"),
    [("MAE", absolute_mean), ("MSE", squared_mean), ("Huber", Huber(0.3))],
)
def test_chgnets_criteria_equal_cores_distances_of_single_numbers(
    criterion: Any, distance: Any
) -> None:
    targets, prediction = batch()
    loss = DistillLoss(Ratios(soft={"forces": 1}), criterion, delta=0.3)
    student, teacher = (torch.cat(one).view(-1) for one in (prediction["f"], targets["soft_f"]))
    expected = masked_mean(distance(student, teacher))

    assert torch.equal(loss(targets, prediction)["loss"], expected)


@pytest.mark.parametrize("criterion", DISTANCES)
def test_every_distance_of_core_compares_whole_vectors(criterion: Any) -> None:
    """A vector with a missing number does not count; a flat row of forces is the same."""
    targets, prediction = batch(sizes=(2, 3, 4))
    targets["soft_f"][1][0, 2] = torch.nan
    soft = {"energy": 1, "forces": 0.25, "stress": 0.1}
    loss = DistillLoss(Ratios(soft=soft), criterion)
    found = loss(targets, prediction)["loss"]

    distance = DISTANCES[criterion]
    student, teacher = (torch.cat(one) for one in (prediction["f"], targets["soft_f"]))
    whole = [0, 1, *range(3, 9)]
    stress = (torch.stack(one) for one in (prediction["s"], targets["soft_s"]))
    expected = (
        distance(prediction["e"], targets["soft_e"]).mean()
        + 0.25 * distance(student[whole], teacher[whole]).mean()
        + 0.1 * distance(*stress).mean()
    )
    torch.testing.assert_close(found, expected)

    flat_targets = {**targets, "soft_f": teacher.view(-1), "f": torch.cat(targets["f"]).view(-1)}
    flat_prediction = {**prediction, "f": student.view(-1)}
    torch.testing.assert_close(loss(flat_targets, flat_prediction)["loss"], expected)

    with pytest.raises(ValueError, match=f"{criterion} compares whole force vectors.*got 0.5"):
        loss.check_force_share(0.5)


def test_missing_numbers_count_as_removed() -> None:
    ratios = Ratios(hard={"energy": 1, "forces": 1, "magmoms": 1}, soft={"energy": 1})
    targets, prediction = batch(sizes=(2, 3, 4))
    targets["e"][1] = torch.nan
    targets["f"][0][1, 2] = torch.nan
    targets["m"][1] = None
    targets["m"][2] = torch.full((4,), torch.nan)
    found = DistillLoss(ratios)(targets, prediction)["loss"]
    found.backward()
    kept = ~torch.isnan(torch.cat(targets["f"]))
    expected = (
        (targets["e"] - prediction["e"])[[0, 2]].abs().mean()
        + (torch.cat(targets["f"]) - torch.cat(prediction["f"]))[kept].abs().mean()
        + (targets["m"][0] - prediction["m"][0]).abs().mean()
        + (targets["soft_e"] - prediction["e"]).abs().mean()
    )
    torch.testing.assert_close(found, expected)

    assert all(torch.isfinite(force.grad).all() for force in prediction["f"])
    assert prediction["f"][0].grad[1, 2] == 0


@pytest.mark.parametrize("missing", [None, torch.full((2,), torch.nan)], ids=["None", "NaN"])
def test_a_batch_without_any_number_gives_a_zero_with_a_graph(missing: Any) -> None:
    targets = {"e": torch.full((2,), torch.nan), "m": [missing, missing]}
    _, prediction = batch(sizes=(2, 2))
    loss = DistillLoss(Ratios(hard={"energy": 1, "magmoms": 1}))
    out = loss(targets, prediction)
    out["loss"].backward()

    assert float(out["loss"].detach()) == 0.0
    assert torch.equal(prediction["e"].grad, torch.zeros(2))
    assert (out["e_MAE"], out["e_MAE_size"], out["m_MAE_size"]) == (0.0, 0, 0)
    assert loss.take_errors() == {}


def test_a_batch_without_labels_leaves_the_training_finite(
    salts: fixtures.Labelled, tmp_path: Path
) -> None:
    """Adam then moves by its momentum alone."""
    bare = [fixtures.with_label(salts.structures[1], energy=None), salts.structures[0]]
    names = {"hard": ("energy",), "missing": ("energy",), "soft": (), "store": None}
    data = salts.data(bare, **names)
    made = fixtures.trainer(hard={"energy": 1}, epochs=2)
    one_by_one = fixtures.loader(data, 1)
    made.train(one_by_one, one_by_one, save_dir=str(tmp_path))

    assert all(bool(value.isfinite().all()) for value in made.model.state_dict().values())
    assert np.isfinite(made.errors[-1]["val_score"])


def test_errors_are_means_over_numbers_not_over_batches() -> None:
    loss = DistillLoss(Ratios(soft={"energy": 1, "forces": 1}))
    seen = [batch(1, sizes=(2,)), batch(2, sizes=(3, 4, 1))]

    for targets, prediction in seen:
        loss(targets, prediction)

    found = loss.take_errors()
    assert set(found) == {"hard_e", "hard_f", "soft_e", "soft_f"}

    for name, value in found.items():
        source = "soft_" if name.startswith("soft") else ""
        errors = [
            np.abs(flat(targets[source + name[-1]]) - flat(prediction[name[-1]]))
            for targets, prediction in seen
        ]
        assert value == pytest.approx(np.concatenate(errors).mean(), rel=1e-6)

    assert loss.take_errors() == {}


def test_scores_use_the_last_weights_of_the_schedules() -> None:
    """A weight that grows or fades does not make early or late epochs better."""
    grows = {"schedule": "linear", "start": 0.0, "end": 2.0, "first_step": 0, "last_step": 10}
    errors = {"soft_e": 1.0, "soft_f": 3.0, "hard_e": 50.0}
    loss = DistillLoss(Ratios(soft={"energy": grows, "forces": 1}, hard={"energy": 1}))

    for step in (0, 5, 100):
        loss.step = step
        assert loss.score(errors) == 2.0 * 1.0 + 3.0

    fades = {**grows, "start": 2.0, "end": 0.0}
    faded = DistillLoss(Ratios(soft={"energy": fades, "forces": fades}, hard={"energy": 1}))

    assert faded.score(errors) == 1.0 + 3.0
    assert DistillLoss(Ratios(soft={"energy": 1}), select="hard").score(errors) == 50.0
    assert DistillLoss(Ratios(hard={"energy": 1})).score(errors) == 50.0


def test_weights_follow_their_schedules_in_training_alone() -> None:
    ramp = {"schedule": "linear", "start": 0.0, "end": 1.0, "first_step": 0, "last_step": 4}
    targets, prediction = batch()
    loss = DistillLoss(Ratios(soft={"energy": ramp})).train()
    error = float((targets["soft_e"] - prediction["e"]).abs().mean())

    for step in range(6):
        loss.eval()(targets, prediction)
        assert loss.step == step
        found = float(loss.train()(targets, prediction)["loss"].detach())
        assert found == pytest.approx(min(step / 4, 1) * error)


@pytest.fixture(scope="module")
def features(data: DistillData, trunk_folder: Path) -> CachedData:
    """Features of the salts."""
    return CachedData(data, FrozenTrunk(fixtures.frozen()), trunk_folder, progress=False)


@pytest.mark.parametrize(("energy", "forces"), TABLE_1)
def test_every_row_of_table_1_runs(features: CachedData, energy: float, forces: float) -> None:
    """Twenty-six of them on features: finite, as recomputed, and the readout moves."""
    hard = {"energy": energy, "forces": forces}
    loss = DistillLoss(Ratios(soft={"energy": 1, "forces": 1}, hard=hard)).train()
    trunk = FrozenTrunk(fixtures.frozen()) if (energy, forces) == (0, 0) else features.trunk
    rows, targets = _collate([features[index] for index in range(len(features))])
    head = list(trunk.model.mlp.parameters())
    prediction = trunk.predict(rows)
    found = loss(targets, prediction)["loss"]
    gradients = torch.autograd.grad(found, head, allow_unused=True)
    weights = {"e": energy, "f": forces, "soft_e": 1, "soft_f": 1}
    expected = sum(
        weight * np.abs(flat(targets[name]) - flat(prediction[name[-1]])).mean()
        for name, weight in weights.items()
    )

    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    assert all(bool(one.isfinite().all()) for one in gradients if one is not None)
    assert any(bool(one.any()) for one in gradients if one is not None)


def test_a_diverged_training_is_an_error() -> None:
    targets, prediction = batch()
    prediction["e"] = prediction["e"] * torch.nan
    loss = DistillLoss(Ratios(soft={"energy": 1}))
    loss(targets, prediction)

    with pytest.raises(FloatingPointError, match="_e is nan: the training has diverged"):
        loss.take_errors()
