"""Features of the frozen trunk give what the whole model gives, forwards and backwards."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet

from kd_plugins.chgnet import (
    CachedData,
    DistillData,
    DistillLoss,
    FitSettings,
    FrozenTrunk,
    Ratios,
    align_references,
    fit,
)
from kd_plugins.chgnet.fitting import _collate
from kd_plugins.chgnet.frozen_trunk import (
    ATOMS_ON_GPU,
    _FeatureFile,
    _in_batches,
    choose_coordinates,
)
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled, differs
from tests.house import ROOT
from tests.tolerances import MODEL

RAMP = {"schedule": "linear", "start": 0.0, "end": 1.0, "first_step": 0, "last_step": 5}


@pytest.fixture(scope="module")
def organic(crystals: Labelled) -> DistillData:
    """Carbon dioxide and a salt."""
    return crystals.data(crystals.noisy(), hard=("energy", "forces", "stress"))


@pytest.fixture(scope="module")
def features(organic: DistillData, trunk_folder: Path) -> CachedData:
    """Those of carbon dioxide and a salt."""
    return CachedData(organic, FrozenTrunk(fixtures.frozen()), trunk_folder, progress=False)


def test_predictions_on_features_equal_the_models(features: CachedData) -> None:
    """Energy, forces and stress, with the weights that it has now."""
    model = features.trunk.model
    before = [parameter.clone() for parameter in model.mlp.parameters()]

    with torch.no_grad():
        for parameter in model.mlp.parameters():
            parameter.mul_(1.1)

    graphs = [graph for graph, _ in features.data]
    expected = model.predict_graph(graphs, task="efs")
    found = features.trunk.predict([one for one, _ in features])

    for parameter, value in zip(model.mlp.parameters(), before, strict=True):
        parameter.data = value

    torch.testing.assert_close(
        found["e"], torch.from_numpy(np.stack([one["e"] for one in expected]))
    )
    forces = torch.cat([torch.from_numpy(one["f"]).reshape(-1) for one in expected])
    torch.testing.assert_close(found["f"], forces, **MODEL[torch.float32])
    stress = torch.stack([torch.from_numpy(one["s"]) for one in expected])
    torch.testing.assert_close(found["s"], stress, **MODEL[torch.float32])

    assert forces.abs().max() > 0.5
    assert stress.abs().max() > 0.5


@pytest.mark.parametrize("criterion", ["MAE", "MSE"])
def test_gradients_on_features_equal_the_trainers(features: CachedData, criterion: Any) -> None:
    ratios = Ratios(soft=fixtures.ALL_SOFT, hard={"energy": 0.5, "forces": 0.1, "stress": 0.01})
    model = features.trunk.model
    head = list(model.mlp.parameters())
    graphs, targets = collate_graphs(list(features.data))

    for graph in graphs:
        graph.atom_frac_coord.requires_grad_()

    loss = DistillLoss(ratios, criterion)
    plain = torch.autograd.grad(loss(targets, model(graphs, task="efs"))["loss"], head)
    rows, targets = _collate(list(features))
    cached = torch.autograd.grad(loss(targets, features.trunk.predict(rows))["loss"], head)
    plain, cached = (torch.cat([one.reshape(-1) for one in side]) for side in (plain, cached))
    bound = {"MAE": 1e-5, "MSE": 1e-4}[criterion]  # whose gradient has the errors' own rounding

    assert float((plain - cached).norm()) <= bound * float(plain.norm())


def test_weights_after_six_steps_equal_the_trainers(
    organic: DistillData, features: CachedData, trunk_folder: Path, tmp_path: Path
) -> None:
    """With a weight that grows; Adam makes much of a gradient that is nearly zero, hence CO2."""
    settings: dict[str, Any] = {"soft": {"energy": 1, "forces": RAMP}, "epochs": 6, "seed": 5}
    co2 = organic.part([0])
    plain = fixtures.trainer(**settings)
    plain.train(fixtures.loader(co2, 1), fixtures.loader(co2, 1), save_dir=str(tmp_path))
    found, model = fixtures.fitted(co2, trunk_folder, batch_size=1, **settings)

    assert found.steps == plain.criterion.step == 6

    for one, other in zip(plain.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, **fixtures.CACHED)

    for one, other in zip(plain.errors, found.errors, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_rows_along_some_coordinates_equal_those_of_the_whole(features: CachedData) -> None:
    graph, whole = features.data[0][0], features[0][0]
    along = [1, 2, 17, 35]
    part = features.trunk.features(graph, along)
    rows = [*along, *range(len(whole.jacobian) - 6, len(whole.jacobian))]
    torch.testing.assert_close(part.jacobian, whole.jacobian[rows], rtol=1e-5, atol=1e-5)

    assert part.coordinates.tolist() == along


def test_features_are_read_back_as_they_were_made(
    data: DistillData, trunk_folder: Path, tmp_path: Path
) -> None:
    trunk, part = FrozenTrunk(fixtures.frozen()), data.part([0])
    made = CachedData(part, trunk, tmp_path, progress=False)[0][0]
    read = CachedData(part, trunk, tmp_path, progress=False)[0][0]

    for field in fields(made):
        one, other = getattr(made, field.name), getattr(read, field.name)
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_features_of_two_processes_equal_those_of_one(salts: Labelled, tmp_path: Path) -> None:
    """Byte for byte; what is there already is not computed again."""
    data = salts.data()
    trunk = FrozenTrunk(fixtures.frozen())
    one, two = tmp_path / "one", tmp_path / "two"
    CachedData(data, trunk, one, progress=False)
    CachedData(data.part([0]), trunk, two, progress=False)
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*.safetensors")}

    found = CachedData(data, trunk, two, progress=False, workers=2)
    assert contents(one) == contents(two) and len(found) == len(data) == 4
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_features_of_several_structures_at_once_are_those_of_each(features: CachedData) -> None:
    """Of other numbers of atoms and other coordinates; none depends on the others."""
    graphs = [graph for graph, _ in features.data]
    along = [[0, 4, 5], list(range(features[1][0].node_embeddings.shape[0]))]
    batch = features.trunk.features_of(graphs, along)
    for graph, coordinates, found in zip(graphs, along, batch, strict=True):
        alone = features.trunk.features(graph, coordinates)
        for field in fields(alone):
            one, other = getattr(found, field.name), getattr(alone, field.name)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_gpu_takes_structures_of_similar_size_together(features: CachedData) -> None:
    graph = features.data[0][0]
    n_atoms = len(graph.atomic_number)
    tasks = [_FeatureFile(graph, range(3 * n_atoms), Path(str(number))) for number in range(50)]
    batches = _in_batches(tasks, "cuda")
    assert sorted(task.path for batch in batches for task in batch) == sorted(
        task.path for task in tasks
    )
    assert max(len(batch) for batch in batches) == ATOMS_ON_GPU // n_atoms
    assert [len(batch) for batch in _in_batches(tasks, "cpu")] == [1] * 50


def test_the_trunk_is_moved_to_the_device_and_the_readout_is_not() -> None:
    """On torch's ``meta`` a model has a device without any hardware."""
    trunk = FrozenTrunk(fixtures.frozen(), device="meta")
    assert all(one.is_meta for one in trunk._frozen.parameters())
    assert not any(one.is_meta for one in trunk.model.parameters())


