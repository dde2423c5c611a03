"""How far a training may go from its start, when it ends, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.chgnet import DistillData, DistillLoss, FitSettings, Ratios, freeze_except
from kd_plugins.chgnet.fitting import Fitted
from kd_plugins.chgnet.summary import describe_result
from tests.chgnet import fixtures
from tests.chgnet.fixtures import differs
from tests.chgnet.test_distill import LOADS, prefer, run

SHORT = FitSettings(epochs=2, batch_size=2, seed=3)


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("way", ["plain", "cached"])
def test_resumed_training_equals_uninterrupted(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Killed in the second epoch, with weights, the distance to the start, and patience."""
    prefer(monkeypatch, way)
    monkeypatch.setattr("kd_plugins.chgnet.fitting.SECONDS", 0.0)
    joined = DistillData.concatenate([data.part([0, 1]), data.part([2, 3]).weighted(0.5)])
    settings: dict[str, Any] = {
        "settings": FitSettings(epochs=3, batch_size=2, seed=3, patience=2),
        "l2_to_start": 10.0,
    }
    whole, model = run(joined, tmp_path / "whole", **settings)

    forward = DistillLoss.forward

    def die(self: DistillLoss, *arguments: Any) -> Any:
        if self.training and self.step == 3:
            raise Killed
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DistillLoss, "forward", die)
        with pytest.raises(Killed):
            run(joined, tmp_path / "killed", **settings)

    torch.manual_seed(99)
    resumed, other = run(joined, tmp_path / "killed", **settings)
    assert "goes on from" in resumed.reason
    assert differs(model, other) == differs(whole.fitted.best, resumed.fitted.best) == 0.0
    assert resumed.fitted.errors == whole.fitted.errors
    assert resumed.fitted.untrained == whole.fitted.untrained


def moved_by(model: Any) -> float:
    """Return how far the readout is from where it began."""
    before = dict(fixtures.student().mlp.named_parameters())
    pairs = ((weight, before[name]) for name, weight in model.mlp.named_parameters())
    return sum(float((now - then).detach().square().sum()) for now, then in pairs)


