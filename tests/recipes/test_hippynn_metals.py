"""The recipe of Matin et al. 2025: its experiments on a few structures, and the paper's numbers."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from kd_plugins.compare.experiment import Experiment, fill_fields, read_experiment
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.structures import read_structures
from kd_plugins.teachers.registry import load_teacher
from tests.hosts import in_one_environment
from tests.house import ROOT

pytest.importorskip("hippynn")
from kd_plugins.hippynn import BORN_AGAIN, CONTROL, STUDENT  # noqa: E402

RECIPE = ROOT / "recipes" / "hippynn_metals"
PAPERS_OWN = ("ani_al.yml", "ani_al_born_again.yml")
pytestmark = [pytest.mark.slow, in_one_environment]


def load(name: str) -> ModuleType:
    """Return a script of the recipe as a module."""
    spec = importlib.util.spec_from_file_location(f"hippynn_metals_{name}", RECIPE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rattled(symbol: str, count: int) -> list[Atoms]:
    """Return cells of four atoms with energies and forces of EMT."""
    cells = []
    for index in range(count):
        atoms = bulk(symbol, cubic=True)
        atoms.positions += np.random.default_rng(index).normal(scale=0.1, size=(4, 3))
        atoms.info["structure_id"] = f"{symbol}/{index}"
        atoms.calc = EMT()
        atoms.get_forces()
        cells.append(atoms)
    return cells


@pytest.fixture(scope="module")
def copper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 10 cells of copper."""
    path = tmp_path_factory.mktemp("structures") / "copper.extxyz"
    ase.io.write(path, rattled("Cu", 10))
    return path


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 3 cells of copper without labels."""
    path = tmp_path_factory.mktemp("structures") / "pool.extxyz"
    cells = rattled("Cu", 13)[10:]
    for atoms in cells:
        atoms.calc = None
    ase.io.write(path, cells)
    return path


def settings_of(experiment: Experiment, arm: str, out: Path, **few: Any) -> dict[str, Any]:
    """Return the settings that compare gives the script for an arm and the first seed."""
    swept = experiment.swept_arms[arm]
    fields = {"run": "", "runs": str(out), "seed": 0, **swept.point}
    changes = fill_fields({**experiment.settings, **swept.changes}, fields)
    own = {"out": str(out / arm / "seed0"), "seed": 0}
    settings = HOSTS["script"].settings(Path(experiment.base), {**changes, **own})

    model = settings["model"]
    # Large models are made narrow; they stay larger than the small ones.
    model |= {name: min(value, 14) for name, value in model.items() if name.startswith("n_f")}
    model |= {name: min(value, 9) for name, value in model.items() if name.startswith("n_s")}
    settings["epochs"] |= {"scale": few.pop("scale", 0.004)}
    return {**settings, "validation": {"size": 2, "seed": 0}, "train_evaluated": 1.0, **few}


def dry_run(name: str, arms: Sequence[str], out: Path, **few: Any) -> dict[str, Any]:
    """Train arms of an experiment for a few epochs; return the curves of each."""
    script, experiment = load("train"), read_experiment(RECIPE / name)
    curves = {}
    for arm in arms:
        script.train(settings_of(experiment, arm, out, **few))
        curves[arm] = json.loads((out / arm / "seed0" / "curves.json").read_text())
        student = load_teacher(f"hippynn folder={out / arm / 'seed0' / 'model'}")
        (predicted,) = student.predict([rattled("Cu", 1)[0]], ["forces"])
        assert np.isfinite(np.asarray(predicted["forces"])).all()
    return curves


def weights(out: Path, arm: str) -> Mapping[str, torch.Tensor]:
    """Return the weights of an arm's student."""
    path = out / arm / "seed0" / "model" / "best_model.pt"
    found = torch.load(path, weights_only=True)
    return {name: tensor for name, tensor in found.items() if torch.is_tensor(tensor)}


# --- The experiments, on a few structures -------------------------------------------------------