def names(folder: Path) -> set[str]:
    """Return the files of a cache."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_another_trunk_or_structure_has_another_key(salts: Labelled, tmp_path: Path) -> None:
    """But not another readout or other element references."""
    structure = salts.structures[0]
    data = salts.data([structure])
    keys = []
    share = {"force_share": 0.1, "progress": False}
    model = fixtures.frozen()
    CachedData(data, FrozenTrunk(model), tmp_path, **share)
    keys.append(names(tmp_path))

    with torch.no_grad():
        model.mlp.layers[0].weight.mul_(2)
        model.composition_model.fc.weight.add_(1)

    CachedData(data, FrozenTrunk(model), tmp_path, **share)
    assert names(tmp_path) == keys[0]

    atoms = structure.atoms.copy()
    atoms.positions[0, 0] += 0.01
    other = DistillData([fixtures.moved(structure, atoms)], hard=("energy",), progress=False)
    CachedData(other, FrozenTrunk(model), tmp_path, **share)
    keys.append(names(tmp_path))
    CachedData(data, FrozenTrunk(model), tmp_path, force_share=0.1, seed=3, progress=False)
    keys.append(names(tmp_path))

    with torch.no_grad():
        model.atom_conv_layers[0].twoBody_atom.mlp_core.layers[0].weight[0, 0] += 1e-4

    CachedData(data, FrozenTrunk(model), tmp_path, **share)
    keys.append(names(tmp_path))

    assert [len(key) for key in keys] == [1, 2, 3, 4]
    assert len({key.split("/")[0] for key in keys[-1]}) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:100],
        lambda whole: whole[:-50],
        lambda whole: bytes(len(whole)),
        lambda whole: b"hello",
    ],
)
def test_damaged_features_are_computed_again(
    data: DistillData, trunk_folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    trunk, part = FrozenTrunk(fixtures.frozen()), data.part([0])
    CachedData(part, trunk, trunk_folder, progress=False)
    shutil.copytree(trunk_folder / trunk.fingerprint, tmp_path / trunk.fingerprint)
    cached = CachedData(part, trunk, tmp_path, progress=False)
    expected = cached[0][0].jacobian.clone()

    for path in (tmp_path / trunk.fingerprint).iterdir():
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(damage(whole))

    found = CachedData(part, trunk, tmp_path, progress=False)[0][0]
    torch.testing.assert_close(found.jacobian, expected, rtol=1e-5, atol=1e-5)
    again = CachedData(part, trunk, tmp_path, progress=False)[0][0]

    assert torch.equal(again.jacobian, found.jacobian)


def test_a_share_of_the_forces_is_an_unbiased_choice(features: CachedData) -> None:
    sample = features.data.samples[0]

    def choose(share: float, seed: int) -> list[int]:
        return choose_coordinates(sample, share, seed)

    errors = np.abs(sample.targets["soft_f"].numpy().ravel() - 0.1)
    means = [errors[choose(0.25, seed)].mean() for seed in range(2000)]
    spread = errors.std() / np.sqrt(9)

    assert abs(np.mean(means) - errors.mean()) < 4 * spread / np.sqrt(2000)

    chosen = [place for seed in range(2000) for place in choose(0.25, seed)]
    assert np.bincount(chosen, minlength=36).min() > 400
    assert choose(0.25, 1) == choose(0.25, 1) != choose(0.25, 2)
    assert choose(1.0, 1) == list(range(36))


def test_a_share_compares_the_same_components(salts: Labelled, tmp_path: Path) -> None:
    cached = CachedData(
        salts.data(salts.structures[:2]),
        FrozenTrunk(fixtures.frozen()),
        tmp_path,
        force_share=0.5,
        progress=False,
    )
    for row, (features, targets) in zip(cached.data.samples, cached, strict=True):
        whole = row.targets["soft_f"].reshape(-1)
        assert torch.equal(targets["soft_f"], whole[features.coordinates])
        assert len(features.coordinates) == 3


def test_resumed_fit_equals_uninterrupted(
    data: DistillData, trunk_folder: Path, tmp_path: Path
) -> None:
    """Stopped in the third epoch and started again with other random numbers."""
    settings: dict[str, Any] = {
        "soft": {"energy": 1, "forces": RAMP, "stress": 0.1},
        "hard": {"energy": {**RAMP, "start": 1.0, "end": 0.0}},
        "epochs": 6,
    }
    whole, model = fixtures.fitted(data, trunk_folder, tmp_path / "whole", **settings)

    class Killed(BaseException):
        pass

    module = importlib.import_module("kd_plugins.chgnet.fitting")
    step, seen = module.is_schedule_step, []

    def stopping(batch: int, n_batches: int) -> bool:
        seen.append(batch)
        if len(seen) == 5:
            raise Killed
        return step(batch, n_batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SECONDS", 0.0)
        patch.setattr(module, "is_schedule_step", stopping)
        with pytest.raises(Killed):
            fixtures.fitted(data, trunk_folder, tmp_path / "stopped", **settings)

    torch.manual_seed(99)
    resumed, other = fixtures.fitted(data, trunk_folder, tmp_path / "stopped", **settings)

    assert differs(model, other) == differs(whole.best, resumed.best) == 0.0
    assert whole.errors == resumed.errors
    assert whole.steps == resumed.steps == 12
    assert {name.split(".")[0] for name in fixtures.has_changed(other)} == {"mlp"}

    again, last = fixtures.fitted(data, trunk_folder, tmp_path / "stopped", **settings)
    assert again.steps == 12
    assert differs(last, model) == 0.0


def test_a_folder_of_another_run_is_refused(
    data: DistillData, trunk_folder: Path, tmp_path: Path
) -> None:
    fixtures.fitted(data, trunk_folder, tmp_path, epochs=1)
    with pytest.raises(FileExistsError, match="holds a run with other settings.*another folder"):
        fixtures.fitted(data, trunk_folder, tmp_path, epochs=2)
    with pytest.raises(FileExistsError, match="holds a run with other settings"):
        fixtures.fitted(data.part([0, 1, 2]), trunk_folder, tmp_path, epochs=1)

    torch.save({"model": {}}, tmp_path / "last.pth.tar")
    with pytest.raises(FileExistsError, match="is of another kind of run"):
        fixtures.fitted(data, trunk_folder, tmp_path, epochs=1)


def test_the_seed_determines_the_fit_whatever_the_random_state_before(
    data: DistillData, trunk_folder: Path
) -> None:
    models = []
    for index, seed in enumerate((3, 3, 4)):
        torch.manual_seed(index)
        models.append(fixtures.fitted(data, trunk_folder, seed=seed, batch_size=1)[1])

    assert differs(models[0], models[1]) == 0.0
    assert differs(models[0], models[2]) > 0.0


def test_a_loss_that_was_used_before_starts_at_its_first_step(
    data: DistillData, trunk_folder: Path
) -> None:
    loss, models = DistillLoss(Ratios(soft={"energy": RAMP, "forces": 1})), []
    for _ in range(2):
        trunk = FrozenTrunk(fixtures.frozen())
        cached = CachedData(data, trunk, trunk_folder, progress=False)
        settings = FitSettings(epochs=2, batch_size=2)
        found = fit(trunk, cached, cached, loss, settings, progress=False, allow=fixtures.ALLOW)
        models.append(found.model)
    assert differs(*models) == 0.0


def test_the_best_model_of_a_fit_has_the_lowest_score(
    salts: Labelled, data: DistillData, trunk_folder: Path, tmp_path: Path
) -> None:
    """Validated against its predictions before training, a model is best after the first epoch."""
    trunk = FrozenTrunk(fixtures.frozen())
    before = salts.data(store=salts.own)
    train, valid = (CachedData(one, trunk, trunk_folder, progress=False) for one in (data, before))
    loss = DistillLoss(Ratios(soft=fixtures.ALL_SOFT))
    settings = FitSettings(epochs=5, batch_size=2, seed=5)
    allow = (*fixtures.ALLOW, "validation_zero")  # these predictions are another teacher's
    found = fit(trunk, train, valid, loss, settings, tmp_path, progress=False, allow=allow)
    scores = [errors["val_score"] for errors in found.errors]

    assert int(np.argmin(scores)) == 0

    trunk = FrozenTrunk(fixtures.freeze_except(found.best) and found.best)
    rows, targets = _collate(list(CachedData(before, trunk, trunk_folder, progress=False)))
    loss = DistillLoss(Ratios(soft=fixtures.ALL_SOFT)).eval()
    loss(targets, trunk.predict(rows))

    assert loss.score(loss.take_errors()) == pytest.approx(scores[0], rel=1e-5)
    assert differs(found.best, found.model) > 0.0
    assert differs(CHGNet.from_file(str(tmp_path / "best.pth.tar")), found.best) == 0.0
    assert differs(CHGNet.from_file(str(tmp_path / "last.pth.tar")), found.model) == 0.0


KILLED = """
import importlib, sys
from pathlib import Path
from kd_plugins import TargetStore
from tests.chgnet import fixtures

