"""What can be known before features are computed is refused before; a share of forces counts."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.chgnet import (
    CachedData,
    DistillData,
    DistillLoss,
    DistillTrainer,
    FitSettings,
    FrozenTrunk,
    Ratios,
    align_references,
)
from kd_plugins.chgnet.frozen_trunk import choose_coordinates
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled, differs
from tests.chgnet.test_distill import LOADS, prefer, run

Bad = Callable[[Labelled, DistillData, Path], Any]


def _other(salts: Labelled, folder: Path, name: str, change: Callable[..., Any]) -> DistillData:
    """Return the salts with changed targets of the teacher."""
    store = fixtures.changed_store(
        salts.store, folder / f"store_{name}", lambda key, value: change(value, key == name)
    )
    return salts.data(store=store)


BAD: dict[str, tuple[Bad, str]] = {
    "energy zero": (
        lambda s, d, p: run(_other(s, p, "energy", lambda v, hit: v + 9.0 * hit), p),
        "align_references",
    ),
    "energy zero of validation": (
        lambda s, d, p: run(d, p, validation=_other(s, p, "energy", lambda v, hit: v + 9.0 * hit)),
        "in the validation data, the soft targets cannot be right",
    ),
    "validation is training": (
        lambda s, d, p: run(d, p, allow=()),
        r"all 4 validation structures are in the training data",
    ),
    "out is a file": (lambda s, d, p: run(d, p, out=p / "file"), "out: .*file is a file"),
    "out is cache": (lambda s, d, p: run(d, p, out=p / "cache"), "another folder than cache"),
    "cache is a file": (lambda s, d, p: run(d, p, cache=p / "file"), "cache: .*file is a file"),
    "share": (lambda s, d, p: run(d, p, force_share=float("nan")), "force_share: expected above 0"),
    "share as text": (lambda s, d, p: run(d, p, force_share="1"), "force_share: .* got '1'"),
    "no data": (lambda s, d, p: run([], p), "train: expected a DistillData, got a list"),
    "empty data": (lambda s, d, p: run(d.part([]), p), "train: there are no structures"),
    "no validation": (
        lambda s, d, p: run(d, p, validation=[]),
        "validation: expected a DistillData, got a list",
    ),
    "empty validation": (
        lambda s, d, p: run(d, p, validation=d.part([])),
        "validation: there are no structures",
    ),
    "no model": (lambda s, d, p: run(d, p, model="0.3.0"), "model: expected a CHGNet, got a str"),
    "settings": (lambda s, d, p: run(d, p, settings={"epochs": 1}), "expected FitSettings, got"),
    "target that validation lacks": (
        lambda s, d, p: run(d, p, validation=s.data(soft=("energy",))),
        "the loss weighs soft forces, but the data have no forces of the teacher",
    ),
    "select": (lambda s, d, p: run(s.data(), p, select="hard"), "select: hard: the best model"),
    "criterion": (lambda s, d, p: run(d, p, criterion="mae"), "unknown criterion 'mae'"),
    "delta": (lambda s, d, p: run(d, p, delta=float("inf")), "delta: expected a number above 0"),
    "prefix": (lambda s, d, p: run(d, p, trainable=("",)), "expected a prefix of parameter names"),
    "prefixes": (lambda s, d, p: run(d, p, trainable=(3,)), "expected a prefix .* got 3"),
    "allow": (lambda s, d, p: run(d, p, allow=["stress_sing"]), "did you mean 'stress_sign'"),
    "allow as text": (lambda s, d, p: run(d, p, allow="stress_sign"), "expected a list of names"),
    "rate 0": (lambda s, d, p: FitSettings(learning_rate=0), "learning_rate: .* above 0, got 0"),
    "rate inf": (lambda s, d, p: FitSettings(learning_rate=float("inf")), "learning_rate: .*inf"),
    "rate as text": (lambda s, d, p: FitSettings(learning_rate="1e-2"), "learning_rate: .*'1e-2'"),
    "seed -1": (lambda s, d, p: FitSettings(seed=-1), "seed: .*got -1"),
    "seed 0.5": (lambda s, d, p: FitSettings(seed=0.5), "seed: .*got 0.5"),
    "huge seed": (lambda s, d, p: FitSettings(seed=10**400), "seed: expected a whole number"),
    "half an epoch": (lambda s, d, p: FitSettings(epochs=0.5), "epochs: .*got 0.5"),
    "true epochs": (lambda s, d, p: FitSettings(epochs=True), "epochs: .*got True"),
    "steps": (lambda s, d, p: FitSettings.for_steps(0, 4), "steps: .*got 0"),
    "steps of none": (lambda s, d, p: FitSettings.for_steps(5, 0), "n_structures: .*got 0"),
    "trainer's seed": (lambda s, d, p: fixtures.trainer(seed=-1), "seed: .*got -1"),
    "trainer's epochs": (lambda s, d, p: fixtures.trainer(epochs=0), "epochs: .*got 0"),
    "trainer's rate": (
        lambda s, d, p: fixtures.trainer(learning_rate=float("nan")),
        "learning_rate: .*got nan",
    ),
    "trainer's model": (
        lambda s, d, p: DistillTrainer(None, soft={"energy": 1}),
        "model: expected a CHGNet, got a NoneType",
    ),
    "optimizer": (
        lambda s, d, p: fixtures.trainer(optimizer="Adma"),
        "no 'Adma'; did you mean 'Adam",
    ),
    "scheduler": (lambda s, d, p: fixtures.trainer(scheduler="CosLr"), "did you mean 'CosLR'"),
    "argument": (lambda s, d, p: fixtures.trainer(epoch=3), "'epoch'; did you mean 'epochs'"),
    "argument of another": (
        lambda s, d, p: fixtures.trainer(momentum=0.5),
        "momentum: is for SGD, not for Adam",
    ),
    "device": (lambda s, d, p: fixtures.trainer(use_device="cuda:0"), "torch finds none here"),
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_computed_before_the_refusal(
    salts: Labelled,
    data: DistillData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    if name == "device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")

    computed: list[object] = []
    monkeypatch.setattr(FrozenTrunk, "features", lambda self, *given: computed.append(given))
    (tmp_path / "file").write_text("x")
    bad, message = BAD[name]

    with pytest.raises((ValueError, OSError), match=message):
        bad(salts, data, tmp_path)
    assert not computed

    left = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in left if not name.startswith(("file", "store_"))}


def test_other_settings_of_a_run_are_refused_before_features(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, "cached")
    part = data.part([0, 1])
    run(part, tmp_path)
    monkeypatch.setattr(FrozenTrunk, "features", None)
    others: dict[str, dict[str, Any]] = {
        "force_share": {"force_share": 0.5},
        "select": {"hard": {"energy": 1}, "select": "hard"},
        "batch_size": {"settings": FitSettings(epochs=2, batch_size=1, seed=3)},
        "validation": {"validation": data},
    }

    for name, other in others.items():
        with pytest.raises(FileExistsError, match=f"holds a run with other settings, .*{name}"):
            run(part, tmp_path, **other)

    assert run(part, tmp_path)[0].fitted.steps == 2


@pytest.mark.filterwarnings(LOADS)
def test_a_run_with_chgnets_trainer_resumes_with_the_same_batches_and_validation_only(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, "plain")
    part, one = data.part([0, 1]), FitSettings(epochs=1, batch_size=2)
    run(part, tmp_path, settings=one)

    for other, message in (
        ({"settings": FitSettings(epochs=1, batch_size=1)}, "has batches of 2, not of 1"),
        ({"validation": data}, "was validated on other structures"),
        ({"force_share": 0.5}, "learned from other structures or targets"),
    ):
        with pytest.raises(ValueError, match=message):
            run(part, tmp_path, **{"settings": one, **other})


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("way", ["plain", "cached"])
def test_runs_of_earlier_versions_resume(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Which did not say what they were validated on, nor which forces counted."""
    prefer(monkeypatch, way)
    part = data.part([0, 1])
    share = 0.5 if way == "cached" else 1.0  # CHGNet's Trainer took all forces, whatever was asked
    run(part, tmp_path, force_share=share)
    last = tmp_path / "out" / "last.pth.tar"
    state = torch.load(last, weights_only=True)
    later = {"plain": ("validated", "batch_size"), "cached": ("select", "trainable", "force_share")}
    kept = state["distillation" if way == "plain" else "settings"]

    for name in (*later[way], *(("validation",) if way == "cached" else ())):
        del kept[name]

    torch.save(state, last)
    found, _ = run(part, tmp_path, force_share=0.5)

    assert found.fitted.steps == 2