def test_a_student_learns_from_its_seeds_teacher_and_errors_of_training_are_logged(
    copper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its speed, and the largest cell that fits."""
    arms = ("teacher", "student-12x8x1")
    curves = dry_run("copper.yml", arms, tmp_path, structures=[str(copper)])
    logged = set(curves["student-12x8x1"])
    assert {"train forces_rmse", "valid forces_rmse", "valid atomic_energies_rmse"} <= logged
    assert len(curves["teacher"]["valid forces_rmse"]["epochs"]) == 2  # 500 x 0.004

    script, crystal = load("large_cells"), tmp_path / "crystal.extxyz"
    ase.io.write(crystal, bulk("Cu", cubic=True))
    model = f"hippynn folder={tmp_path / 'student-12x8x1' / 'seed0' / 'model'} device=cpu"
    words = [model, "--crystal", str(crystal), "--steps", "20", "--memory", "0.01"]
    words += ["--repeats", "4", "3", "3", "--out", str(tmp_path / "cells.json")]
    monkeypatch.setattr(sys, "argv", ["large_cells.py", *words])
    script.main()
    found = json.loads((tmp_path / "cells.json").read_text())
    assert found["atoms"] == 4 * 36 and found["microseconds_per_atom"] > 0
    assert found["largest_cell"] % 36 == 0
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert 4 * 30 * 20 * 20 == 48000 and "--repeats 30 20 20" in readme
    assert found["bytes_per_atom"] * found["largest_cell"] == pytest.approx(0.01 * 2**30)


def test_initial_weights_are_the_controls_and_not_the_teachers(
    copper: Path, tmp_path: Path
) -> None:
    """At one size: a learning rate of 0 keeps them."""
    few = {"structures": [str(copper)], "learning_rate": 0.0, "scale": 0.002}
    arms = ("teacher", "control_10-128x40x4", "student-128x40x4")
    dry_run("copper.yml", arms, tmp_path, **few)
    teacher, control, student = (weights(tmp_path, arm) for arm in arms)
    assert control.keys() == teacher.keys()
    assert all(torch.equal(tensor, student[name]) for name, tensor in control.items())
    assert not all(torch.equal(tensor, teacher[name]) for name, tensor in control.items())


def test_born_again_runs_through_table_1(copper: Path, tmp_path: Path) -> None:
    """Though a patience of one epoch could end it before."""
    few = {"structures": [str(copper)], "scale": 0.02}
    arms = ("teacher", "born_again")
    curves = dry_run("copper_born_again.yml", arms, tmp_path, **few)
    epochs = curves["born_again"]["valid forces_rmse"]["epochs"]
    assert 9 <= len(epochs) <= 10  # Table 1 ends at epoch 400 x 0.02, training at 500 x 0.02


def test_forces_without_labels_are_learned_from_a_teacher_that_has_seen_them(
    copper: Path, tmp_path: Path
) -> None:
    arms = ("teacher", "teacher_seen", "student", "forces_seen")
    curves = dry_run("copper_no_forces.yml", arms, tmp_path, structures=[str(copper)])
    assert "valid teacher_forces_rmse" in curves["forces_seen"]
    assert "valid atomic_energies_rmse" in curves["student"]
    # The teacher of `student` is judged by energies alone, that of the others by forces, too.
    for arm, only in (("teacher", True), ("teacher_seen", False)):
        of_arm = {name: curve["values"][0] for name, curve in curves[arm].items()}
        energies = of_arm["valid energy_rmse"] + of_arm["valid energy_mae"]
        assert (of_arm["valid judged"] == pytest.approx(energies)) == only


def test_scarce_labels_with_a_pool_that_the_same_scarce_teacher_labels(
    copper: Path, pool: Path, tmp_path: Path, capsys: Any
) -> None:
    few = {"structures": [str(copper)]}
    dry_run("copper_scarce.yml", ["teacher-0.5"], tmp_path, **few)
    dry_run("copper_scarce.yml", ["student_pool-0.5"], tmp_path, **few, pool=str(pool))
    row = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("train "))
    assert row.split()[1] == "7"  # half of the 8 that are no validation, and the pool


def test_stopped_training_goes_on_as_an_uninterrupted_one(copper: Path, tmp_path: Path) -> None:
    script, experiment = load("train"), read_experiment(RECIPE / "copper.yml")
    few: dict[str, Any] = {"structures": [str(copper)]}
    few["epochs"] = {"max": 13, "halve_after": 4, "stop_after": 13, "scale": 1}
    script.train(settings_of(experiment, "control_10-12x8x1", tmp_path / "whole", **few))
    stopped = settings_of(experiment, "control_10-12x8x1", tmp_path / "stopped", **few)
    folder = Path(stopped["out"]) / "training"
    for path in (tmp_path / "whole" / "control_10-12x8x1" / "seed0" / "training").iterdir():
        if path.name in ("experiment_structure.pt", "checkpoint_epoch_10.pt"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(path.read_bytes())
    assert len(list(folder.iterdir())) == 2
    (folder / "checkpoint_epoch_20.pt").write_bytes(b"cut by a kill")
    script.train(stopped)
    whole, resumed = (
        weights(tmp_path / name, "control_10-12x8x1") for name in ("whole", "stopped")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("misspelt", ["shares", "epochs.halve_after_epochs"])
def test_a_misspelt_setting_is_refused_before_anything_is_read(
    tmp_path: Path, misspelt: str
) -> None:
    experiment = read_experiment(RECIPE / "copper.yml")
    settings = settings_of(experiment, "teacher", tmp_path, structures=["nowhere.xyz"])
    inner = settings["epochs"] if "." in misspelt else settings
    inner[misspelt.rpartition(".")[2]] = 0.5
    with pytest.raises(SystemExit, match=rf"unknown are \['{misspelt.rpartition('.')[2]}'\]"):
        load("train").train(settings)


# --- The papers' numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copper.yml", "molybdenum.yml", "ani_al.yml"])
def test_the_protocol_is_the_papers(name: str) -> None:
    """A.1: only data, cutoff, and the scale of all epochs are our own."""
    experiment = read_experiment(RECIPE / name)
    script, found = load("train"), {}
    for arm in ("teacher", "control_10-12x8x1", "control_30-12x8x1", "student-12x8x1"):
        swept = experiment.swept_arms[arm]
        settings = HOSTS["script"].settings(
            Path(experiment.base), {**experiment.settings, **swept.changes}
        )
        given = script.loss_weights(settings, 1, 0)
        found[arm] = {term: weight for term, weight in given.items() if weight}
        assert settings["learning_rate"] == 0.001
        epochs = {key: value for key, value in settings["epochs"].items() if key != "scale"}
        assert epochs == {"max": 500, "halve_after": 30, "stop_after": 50}
        assert (settings["epochs"]["scale"] == 1) == (name in PAPERS_OWN)
    assert found["teacher"] == found["control_10-12x8x1"] == dict(CONTROL)
    assert found["control_30-12x8x1"] == {**CONTROL, "forces": 30}
    assert found["student-12x8x1"] == dict(STUDENT)

    model = {**experiment.settings["model"]}
    keys = ("n_features", "n_sensitivities", "n_atom_layers")
    sizes = [tuple(p[f"model.{k}"] for k in keys) for p in experiment.sweep["size"].values()]
    assert len(sizes) >= 4 and sizes[0] == (12, 8, 1) and sizes[-1] == (128, 40, 4)
    assert tuple(experiment.arms["teacher"][f"model.{key}"] for key in keys) == (128, 40, 4)
    cutoffs = [model[f"dist_{key}"] for key in ("soft_min", "soft_max", "hard_max")]
    assert cutoffs == ([1.5, 7.0, 7.5] if name in PAPERS_OWN else [1.5, 4.5, 5.0])
    assert len(experiment.seeds) == 4


@pytest.mark.parametrize("name", ["copper_born_again.yml", "ani_al_born_again.yml"])
def test_born_again_has_table_1_and_ends_with_its_teachers_weights(name: str) -> None:
    script, experiment = load("train"), read_experiment(RECIPE / name)
    arms = {}
    for arm, swept in experiment.swept_arms.items():
        settings = HOSTS["script"].settings(
            Path(experiment.base), {**experiment.settings, **swept.changes}
        )
        settings["epochs"]["scale"] = 1
        arms[arm] = script.loss_weights(settings, 1, 0)
    for term, schedule in BORN_AGAIN.items():
        ours = arms["born_again"][term]
        if isinstance(schedule, float):
            assert ours == schedule
            continue
        assert [ours(epoch) for epoch in range(500)] == [schedule(epoch) for epoch in range(500)]
        assert ours(399) == arms["teacher"][term]
    assert arms["teacher_10"] == {**arms["teacher"], "forces": 10}
    assert experiment.arms["teacher"]["seed_shift"] != experiment.settings["seed_shift"]


@pytest.mark.parametrize("name", ["", "_born_again", "_no_forces", "_scarce"])
def test_molybdenum_is_as_copper_but_for_the_metal(name: str) -> None:
    ours, theirs = (
        yaml.safe_load((RECIPE / f"{metal}{name}.yml").read_text())
        for metal in ("molybdenum", "copper")
    )
    different = [key for key, value in ours["settings"].items() if value != theirs["settings"][key]]
    assert different == ["structures", "validation", "batch_size"]
    others = [key for key in ours if key not in ("title", "settings", "measure", "arms")]
    assert [ours[key] for key in others] == [theirs[key] for key in others]
    text = yaml.safe_dump(theirs["arms"]).replace("copper", "molybdenum")
    assert yaml.safe_dump(ours["arms"]) == text


def test_who_teaches_has_seen_no_more_labels_unless_its_students_name_says_so() -> None:
    """Same share and terms; the arms of others are called seen or all."""
    for name in ("copper_no_forces.yml", "copper_scarce.yml"):
        experiment = read_experiment(RECIPE / name)
        for arm, swept in experiment.swept_arms.items():
            settings = {**experiment.settings, **swept.changes}
            if settings["teacher"] is None:
                continue
            teacher = fill_fields(settings["teacher"], {"runs": "", "seed": 0, **swept.point})
            taught = experiment.swept_arms[teacher.split("/")[1]]
            seen = {**experiment.settings, **taught.changes}
            more = seen["share"] > settings["share"] or bool(seen.get("loss.forces", 10)) > bool(
                settings.get("loss.forces", 10)
            )
            assert more == swept.arm.endswith(("_seen", "_all")), arm


def test_shares_are_nested_and_teacher_and_student_draw_the_same(copper: Path) -> None:
    script = load("train")
    few = {"structures": [str(copper)], "validation": {"size": 2, "seed": 0}, "pool": None}
    draws = {
        (share, seed): {
            part: {one.structure_id for one in structures}
            for part, structures in script.split({**few, "share": share, "seed": seed}).items()
        }
        for share in (0.25, 0.5, 1)
        for seed in (0, 1)
    }
    assert draws[0.25, 0]["train"] < draws[0.5, 0]["train"] < draws[1, 0]["train"]
    assert draws[0.5, 0]["train"] != draws[0.5, 1]["train"]
    assert len({frozenset(one["valid"]) for one in draws.values()}) == 1
    assert not draws[1, 0]["valid"] & draws[1, 0]["train"]


# --- ANI-Al -------------------------------------------------------------------------------------


def group_arrays(symbol: str = "Al", count: int = 6) -> dict[str, np.ndarray]:
    """Return a group of cells in the layout and units of the release: Hartree, per Å."""
    cells = rattled(symbol, count)
    return {
        "species": np.array([symbol.encode()] * 4),
        "coordinates": np.stack([one.positions for one in cells]),
        "cell": np.stack([one.cell.array for one in cells]),
        "energy": np.array([one.get_potential_energy() for one in cells]) / units.Hartree,
        "force": np.stack([one.get_forces() for one in cells]) / units.Hartree,
    }


def test_ani_al_from_the_releases_layout_to_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's commands on files that are written as the release's are."""
    h5py = pytest.importorskip("h5py")
    for name, place in (("data-0", "al/a"), ("data-1", "b")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for key, value in group_arrays().items():
                file.create_dataset(f"{place}/{key}", data=value)

    words = [str(tmp_path / "data-0.h5"), str(tmp_path / "data-1.h5"), "--out", str(tmp_path)]
    words += ["--energy-unit", "Hartree", "--forces-are", "forces", "--test", "4"]
    monkeypatch.setattr(sys, "argv", ["ani_al.py", *words])
    load("ani_al").main()
    train, test = (list(read_structures([tmp_path / f"{n}.extxyz"])) for n in ("train", "test"))
    assert len(train) == 8 and len(test) == 4
    expected = rattled("Al", 6)
    for one in (*train, *test):
        assert one.structure_id.startswith(("data-0/al/a:", "data-1/b:"))
        atoms = expected[int(one.structure_id.rpartition(":")[2])]
        assert one.labels["energy"] == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(one.labels["forces"], atoms.get_forces(), atol=1e-7)

    script, out = load("train"), tmp_path / "runs"
    for name, arm in (("ani_al.yml", "teacher"), ("ani_al_born_again.yml", "born_again")):
        few = {"structures": [str(tmp_path / "train.extxyz")], "scale": 0.02}
        settings = settings_of(read_experiment(RECIPE / name), arm, out, **few)
        assert settings["model"]["dist_hard_max"] == 7.5
        script.train(settings)
        assert (out / arm / "seed0" / "model" / "best_model.pt").is_file()


def test_ani_al_has_the_convention_that_the_command_names() -> None:
    script, arrays = load("ani_al"), group_arrays(count=2)
    plain, other = (
        list(script.to_structures("data/a", arrays, *words))
        for words in (("eV", "forces"), ("Hartree", "gradient"))
    )
    assert [one.structure_id for one in plain] == ["data/a:0", "data/a:1"]
    for index, (one, converted) in enumerate(zip(plain, other, strict=True)):
        assert one.atoms.get_chemical_symbols() == ["Al"] * 4 and one.atoms.pbc.all()
        assert one.labels["energy"].shape == () and one.labels["energy"].dtype == np.float64
        assert np.array_equal(one.labels["forces"], arrays["force"][index])
        assert converted.labels["energy"] == arrays["energy"][index] * units.Hartree
        assert np.array_equal(converted.labels["forces"], -arrays["force"][index] * units.Hartree)


def test_ani_al_refuses_what_does_not_fit() -> None:
    script, arrays = load("ani_al"), group_arrays(count=2)
    arrays["forces"] = arrays.pop("force")
    with pytest.raises(SystemExit, match=r"data/a: expected .*force, got .*forces; rename or add"):
        list(script.to_structures("data/a", arrays, "eV", "forces"))
    arrays["force"] = arrays["forces"][:, :2]
    with pytest.raises(SystemExit, match=r"force has shape \(2, 2, 3\), expected \(2, 4, 3\)"):
        list(script.to_structures("data/a", arrays, "eV", "forces"))