importlib.import_module("kd_plugins.chgnet.fitting").SECONDS = 0.0
store = TargetStore.open(sys.argv[1])
data = fixtures.DistillData(fixtures.salts(), store, progress=False)
fixtures.fitted(data, Path(sys.argv[2]), Path(sys.argv[3]), epochs=int(sys.argv[4]))
"""


def test_a_killed_fit_resumes(salts: Labelled, trunk_folder: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL after its first checkpoints, at whatever moment."""
    data = salts.data()
    CachedData(data, FrozenTrunk(fixtures.frozen()), trunk_folder, progress=False)
    epochs = 80
    words = [str(salts.store.folder), str(trunk_folder), str(tmp_path / "killed"), str(epochs)]
    running = subprocess.Popen([sys.executable, "-W", "ignore", "-c", KILLED, *words], cwd=ROOT)
    last = tmp_path / "killed" / "last.pth.tar"

    while running.poll() is None and not (last.exists() and state_of(last)["steps"] > 4):
        time.sleep(0.01)

    running.kill()
    running.wait()

    assert 4 < state_of(last)["steps"] < 2 * epochs

    found, model = fixtures.fitted(data, trunk_folder, tmp_path / "killed", epochs=epochs)
    whole, expected = fixtures.fitted(data, trunk_folder, epochs=epochs)

    assert differs(model, expected) == 0.0
    assert found.errors == whole.errors