@pytest.mark.filterwarnings(LOADS)
def test_both_ways_take_the_same_share_of_the_forces(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {}
    for way in ("plain", "cached"):
        prefer(monkeypatch, way)
        soft = {"energy": 0.1, "forces": 1}
        _, models[way] = run(data, tmp_path / way, force_share=0.34, soft=soft)

    _, whole = run(data, tmp_path / "whole", soft={"energy": 0.1, "forces": 1})
    assert differs(models["plain"], models["cached"]) < 5e-4
    assert differs(models["plain"], whole) > 1e-3

    part = data.along(lambda row: choose_coordinates(row, 0.34, 0))
    there = [~row.targets["soft_f"].isnan() for row in part.samples]

    assert [int(mask.sum()) for mask in there] == [3] * 4
    assert part.fingerprint != data.fingerprint
    assert torch.isfinite(data.samples[0].targets["soft_f"]).all()


def test_features_of_other_objects_are_refused(data: DistillData, tmp_path: Path) -> None:
    trunk = FrozenTrunk(fixtures.frozen())
    with pytest.raises(ValueError, match="data: expected a DistillData, got a list"):
        CachedData([], trunk, tmp_path / "cache")
    with pytest.raises(ValueError, match="trunk: expected a FrozenTrunk"):
        CachedData(data, fixtures.frozen(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_offsets_of_references_are_logged(
    salts: Labelled, caplog: pytest.LogCaptureFixture
) -> None:
    model, before = fixtures.student(), fixtures.student()
    structures = [
        fixtures.with_label(structure, energy=structure.labels["energy"] + 2.0)
        for structure in salts.structures
    ]

    with caplog.at_level(logging.INFO):
        found = align_references(model, salts.data(structures, hard=("energy",)), "hard")

    assert "element references moved by (eV/atom): Na +1.0" in caplog.text

    weights = [one.composition_model.fc.weight for one in (model, before)]
    for number, offset in found.offsets.items():
        moved = float((weights[0] - weights[1])[0, number - 1])
        assert moved == pytest.approx(offset, abs=1e-5)


def test_public_names_are_in_all() -> None:
    package = importlib.import_module("kd_plugins.chgnet")
    names: dict[str, Any] = {}
    exec("from kd_plugins.chgnet import *", names)

    assert set(package.__all__) == set(names) - {"__builtins__"}
    assert set(package.__all__) <= set(dir(package))
    assert names["fit"] is package.fit
    with pytest.raises(AttributeError, match="no attribute 'fits'"):
        _ = package.fits


def test_an_infinite_error_is_a_floating_point_error() -> None:
    loss = DistillLoss(Ratios(soft={"energy": 1}))
    loss({"soft_e": torch.tensor([1.0])}, {"e": torch.tensor([torch.inf])})
    with pytest.raises(FloatingPointError, match="has diverged; lower learning_rate"):
        loss.take_errors()
