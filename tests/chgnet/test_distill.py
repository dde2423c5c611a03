"""distill takes the cheaper of two ways to the same student, and says which."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from chgnet.model import CHGNet

from kd_plugins.chgnet import DistillData, Distilled, FitSettings, distill
from kd_plugins.chgnet.distilling import CostEstimate
from kd_plugins.chgnet.run_folder import LAST, read_run_checkpoint
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled, differs
from tests.house import ROOT

LOADS = "ignore:You are using `torch.load` with `weights_only=False`:FutureWarning:chgnet"
"""CHGNet's Trainer reads its checkpoints so (torch 2.4)."""
MODULE = importlib.import_module("kd_plugins.chgnet.distilling")
SHORT = FitSettings(epochs=2, batch_size=2, seed=3)


def run(data: DistillData, folder: Path, **settings: Any) -> tuple[Distilled, CHGNet]:
    """Distil pretrained CHGNet."""
    usual = {"soft": fixtures.ALL_SOFT, "settings": SHORT, "cache": folder / "cache"}
    usual["allow"] = fixtures.ALLOW
    model = settings.pop("model", None) or fixtures.student()
    folders, valid = {"out": folder / "out"}, settings.pop("validation", data)
    return distill(model, data, valid, **{**folders, **usual, **settings}), model


def prefer(patch: pytest.MonkeyPatch, way: str) -> None:
    """Let the estimate say that one way is cheaper."""
    cached = 1.0 if way == "cached" else 99.0
    found = CostEstimate(plain=50.0, build=0.0, cached=cached, size=0)
    patch.setattr(MODULE, "estimate", lambda *arguments: found)


@pytest.mark.parametrize(("epochs", "way"), [(1, "plain"), (100_000, "cached")])
def test_features_pay_off_over_many_epochs_alone(
    data: DistillData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    way: str,
) -> None:
    """The real estimate, on crystals that have no features yet."""
    chosen: list[str] = []

    def stop(self: Any, *arguments: Any) -> Any:
        chosen.append("cached" if not arguments else "plain")
        raise KeyboardInterrupt

    for name in ("on_features", "with_trainer"):
        monkeypatch.setattr(MODULE._Task, name, stop)

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, settings=FitSettings(epochs=epochs, batch_size=2))
    assert chosen == [way]

    printed = capsys.readouterr().out
    in_words = {"plain": "with CHGNet's Trainer", "cached": "on cached features"}[way]

    assert "12,545 of 412,525 weights train" in printed
    assert f"training {in_words}: with cached features about" in printed


