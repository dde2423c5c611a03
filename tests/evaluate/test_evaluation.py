"""One potential measured from the command line, beside labels and a teacher."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write

from kd_plugins.cli import main
from kd_plugins.evaluate.evaluator import Evaluator
from kd_plugins.evaluate.measurements import crystal_files
from kd_plugins.evaluate.requirements import Requirement, faults
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, EvaluationSettings

SOFTER = "tests.evaluate.calculators:softer"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Labelled copper, a cell to move and a crystal to relax."""
    folder, frames = tmp_path_factory.mktemp("copper"), []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        said = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **said)
        atoms.info["structure_id"] = f"cu/{seed}"
        frames.append(atoms)
    write(folder / "labelled.extxyz", frames)
    write(folder / "cell.extxyz", bulk("Cu", cubic=True) * (3, 3, 3))
    write(folder / "crystal.extxyz", bulk("Cu", cubic=True, a=3.7))
    return {name: str(folder / f"{name}.extxyz") for name in ("labelled", "cell", "crystal")}


def evaluate(files: dict[str, str], out: Path, *words: object, student: str = "emt") -> int:
    """Measure a student beside EMT."""
    given = ["--student", student, "--teacher", "emt", "--out", out]
    return main([str(word) for word in ("evaluate", *given, *words)])


def everything(files: dict[str, str]) -> list[object]:
    """All that can be measured."""
    dynamics = ["--dynamics", files["cell"], "--steps", 40, "--repeats", 1, "--cutoff", 5]
    crystals = ["--crystals", files["crystal"], "--elasticity"]
    return ["--reference", files["labelled"], *dynamics, *crystals]


def test_forces_on_held_atoms_do_not_count(files: dict[str, str], tmp_path: Path) -> None:
    """Their labels are whatever the potential of the labels says, and no student is to learn it."""
    frames = read(files["labelled"], ":")
    for atoms in frames:
        said = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().copy()}
        said["forces"][:2] += 100
        atoms.calc = SinglePointCalculator(atoms, **said)
        atoms.set_constraint(FixAtoms([0, 1]))
    write(tmp_path / "held.extxyz", frames)
    assert evaluate(files, tmp_path / "out", "--reference", tmp_path / "held.extxyz") == 0
    one = found(tmp_path / "out")
    assert one["metrics"]["force_rmse"] == pytest.approx(0, abs=1e-6)
    assert one["metrics"]["teacher_force_rmse"] == 0
    assert len(one["parity"]["labels"]["forces"]["student"]) == 3 * 3 * 6


def test_runs_start_at_their_temperature(files: dict[str, str], tmp_path: Path) -> None:
    """Without equilibration a crystal keeps half of it; alike for teacher and student."""
    words = ["--dynamics", files["cell"], "--temperature", 400, "--steps", 100, "--repeats", 1]
    words += ["--cutoff", 5]
    kept = {}
    for steps in (0, 150):
        out = tmp_path / str(steps)
        assert evaluate(files, out, *words, "--equilibration", steps) == 0
        runs = [out / "student" / f"run-{seed}.json" for seed in (0, 1)]
        kept[steps] = np.mean([json.loads(path.read_text())["temperature"] for path in runs])
        assert found(out)["metrics"]["rdf_distance"] == 0
    assert kept[0] < 260 < 300 < kept[150], kept


def found(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())


def test_a_teacher_is_its_own_best_student(files: dict[str, str], tmp_path: Path) -> None:
    assert evaluate(files, tmp_path, *everything(files)) == 0
    one = found(tmp_path)
    metrics = one["metrics"]
    errors = [name for name in metrics if name.endswith(("_mae", "_rmse"))]
    assert {"force_rmse", "energy_per_atom_mae", "teacher_stress_rmse"} <= set(errors)
    assert [metrics[name] for name in errors] == pytest.approx([0] * len(errors), abs=1e-6)
    assert metrics["force_cosine"] == pytest.approx(1)
    assert metrics["teacher_force_cosine"] == pytest.approx(1)
    assert metrics["rdf_distance"] == 0 < one["rdf"]["floor"]
    assert metrics["teacher_volume_error_percent"] == 0
    assert metrics["volume_error_percent"] > 3
    assert metrics["unrelaxed_crystals"] == 0
    assert "bytes_per_atom" not in metrics  # EMT has no tensors
    assert one["teacher"]["drift"] == metrics["drift"]
    assert set(one["teacher"]) == {"drift", "microseconds_per_atom", "nanoseconds_per_day"}
    modulus = one["elasticity"]["crystal"]["student"]["young"]
    assert modulus == one["elasticity"]["crystal"]["teacher"]["young"] > 50
    pairs = one["parity"]["labels"]["forces"]
    assert len(pairs["student"]) == 3 * 3 * 8
    assert pairs["student"] == pytest.approx(pairs["reference"], abs=1e-6)


