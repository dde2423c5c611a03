"""The recipe of Matin et al. 2025 through its own commands, on a few steps."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from ase import units

from kd_plugins.cli import main
from tests.hosts import in_one_environment
from tests.house import ROOT

pytest.importorskip("hippynn")
RECIPE = ROOT / "recipes" / "hippynn_metals"
pytestmark = pytest.mark.slow


def run(name: str, *words: object) -> str:
    """Run one of the recipe's commands, and return what it prints."""
    command = [sys.executable, "-W", "ignore", str(RECIPE / f"{name}.py"), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def refused(name: str, *words: object) -> str:
    """Run a command that must end with a message, and return that."""
    command = [sys.executable, "-W", "ignore", str(RECIPE / f"{name}.py"), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr[-2000:]
    return found.stderr


def melt(out: Path, models: tuple[str, ...], seeds: str) -> None:
    """Run dynamics.py with liquids of a few steps."""
    words = ["dynamics.py", "--out", str(out), "--models", *models, "--velocity-seeds", *seeds]
    few = "liquid.MELTING = dynamics.EQUILIBRATION = 5; dynamics.STEPS = 20"
    code = f"import sys, dynamics, liquid; sys.argv = {words}; {few}; dynamics.main()"
    settings = {**os.environ, "PYTHONPATH": str(RECIPE)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, env=settings)
    assert found.returncode == 0, found.stderr[-2000:]


@in_one_environment
def test_from_structures_to_tables(tmp_path: Path, shared_file: Callable[[str], Path]) -> None:
    """A teacher, control and students; a second call trains nothing again."""
    settings = yaml.safe_load((RECIPE / "study.yml").read_text())
    settings |= {"steps": 40, "validation": 8}
    (tmp_path / "few.yml").write_text(yaml.safe_dump(settings))
    data, out = shared_file("metals/mlearn_Mo_test.extxyz.xz").parent, tmp_path / "mo"
    words = ("--data", data, "--out", out, "--settings", tmp_path / "few.yml")
    words = (*words, "--seeds", 0, "--shares", 0.1)
    methods = ("control_10", "student_early", "student_extra", "energies_both")
    run("train", *words, "--methods", *methods)
    records = {path.parent.name: path for path in out.glob("runs/*/record.json")}
    assert sorted(records) == sorted(
        [*(f"{name}-tiny-0.1-seed0" for name in methods), "teacher-large-1-seed0"]
    )
    times = {name: path.stat().st_mtime_ns for name, path in records.items()}
    run("train", *words, "--methods", *methods)
    assert times == {name: path.stat().st_mtime_ns for name, path in records.items()}
    small = "control_10-tiny-0.1-seed0"
    held = {name: json.loads(path.read_text()) for name, path in records.items()}
    assert held["student_extra-tiny-0.1-seed0"]["structures"] == 3 * 19
    assert (
        held["teacher-large-1-seed0"]["weights"] > 10 * held["control_10-tiny-0.1-seed0"]["weights"]
    )
    models = ("teacher-large-1-seed0", small)
    run("dynamics", "--out", out, "--models", *models, "--repeats", 3, "--no-liquid")
    costs = [json.loads((out / "dynamics" / f"{m}.json").read_text())["costs"][0] for m in models]
    assert costs[0]["bytes"] > costs[1]["bytes"] > 0
    melt(out, models[:1], "01")
    melt(out, models, "0")
    held = [json.loads((out / "dynamics" / f"{m}.json").read_text()) for m in models]
    assert held[0]["costs"][0] == costs[0]
    assert [[one["velocity_seed"] for one in h["liquids"]] for h in held] == [[0, 1], [0]]
    for name in ("weights", "curves", "pareto", "rdf"):
        run("figures", "--out", out, "--only", name)
        assert (out / "figures" / f"{name}.svg").stat().st_size > 10000
    text = run("report", "--out", out)
    assert "| teacher-large-1-seed0 | 39" in text and "| 1.00 |" in text
    assert "| student_extra | control_10 | tiny | 0.1 | 1 |" in text
    assert (out / "tables.md").read_text().strip() == text.strip()
    compared(tmp_path, data, out)


def compared(folder: Path, data: Path, study: Path) -> None:
    """Give three runs of a study that are there to compare."""
    experiment = yaml.safe_load((RECIPE / "compare.yml").read_text())
    few = {"study": str(study), "data": str(data), "settings": str(folder / "few.yml")}
    experiment["settings"] |= {**few, "share": 0.1}
    arms = {name: experiment["arms"][name] for name in ("teacher", "control_10")}
    arms["teacher"]["share"] = 1
    arms["student_extra"] = {"method": "student_extra"}
    liquid = {"structure": str(study / "liquids" / "seed0.extxyz"), "steps": 0, "repeats": [1]}
    measure = {"structures": [str(data / "mlearn_Mo_test.extxyz.xz")]}
    measure["dynamics"] = {**experiment["measure"]["dynamics"], **liquid}
    experiment |= {"arms": arms, "seeds": [0], "measure": measure}
    experiment["base"] = str(RECIPE / "compare_run.py")
    (folder / "compare.yml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    out = folder / "compared"
    assert main(["compare", str(folder / "compare.yml"), "--out", str(out)]) == 0
    control, teacher = (out / "runs" / arm / "seed0" for arm in ("control_10", "teacher"))
    control = json.loads((control / "evaluation.json").read_text())
    record = json.loads((study / "runs" / "control_10-tiny-0.1-seed0" / "record.json").read_text())
    assert control["train_seconds"] == record["seconds"]
    rmse = pytest.approx(record["errors"]["test"]["force_rmse"], rel=1e-3)
    assert control["metrics"]["force_rmse"] == rmse
    assert control["metrics"]["speedup"] > 1
    assert (teacher / "trained.json").is_file() and not (teacher / "evaluation.json").exists()


ERRORS = {"teacher": 0.3, "control_10": 0.5, "control_30": 0.4, "student": 0.45}


def made_up(out: Path) -> None:
    """Write a study's records, without training: two seeds of each, one of liquids."""
    settings = yaml.safe_load((RECIPE / "study.yml").read_text())
    (out / "dynamics").mkdir(parents=True)
    (out / "study.json").write_text(json.dumps({"settings": settings, "data": "nowhere"}))
    for method, error in ERRORS.items():
        size = "large" if method == "teacher" else "tiny"
        for seed in (1, 0):
            run = {"method": method, "size": size, "share": 1.0, "seed": seed}
            both = {"force_rmse": error * (1 + 0.1 * seed), "energy_rmse": error / 5}
            run |= {"weights": 100, "curve": [2.0, 1.0, error]}
            run |= {"errors": dict.fromkeys(("train", "valid", "test"), both)}
            folder = out / "runs" / f"{method}-{size}-1-seed{seed}"
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(json.dumps(run))
        costs = [{"atoms": n, "microseconds": 1000 * error + n, "bytes": 1e6} for n in (2, 0)]
        liquids = [
            {"velocity_seed": n, "distances": [1.0, 3.0], "values": [0, error + n], "drift": 0.5}
            for n in range(2)
        ]
        record = {"costs": costs, "liquids": liquids}
        (out / "dynamics" / f"{method}-{size}-1-seed0.json").write_text(json.dumps(record))


def numbers(out: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of a figure's table."""
    with (out / "figures" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_figures_of_known_records(tmp_path: Path) -> None:
    """Every figure, its numbers, and the same bytes again."""
    made_up(tmp_path)
    run("figures", "--out", tmp_path)
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    names = ("curves", "map", "pareto", "rdf", "weights")
    assert sorted(drawn) == sorted(f"{n}.{end}" for n in names for end in ("png", "svg", "csv"))
    run("figures", "--out", tmp_path)
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    found = {(row["control"], row["error"]): row for row in numbers(tmp_path, "map")}
    assert float(found["control_10", "force_rmse"]["mean"]) == pytest.approx(-10)
    assert float(found["control_30", "energy_rmse"]["half"]) == pytest.approx(0, abs=1e-9)
    pareto = {row["method"]: row for row in numbers(tmp_path, "pareto")}
    assert float(pareto["student"]["microseconds"]) == pytest.approx(452)
    assert float(pareto["student"]["mean"]) == pytest.approx(1.05 * 450)
    liquids = {row["method"]: float(row["distance"]) for row in numbers(tmp_path, "rdf")}
    assert liquids["teacher"] == pytest.approx(2.0)
    assert liquids["control_10"] == pytest.approx(1.2 + 0.8)
    assert [row["median"] for row in numbers(tmp_path, "curves")][:2] == ["2000.0", "1000.0"]


def test_tables_of_known_records(tmp_path: Path) -> None:
    """Methods in their file's order, and dynamics relative to the teacher."""
    made_up(tmp_path)
    lines = run("report", "--out", tmp_path).splitlines()
    found = [line.split(" | ")[0][2:] for line in lines if " | 1 | 2 | " in line]
    assert found[:3] == ["control_10", "control_30", "student"] and "teacher" in found
    row = next(line for line in lines if line.startswith("| student-tiny-1-seed0"))
    assert "| student | tiny | 1 | 2 |" in lines and "| teacher | large | 1 | 2 |" in lines
    assert row.split(" | ")[2:] == ["452", "1.50", "1e+03", "1.00", "+0.50", "2.000", "2.000 |"]


def test_figures_say_what_they_miss(tmp_path: Path) -> None:
    """One message, with the command that mends it."""
    made_up(tmp_path)
    for path in (tmp_path / "dynamics").iterdir():
        path.unlink()
    said = refused("figures", "--out", tmp_path)
    assert "expected times of models" in said and "dynamics.py --out" in said
    assert (tmp_path / "figures" / "map.png").is_file()
    assert "velocity-seeds" in refused("figures", "--out", tmp_path, "--only", "rdf")
    for path in tmp_path.glob("runs/student-*/record.json"):
        path.unlink()
    said = refused("figures", "--out", tmp_path, "--only", "map")
    assert "expected a student and a control" in said and "train.py" in said


@pytest.fixture(scope="module")
def ani_al() -> ModuleType:
    """The recipe's reader, under a name of its own."""
    spec = importlib.util.spec_from_file_location("hippynn_metals_ani_al", RECIPE / "ani_al.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def group_arrays() -> dict[str, np.ndarray]:
    """A group of two cells of three atoms."""
    generator = np.random.default_rng(0)
    return {
        "species": np.array([b"Al", b"Al", b"Cu"]),
        "coordinates": generator.normal(size=(2, 3, 3)),
        "cell": np.stack([4.0 * np.eye(3), 5.0 * np.eye(3)]),
        "energy": np.array([-2.5, -2.25]),
        "force": generator.normal(size=(2, 3, 3)),
    }


def test_ani_al_has_the_units_that_the_study_says(ani_al: ModuleType) -> None:
    arrays = group_arrays()
    plain, other = (
        list(ani_al.to_frames("data/a", arrays, ani_al.Convention(*words)))
        for words in (("eV", "forces"), ("Hartree", "gradient"))
    )
    assert [frame.structure_id for frame in plain] == ["data/a:0", "data/a:1"]
    for index, (frame, converted) in enumerate(zip(plain, other, strict=True)):
        assert frame.atoms.get_chemical_symbols() == ["Al", "Al", "Cu"] and frame.atoms.pbc.all()
        assert np.array_equal(frame.atoms.positions, arrays["coordinates"][index])
        assert np.array_equal(frame.atoms.cell.array, arrays["cell"][index])
        assert frame.labels["energy"].shape == () and frame.labels["energy"].dtype == np.float64
        assert frame.labels["energy"] == arrays["energy"][index]
        assert np.array_equal(frame.labels["forces"], arrays["force"][index])
        assert converted.labels["energy"] == arrays["energy"][index] * units.Hartree
        assert np.array_equal(converted.labels["forces"], -arrays["force"][index] * units.Hartree)


def test_ani_al_refuses_what_does_not_fit(ani_al: ModuleType, tmp_path: Path) -> None:
    convention, arrays = ani_al.Convention("eV", "forces"), group_arrays()
    arrays["forces"] = arrays.pop("force")
    with pytest.raises(SystemExit, match=r"data/a: expected .*force, got .*forces; rename or add"):
        list(ani_al.to_frames("data/a", arrays, convention))
    arrays["force"] = arrays["forces"][:, :2]
    with pytest.raises(SystemExit, match=r"force has shape \(2, 2, 3\), expected \(2, 3, 3\)"):
        list(ani_al.to_frames("data/a", arrays, convention))
    with pytest.raises(SystemExit, match="energy_unit: Hartree or eV"):
        list(ani_al.read_ani_al(tmp_path, None))
    with pytest.raises(SystemExit, match="expected .h5 files, got none"):
        list(ani_al.read_ani_al(tmp_path, convention))


def test_ani_al_reads_groups_of_any_depth(ani_al: ModuleType, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    arrays = group_arrays()
    for name, place in (("one", "al/a"), ("two", "b")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for key, value in arrays.items():
                file.create_dataset(f"{place}/{key}", data=value)
    found = list(ani_al.read_ani_al(tmp_path, ani_al.Convention("eV", "forces")))
    assert [one.structure_id for one in found] == [
        *("one/al/a:0", "one/al/a:1", "two/b:0", "two/b:1")
    ]
    assert np.array_equal(found[3].labels["forces"], arrays["force"][1])
    assert np.array_equal(found[2].atoms.positions, arrays["coordinates"][0])


def test_copper_is_as_molybdenum_but_for_the_metal() -> None:
    ours, theirs = (
        yaml.safe_load((RECIPE / name).read_text()) for name in ("copper.yml", "study.yml")
    )
    assert ours.keys() == theirs.keys()
    same = {key for key in ours if ours[key] == theirs[key]}
    assert same == {"split_seed", "cutoffs", "steps", "sizes"}


def test_the_papers_numbers_are_in_the_methods() -> None:
    """A.1 and Table 1."""
    methods = yaml.safe_load((RECIPE / "methods.yml").read_text())
    assert methods["control_10"] == {"energy": 1, "forces": 10}
    assert methods["student"]["forces"] == 30 and methods["student"]["atomic_energies"] == 100
    rows = methods["born_again"]
    assert [weight for _, weight in rows["atomic_energies"]] == [200, 160, 120, 80, 40, 0]
    assert [weight for _, weight in rows["forces"]] == [75, 63, 51, 39, 27, 15]
    assert [share for share, _ in rows["energy"]] == [0, 0.4, 0.5, 0.6, 0.7, 0.8]