def state_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds."""
    return torch.load(path, weights_only=True)


def test_unsuitable_trunks_are_refused() -> None:
    model = fixtures.student()
    with pytest.raises(ValueError, match="but atom_embedding.embedding.weight trains as well"):
        FrozenTrunk(model)

    for parameter in model.parameters():
        parameter.requires_grad_(False)

    with pytest.raises(ValueError, match="but nothing trains; call freeze_except"):
        FrozenTrunk(model)

    fixtures.freeze_except(model)
    model.mlp_first = False

    with pytest.raises(ValueError, match="pools atoms' energies"):
        FrozenTrunk(model)

    model.mlp_first, model.mlp.layers[1] = True, torch.nn.Dropout(0.1)
    with pytest.raises(ValueError, match="without dropout"):
        FrozenTrunk(model)


def test_moved_references_move_the_energies_of_features(
    features: CachedData, organic: DistillData
) -> None:
    """Moved references move the energies of features as those of the model."""
    before = features.trunk.predict([one for one, _ in features])["e"].detach()
    weight = features.trunk.model.composition_model.fc.weight
    references = align_references(features.trunk.model, organic)
    after = features.trunk.predict([one for one, _ in features])["e"].detach()

    with torch.no_grad():
        for number, offset in references.offsets.items():
            weight[0, number - 1] -= offset

    target = torch.stack([row.targets["soft_e"] for row in organic.samples])
    assert (before - target).abs().max() > 1e-2
    assert (after - target).abs().max() < 1e-4