def test_what_did_not_relax_counts_and_is_named(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Were its volume left out, a student that fails would look better than one that does not."""
    hot = read(files["crystal"])
    hot.positions[0] = hot.positions[1] + 0.05
    write(tmp_path / "hot.extxyz", hot)
    words = ["--crystals", files["crystal"], tmp_path / "hot.extxyz"]
    assert evaluate(files, tmp_path / "out", *words, "--require", "unrelaxed_crystals<1") == 1
    one, said = found(tmp_path / "out"), capsys.readouterr().err
    (reason,) = {*one["volumes"]["hot"]["failures"].values()}
    assert one["volumes"]["crystal"]["failures"] == {}
    assert f"not relaxed: hot by the student: {reason}" in said
    assert f"not relaxed: hot by the teacher: {reason}" in said
    assert "not accepted: unrelaxed_crystals is 1" in said
    volumes = one["volumes"].values()
    errors = [100 * abs(each["student"] / each["reference"] - 1) for each in volumes]
    assert one["metrics"]["volume_error_percent"] == pytest.approx(np.mean(errors))
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "out"), "-o", str(page)]) == 0
    assert f"Not relaxed, counted as it was left: student on hot ({reason})" in page.read_text()


def test_another_potential_is_further_away(files: dict[str, str], tmp_path: Path) -> None:
    assert evaluate(files, tmp_path, "--reference", files["labelled"], student=SOFTER) == 0
    metrics = found(tmp_path)["metrics"]
    forces = np.concatenate(_forces(files))
    expected = 0.1 * np.sqrt(np.square(forces).mean())
    assert metrics["force_rmse"] == pytest.approx(expected, rel=1e-5)
    assert metrics["teacher_force_rmse"] == pytest.approx(expected, rel=1e-5)


def _forces(files: dict[str, str]) -> list[np.ndarray]:
    from kd_plugins.structures import read_structures

    return [frame.labels["forces"] for frame in read_structures([files["labelled"]])]


def test_a_label_that_some_lack_is_not_compared_and_that_is_said(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rather than on those that have it, which would be other structures than for the rest."""
    frames = read(files["labelled"], ":")
    frames[1].calc = SinglePointCalculator(frames[1], energy=frames[1].get_potential_energy())
    write(tmp_path / "some.extxyz", frames)
    assert evaluate(files, tmp_path / "out", "--reference", tmp_path / "some.extxyz") == 0
    assert "forces is not compared: 1 of 3 structures lack it" in caplog.text
    metrics = found(tmp_path / "out")["metrics"]
    assert "energy_per_atom_rmse" in metrics and "force_rmse" not in metrics


def test_what_is_measured_is_not_measured_again(files: dict[str, str], tmp_path: Path) -> None:
    words = ["--dynamics", files["cell"], "--repeats", 1]
    assert evaluate(files, tmp_path, *words) == 0
    first = (tmp_path / "evaluation.json").read_text()
    assert evaluate(files, tmp_path, *words) == 0
    assert (tmp_path / "evaluation.json").read_text() == first


def test_a_killed_measurement_goes_on(files: dict[str, str], tmp_path: Path) -> None:
    words = [str(word) for word in (*everything(files)[:-1], "--out", tmp_path)]
    code = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "evaluate", "--student", "emt", *words]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "student" / "speed-1.json").is_file() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    speed = (tmp_path / "student" / "speed-1.json").read_text()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert json.loads(speed)["microseconds"] == found(tmp_path)["metrics"]["microseconds_per_atom"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_is_of_one_potential_and_one_plan(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--reference", files["labelled"]]
    assert evaluate(files, tmp_path, *words) == 0
    assert evaluate(files, tmp_path, *words, student=SOFTER) == 2
    assert "measurements of another potential" in capsys.readouterr().err
    assert evaluate(files, tmp_path, *words, "--ids", "path") == 2
    assert "other settings, ids: 'auto' there, 'path' here" in capsys.readouterr().err
    cell = ["--dynamics", files["cell"], "--repeats", 1]
    assert evaluate(files, tmp_path, *cell, "--temperature", 300) == 0
    assert evaluate(files, tmp_path, *cell, "--temperature", 400) == 2
    assert "dynamics: temperature: 300.0 there, 400.0 here" in capsys.readouterr().err


def test_what_is_added_leaves_the_rest(files: dict[str, str], tmp_path: Path) -> None:
    """In any order, and for a teacher that comes later, which is then measured on all of it."""
    parts = (["--reference", files["labelled"]], ["--crystals", files["crystal"]])
    for out, (first, second) in (("one", parts), ("two", parts[::-1])):
        alone = ["evaluate", "--student", SOFTER, "--out", str(tmp_path / out), *first]
        assert main(alone) == 0
        assert evaluate(files, tmp_path / out, *second, student=SOFTER) == 0
    one, two = found(tmp_path / "one"), found(tmp_path / "two")
    assert one.pop("provenance")["command"] != two.pop("provenance")["command"]
    assert one == two
    assert {"teacher_force_rmse", "teacher_volume_error_percent"} <= one["metrics"].keys()


def test_structures_that_were_changed_are_noticed(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(files["cell"], tmp_path / "cell.extxyz")
    words = ["--dynamics", tmp_path / "cell.extxyz", "--repeats", 1]
    assert evaluate(files, tmp_path / "out", *words) == 0
    write(tmp_path / "cell.extxyz", read(files["cell"]) * (2, 1, 1))
    assert evaluate(files, tmp_path / "out", *words) == 2
    assert "cell.extxyz as it was before it was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bars", "code", "says"),
    [
        (["force_mae<0.05", "force_cosine >= 0.9"], 0, ""),
        (["force_mae>0.05"], 1, "force_mae is "),
        (["volume_error_percent<3"], 2, "'volume_error_percent', which needs crystals"),
        (["forces_mae<3"], 2, "did you mean 'force_mae'?"),
        (["stress_rmse<3"], 2, "which needs labels of stress"),
        (["teacher_stress_rmse<3"], 0, ""),
        (["rdf_distance<3"], 2, "which needs dynamics with steps"),
        (["force_mae=3"], 2, "expected a metric, one of < <= > >="),
        (["force_mae<x"], 2, "and a number"),
        (["force_mae<nan"], 2, "and a number"),
    ],
)
def test_the_gate(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bars: list[str],
    code: int,
    says: str,
) -> None:
    words = [word for bar in bars for word in ("--require", bar)]
    assert evaluate(files, tmp_path, "--reference", files["labelled"], *words) == code
    assert says in capsys.readouterr().err
    assert (tmp_path / "student").exists() == (code < 2)


def test_a_metric_that_is_no_number_clears_no_bar() -> None:
    assert faults(["drift<1"], {"drift": float("nan")}) == ["drift is nan; required: < 1"]
    assert Requirement.parse("drift<=1").fault({"drift": 1.0}) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to measure"),
        (["--reference", "no.xyz"], "no.xyz: no such file"),
        (["--dynamics", "no.xyz"], "no.xyz: no such file"),
        (["--reference", "molecule.xyz", "--crystals", "no.cif"], "no.cif: no such file"),
        (["--crystals", "molecule.xyz"], "molecule is not periodic in three directions"),
        (["--dynamics", "molecule.xyz"], "not periodic along its first lattice vector"),
        (["--dynamics", "two.xyz"], "two.xyz: expected one structure, got 2"),
        (["--dynamics", "cell.xyz", "--steps", 40], "cell.xyz: The cell is not large enough"),
        (["--dynamics", "cell.xyz", "--steps", 7], "dynamics.steps: expected 0, or 40 or more"),
        (["--dynamics", "cell.xyz", "--steps", -1], "dynamics.steps: expected a whole number"),
        (["--dynamics", "cell.xyz", "--cutoff", "nan"], "dynamics.cutoff: expected a number abov"),
        (["--dynamics", "cell.xyz", "--cutoff", "-3"], "dynamics.cutoff: expected a number above"),
        (["--dynamics", "cell.xyz", "--temperature", "inf"], "dynamics.temperature: expected a"),
        (["--dynamics", "cell.xyz", "--temperature", "nan"], "dynamics.temperature: expected a"),
        (["--dynamics", "cell.xyz", "--repeats", 0], "dynamics.repeats: expected a whole"),
        (["--dynamics", "cell.xyz", "--repeats", 1, 1], "dynamics.repeats: expected one or more"),
        (["--dynamics", "cell.xyz", "--repeats", 10**8], "dynamics.repeats: cell.xyz repeated"),
        (["--dynamics", "cell.xyz", "--equilibration", -1], "dynamics.equilibration: expected a"),
        (["--dynamics", ""], "dynamics.structure: expected a file, got ''"),
        (["--reference", "cell.xyz", "--steps", 100], "--steps needs --dynamics"),
        (["--reference", "cell.xyz", "--elasticity"], "--elasticity needs --crystals"),
        (["--reference", "two.xyz", "two.xyz"], "structures: expected each file once"),
        (["--crystals", "cell.xyz", "cell.xyz"], "crystals.structures: expected each file once"),
        (["--reference", "same.xyz"], "structures: two structures are called 'a/b'"),
        (["--crystals", "same.xyz"], "crystals: two structures are called 'a/b'"),
        (["--reference", "nan.xyz"], "the label energy of 'nan' is not finite"),
    ],
)
def test_bad_words(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    """Refused before anything is measured or written."""
    monkeypatch.chdir(tmp_path)
    write("molecule.xyz", molecule("H2O"))
    write("two.xyz", [bulk("Al", cubic=True)] * 2)
    write("cell.xyz", bulk("Al", cubic=True))
    same = [bulk("Al", cubic=True, a=a) for a in (4.0, 4.1)]
    for atoms in same:
        atoms.info["structure_id"] = "a/b"
    write("same.xyz", same)
    wrong = bulk("Al", cubic=True)
    wrong.calc = SinglePointCalculator(wrong, energy=float("nan"))
    write("nan.xyz", wrong)
    assert evaluate({}, tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither labels nor a teacher."""
    write(tmp_path / "cell.xyz", bulk("Al", cubic=True))
    words = ["evaluate", "--student", "emt", "--reference", str(tmp_path / "cell.xyz")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "cell.xyz: no energy, forces or stress that all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_crystal_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Whatever its name; else one's volume would pass for another's."""
    names = ["a/b", "a_b", "a//b", "a b", "../a", "ä", "x" * 300, "CON", "x" * 299 + "y"]
    frames = []
    for place, name in enumerate(names):
        atoms = bulk("Cu", cubic=True, a=3.5 + 0.01 * place)
        atoms.info["structure_id"] = name
        frames.append(atoms)
    write(tmp_path / "many.xyz", frames)
    out = tmp_path / "out"
    assert evaluate({}, out, "--crystals", tmp_path / "many.xyz") == 0
    volumes = found(out)["volumes"]
    assert {name: one["reference"] for name, one in volumes.items()} == {
        name: pytest.approx(atoms.get_volume()) for name, atoms in zip(names, frames, strict=True)
    }
    assert len(list((out / "student" / "crystals").iterdir())) == len(names)
    assert not (out / "student" / "a.json").exists()


def test_crystals_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Where their file can be of no other crystal."""
    for ids, files in (
        (["a/b", "c"], ["a_b.json", "c.json"]),
        (["a/b", "a_b"], ["a-b-c14cddc033f6.json", "a-b-648fa9b31bc7.json"]),
    ):
        (tmp_path / "a_b.json").write_text("{}")
        assert [path.name for path in crystal_files(tmp_path, ids).values()] == files


DAMAGES = {
    "empty": b"",
    "torn": b'{"a": ',
    "a list": b"[]",
    "another mapping": b"{}",
    "NaN": b'{"fingerprint": NaN}',
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b'{"a": ' + b"[" * 50_000,
    "long": b'{"a": ' + b"9" * 400 + b"}",
}


@pytest.fixture(scope="module")
def measured_once(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "out"
    assert main(["evaluate", "--student", "emt", "--out", str(out), *map(str, moved(files))]) == 0
    return out


def moved(files: dict[str, str]) -> list[object]:
    dynamics = ["--dynamics", files["cell"], "--steps", 40, "--repeats", 1, "--cutoff", 5]
    return [*dynamics, "--crystals", files["crystal"]]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["measured", "speed-1", "run-0", "crystals/crystal"])
def test_a_damaged_record_is_named(
    files: dict[str, str],
    measured_once: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: str,
) -> None:
    """With what to do; nothing is read from it, nothing written."""
    shutil.copytree(measured_once, tmp_path / "out")
    path = tmp_path / "out" / "student" / f"{name}.json"
    path.write_bytes(DAMAGES[damage])
    words = ["evaluate", "--student", "emt", "--out", str(tmp_path / "out")]
    assert main([*words, *map(str, moved(files))]) == 2
    said = capsys.readouterr().err
    assert f"error: {path}" in said and "remove" in said
    assert path.read_bytes() == DAMAGES[damage]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("measured", {"settings": []}, "settings: expected a mapping"),
        ("measured", {"files": 3}, "files: expected files"),
        ("measured", {"fingerprint": 3}, "fingerprint: expected a string"),
        ("speed-1", {"atoms": 0}, "expected atoms and bytes above 0"),
        ("speed-1", {"microseconds": -1}, "microseconds: expected a number above 0"),
        ("speed-1", {"bytes": "3"}, "bytes: expected a number"),
        ("run-0", {"values": [1.0]}, "expected as many distances as values"),
        ("run-0", {"values": "abc"}, "values: expected a list"),
        ("run-0", {"drift": None}, "drift: expected a number"),
        ("crystals/crystal", {"reference": 0}, "reference: expected a number above 0"),
        ("crystals/crystal", {"volume": "big"}, "volume: expected a number"),
        ("crystals/crystal", {"elasticity": [1]}, "elasticity: expected a mapping"),
        ("crystals/crystal", {"elasticity": {"bulk": 1}}, "shear: expected a number"),
        ("crystals/crystal", {"reason": 1}, "reason: expected a string"),
    ],
)
def test_a_record_of_another_type(
    files: dict[str, str],
    measured_once: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    changes: dict[str, Any],
    says: str,
) -> None:
    shutil.copytree(measured_once, tmp_path / "out")
    path = tmp_path / "out" / "student" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    words = ["evaluate", "--student", "emt", "--out", str(tmp_path / "out")]
    assert main([*words, *map(str, moved(files))]) == 2
    said = capsys.readouterr().err
    assert f"error: {path}" in said and says in said and "remove" in said


def test_an_element_that_a_potential_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In dynamics, whose calculators raise whatever they like."""
    write(tmp_path / "si.xyz", bulk("Si", cubic=True))
    words = ["evaluate", "--student", "emt", "--dynamics", str(tmp_path / "si.xyz")]
    assert main([*words, "--repeats", "1", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert re.search("error: emt fails in dynamics of .*si.xyz: NotImplementedError: .*Si", said)


def test_a_labeller_that_is_no_calculator_moves_nothing(
    files: dict[str, str], tmp_path: Path
) -> None:
    """It says so before anything is measured."""
    crystals = EvaluationSettings(crystals=CrystalSettings((files["crystal"],)))
    with pytest.raises(ValueError, match="is no ASE calculator, so there is no dynamics"):
        Evaluator("emt & emt", tmp_path / "out", crystals)
    assert not (tmp_path / "out").exists()


def test_bad_settings(files: dict[str, str]) -> None:
    for changes, says in (
        ({"repeats": (0,)}, "repeats: expected a whole number of 1 or more, got 0"),
        ({"seeds": ()}, "seeds: expected one or more different ones"),
        ({"seeds": (-1,)}, r"seeds: expected one or more different ones .* got \[-1\]"),
        ({"seeds": (1, 1)}, "seeds: expected one or more different ones"),
        ({"seeds": (True,)}, "seeds: expected one or more different ones"),
        ({"seeds": (2**32,)}, "seeds: expected one or more different ones"),
        ({"timestep": 0.0}, "timestep: expected a number above 0 to 100 fs, got 0.0"),
        ({"timestep": float("nan")}, "timestep: expected a number above 0 to 100 fs, got nan"),
        ({"cutoff": float("inf")}, "cutoff: expected a number above 0 Å, got inf"),
        ({"bins": 1}, "bins: expected a whole number from 2 to 100000, got 1"),
        ({"bins": 10**12}, "bins: expected a whole number from 2 to 100000, got 10"),
        ({"temperature": 0}, "temperature: expected a number above 0"),
        ({"temperature": float("nan")}, "temperature: expected a number above 0"),
    ):
        with pytest.raises(ValueError, match=rf"^dynamics\.{says}"):
            DynamicsSettings(files["cell"], **{"temperature": 300, "steps": 0, **changes})
    for changes, says in (
        ({"structures": ()}, "structures: expected one file or more, got none"),
        ({"force_tolerance": 0.0}, "force_tolerance: expected a number above 0 eV/Å, got 0.0"),
        ({"force_tolerance": float("nan")}, "force_tolerance: expected a number above 0"),
        ({"max_steps": 0}, "max_steps: expected a whole number of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=rf"^crystals\.{says}"):
            CrystalSettings(**{"structures": (files["crystal"],), **changes})
    assert EvaluationSettings(crystals=CrystalSettings((files["crystal"],))).structures == ()