@pytest.mark.filterwarnings(LOADS)
def test_distance_to_the_start_holds_the_weights_back_in_both_ways(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways take the same steps, resumed ones too, and another weight is another run."""
    held = {}
    for way in ("plain", "cached"):
        prefer(monkeypatch, way)
        _, free = run(data, tmp_path / way / "free", settings=SHORT)
        folder = tmp_path / way / "held"
        _, held[way] = run(data, folder, settings=SHORT, l2_to_start=100.0)
        assert moved_by(held[way]) < 0.7 * moved_by(free)

        # A run that is done starts from its checkpoint, and takes no step more.
        _, again = run(data, folder, settings=SHORT, l2_to_start=100.0)
        assert differs(again, held[way]) == 0.0
        with pytest.raises(FileExistsError, match="l2_to_start"):
            run(data, folder, settings=SHORT)
    assert differs(held["plain"], held["cached"]) < 5e-4  # see test_trunk


def test_distance_to_the_start_is_the_sum_of_squares(data: DistillData) -> None:
    """Zero at the start, with the gradient 2 w (now - start), in training alone."""
    model = fixtures.frozen()
    graphs, targets = fixtures.collate_graphs([data[0]])
    graphs[0].atom_frac_coord.requires_grad_()
    ratios = Ratios(soft={"energy": 1})
    plain, loss = DistillLoss(ratios), DistillLoss(ratios, l2_to_start=3.0)
    loss.hold_start(model)

    def values() -> tuple[float, float]:
        prediction = model(graphs, task="e")
        found = tuple(float(one(targets, prediction)["loss"].detach()) for one in (plain, loss))
        return found[0], found[1]

    assert values()[0] == values()[1]
    weight = model.mlp.layers[0].weight
    with torch.no_grad():
        weight[0, 0] += 0.5
    before, after = values()
    assert after - before == pytest.approx(3.0 * 0.5**2, rel=1e-5)

    gradients = [
        torch.autograd.grad(one(targets, model(graphs, task="e"))["loss"], weight)[0]
        for one in (plain, loss)
    ]
    expected = torch.zeros_like(weight)
    expected[0, 0] = 2 * 3.0 * 0.5
    torch.testing.assert_close(gradients[1] - gradients[0], expected, rtol=1e-4, atol=1e-4)

    plain.eval(), loss.eval()
    assert values()[0] == values()[1]
    with pytest.raises(ValueError, match="l2_to_start: expected a number of 0 or more, got -1"):
        DistillLoss(ratios, l2_to_start=-1)


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("way", ["plain", "cached"])
def test_a_training_ends_without_a_gain(
    data: DistillData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """With a step so large that it helps rarely; a second call takes no step more."""
    prefer(monkeypatch, way)
    settings = FitSettings(epochs=30, batch_size=4, learning_rate=0.3, patience=2)
    found, model = run(data, tmp_path, settings=settings)
    scores = [errors["val_score"] for errors in found.fitted.errors]
    best = scores.index(min(scores))

    assert len(scores) == best + 3 < 30
    assert found.fitted.steps == len(scores)
    sentence = (
        f"stopped after epoch {len(scores)}: no lower validation score than that of epoch "
        f"{best + 1} in 2 epochs (patience)"
    )
    assert capsys.readouterr().out.rstrip().endswith(sentence) and found.fitted.stopped == sentence

    again, same = run(data, tmp_path, settings=settings)
    assert differs(model, same) == differs(found.fitted.best, again.fitted.best) == 0.0
    assert again.fitted.errors == found.fitted.errors
    assert again.fitted.stopped == sentence


@pytest.mark.filterwarnings(LOADS)
def test_a_trainer_that_ends_early_is_still_tested(data: DistillData, tmp_path: Path) -> None:
    """As CHGNet's is after its last epoch."""
    trainer = fixtures.trainer(epochs=30, learning_rate=0.3, patience=1)
    loaders = [fixtures.loader(data.part([0, 1]), 2) for _ in range(3)]
    trainer.train(*loaders, save_dir=tmp_path)
    assert "stopped after epoch" in trainer.stopped
    assert any(name.startswith("test_") for name in trainer.errors[-1])


@pytest.mark.filterwarnings(LOADS)
def test_the_untrained_student_is_measured_as_the_trained_ones(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same errors in both ways, and those that the plain model has."""
    untrained = {}
    for way in ("plain", "cached"):
        prefer(monkeypatch, way)
        found, _ = run(data, tmp_path / way, settings=FitSettings(epochs=1, batch_size=2))
        untrained[way] = found.fitted.untrained
        assert set(untrained[way]) == {
            name for name in found.fitted.errors[-1] if name.startswith("val_")
        }
    assert untrained["plain"] == pytest.approx(untrained["cached"], rel=1e-3, abs=1e-5)

    model = fixtures.student()
    predicted = [float(model.predict_graph(graph, task="e")["e"]) for graph, _ in data]
    targets = [float(sample.targets["soft_e"]) for sample in data.samples]
    error = sum(abs(one - other) for one, other in zip(predicted, targets, strict=True)) / 4
    assert untrained["plain"]["val_soft_e"] == pytest.approx(error, rel=1e-4)


def test_what_got_worse_is_said() -> None:
    found = Fitted(
        *[fixtures.student()] * 2,
        errors=[
            {"val_soft_e": 0.004, "val_soft_f": 0.025, "val_soft_s": 0.1, "val_score": 0.3},
            {"val_soft_e": 0.005, "val_soft_f": 0.030, "val_soft_s": 0.2, "val_score": 0.4},
        ],
        untrained={"val_soft_e": 0.08, "val_soft_f": 0.013, "val_soft_s": 0.5, "val_score": 0.9},
    )
    assert describe_result(found).splitlines() == [
        "validation errors (MAE)                 energy (meV/atom)  forces (meV/Å)  stress (GPa)",
        "against the teacher, untrained                         80              13           0.5",
        "against the teacher, best, epoch 1                      4              25           0.1",
        "against the teacher, last, epoch 2                      5              30           0.2",
        "errors against the teacher lower than untrained: energy -95 %, stress -80 %",
        "errors against the teacher WORSE than untrained: forces +92 %",
    ]


@pytest.mark.filterwarnings(LOADS)
def test_all_layers_train_and_resume(data: DistillData, tmp_path: Path) -> None:
    """All that CHGNet's Trainer trains, so not the element references, with the whole model."""
    part = data.part([0, 1])
    settings: dict[str, Any] = {"trainable": "all", "soft": {"energy": 1, "forces": 1}}
    found, model = run(part, tmp_path, settings=SHORT, **settings)
    assert found.way == "plain"
    assert "so that the trunk is not frozen" in found.reason

    parts = {name.split(".")[0] for name in fixtures.has_changed(model)}
    assert {"atom_embedding", "bond_conv_layers", "mlp"} <= parts
    assert "composition_model" not in parts

    again, same = run(part, tmp_path, settings=SHORT, **settings)
    assert again.fitted.steps == found.fitted.steps == 2
    assert differs(model, same) == 0.0

    names = freeze_except(fixtures.student(), "all").names
    assert names == freeze_except(fixtures.student(), fixtures.EVERYTHING).names
    with pytest.raises(ValueError, match="expected 'all' or prefixes of parameter names, got 'al'"):
        freeze_except(fixtures.student(), "al")  # type: ignore[arg-type]