def test_a_way_that_is_named_is_taken_without_an_estimate(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of one way does not go on by the other, and a trunk that trains has no features."""
    monkeypatch.setattr(MODULE, "estimate", lambda *arguments: pytest.fail("it was estimated"))
    found, _ = run(data, tmp_path, way="cached")
    assert (found.way, found.reason) == ("cached", "as way: cached says")
    with pytest.raises(FileExistsError, match="on cached features, .* with way: plain"):
        run(data, tmp_path, way="plain")
    with pytest.raises(ValueError, match="way: cached is for a frozen trunk, but .* trains"):
        run(data, tmp_path / "all", way="cached", trainable="all")
    with pytest.raises(ValueError, match="way: unknown 'cache'; did you mean 'cached'"):
        run(data, tmp_path / "typo", way="cache")

    monkeypatch.setattr(MODULE._Task, "with_trainer", lambda *arguments: found.fitted)
    assert run(data, tmp_path / "plain", way="plain")[0].way == "plain"


@pytest.mark.filterwarnings(LOADS)
def test_a_run_may_go_on_on_another_device(data: DistillData, tmp_path: Path) -> None:
    """The checkpoint does not name one, so that a GPU that is gone does not end a run."""
    run(data, tmp_path, way="plain", device="cpu", settings=FitSettings(epochs=1))
    kept = read_run_checkpoint(tmp_path / "out" / LAST)["trainer_args"]
    assert "use_device" not in kept
    found, _ = run(data, tmp_path, device="cpu", settings=FitSettings(epochs=1))
    assert found.reason.startswith("goes on from")


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("way", ["plain", "cached"])
def test_fewer_structures_than_a_batch_are_one_batch(
    data: DistillData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    """N_train of 10 with batches of 32, as in Taniguchi 2024; said once."""
    prefer(monkeypatch, way)
    students, cache = [], tmp_path / "cache"
    for size in (4, 32):
        settings = FitSettings(epochs=2, batch_size=size, seed=3)
        found, model = run(data, tmp_path / str(size), settings=settings, cache=cache)
        assert found.fitted.steps == 2
        assert caplog.text.count("batches hold 4 structures") == (size == 32)
        students.append(model)
    assert differs(*students) == 0.0


@pytest.mark.filterwarnings(LOADS)
def test_both_ways_give_the_same_student(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second call trains nothing more."""
    models = {}
    for way in ("plain", "cached"):
        with monkeypatch.context() as patch:
            prefer(patch, way)
            found, models[way] = run(data, tmp_path / way)

        assert found.way == way
        assert found.fitted.steps == 4
        assert found.fitted.model is models[way]
        assert {name.split(".")[0] for name in fixtures.has_changed(models[way])} == {"mlp"}

        again, model = run(data, tmp_path / way)
        assert (again.way, again.fitted.steps) == (way, 4)
        assert again.reason == f"goes on from {tmp_path / way / 'out' / 'last.pth.tar'}"
        assert differs(model, models[way]) == 0.0
        assert differs(again.fitted.best, found.fitted.best) == 0.0
        assert again.fitted.errors == found.fitted.errors

        best = CHGNet.from_file(str(tmp_path / way / "out" / "best.pth.tar"))
        assert differs(best, found.fitted.best) == 0.0

        for changed in (
            {"settings": FitSettings(epochs=3, batch_size=2, seed=3)},
            {"soft": {"energy": 1}},
        ):
            with pytest.raises(FileExistsError, match="holds a run with other settings"):
                run(data, tmp_path / way, **changed)

        with pytest.raises((FileExistsError, ValueError), match="other (settings|structures)"):
            run(data.part([0, 1]), tmp_path / way)
    assert differs(models["plain"], models["cached"]) < 5e-4  # see test_trunk


def test_trainer_is_chosen_where_features_cannot_be_kept(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trunk that trains, and magnetic moments."""
    prefer(monkeypatch, "cached")
    one = FitSettings(epochs=1, batch_size=2)
    part = data.part([0, 1])
    found, model = run(part, tmp_path, settings=one, trainable=("mlp.", "readout_norm."))

    assert found.way == "plain"
    assert found.reason.startswith("readout_norm.weight trains, so that the trunk is not frozen")
    with pytest.raises(ValueError, match="no weight that trains decides CHGNet's magnetic moments"):
        run(part, tmp_path / "m", settings=one, hard={"magmoms": 1})

    dropping = fixtures.student()
    dropping.mlp.layers.append(torch.nn.Dropout(0.5))
    found, _ = run(part, tmp_path / "drop", settings=one, model=dropping)

    assert found.way == "plain"
    assert "without dropout" in found.reason


def test_validation_may_be_smaller_than_a_batch(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("plain", "cached"):
        prefer(monkeypatch, way)
        found = distill(
            fixtures.student(),
            data.part([0, 1]),
            data.part([2]),
            out=tmp_path / way,
            cache=tmp_path / "cache",
            settings=FitSettings(epochs=1, batch_size=2),
        )
        assert found.way == way
        assert found.fitted.steps == 1


def test_features_on_disk_cost_nothing_in_the_estimate() -> None:
    costly = CostEstimate(plain=10.0, build=100.0, cached=1.0, size=10**9)
    assert not costly.prefers_cache
    assert CostEstimate(plain=10.0, build=0.0, cached=1.0, size=0).prefers_cache
    assert "1.7 min for 1.0 GB of features" in str(costly)


KILLED = """
import sys
from pathlib import Path
from kd_plugins import TargetStore
from kd_plugins.chgnet import DistillData, FitSettings
from tests.chgnet import fixtures, test_distill

store = TargetStore.open(sys.argv[1])
data = DistillData(fixtures.salts(), store, progress=False)
test_distill.prefer(test_distill.pytest.MonkeyPatch(), "cached")
settings = FitSettings(epochs=int(sys.argv[3]), batch_size=2, seed=3)
test_distill.run(data, Path(sys.argv[2]), settings=settings)
"""


def test_a_killed_call_resumes(salts: Labelled, tmp_path: Path) -> None:
    """Before its first checkpoint of twenty seconds."""
    epochs = 40
    words = [str(salts.store.folder), str(tmp_path), str(epochs)]
    running = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = tmp_path / "out" / "last.pth.tar"

    while running.poll() is None and not last.exists():
        time.sleep(0.01)

    running.kill()
    running.wait()

    assert last.exists()

    data = salts.data()
    found, model = run(data, tmp_path, settings=FitSettings(epochs=epochs, batch_size=2, seed=3))

    assert found.way == "cached"
    assert "goes on from" in found.reason
    assert found.fitted.steps == 2 * epochs

    _, expected = fixtures.fitted(data, tmp_path / "cache", epochs=epochs, seed=3)
    assert differs(model, expected) == 0.0
