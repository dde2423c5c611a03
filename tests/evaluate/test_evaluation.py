"""Metrics of a potential beside labels and a teacher, and requirements on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write

from kd_plugins.cli import main
from kd_plugins.evaluate.requirements import Requirement, faults
from tests.evaluate.fixtures import (
    CUTOFF,
    SOFTER,
    all_measurements,
    read_evaluation,
    run_evaluate,
)


def test_forces_on_fixed_atoms_do_not_count(files: dict[str, str], tmp_path: Path) -> None:
    """An atom that `FixAtoms` holds does not move, so its force does not matter."""
    structures = read(files["labelled"], ":")
    for atoms in structures:
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().copy()}
        labels["forces"][:2] += 100
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.set_constraint(FixAtoms([0, 1]))
    write(tmp_path / "fixed.extxyz", structures)

    assert run_evaluate(tmp_path / "out", "--reference", tmp_path / "fixed.extxyz") == 0
    one = read_evaluation(tmp_path / "out")
    assert one["metrics"]["force_rmse"] == pytest.approx(0, abs=1e-6)
    assert one["metrics"]["teacher_force_rmse"] == 0
    assert len(one["parity"]["labels"]["forces"]["student"]) == 3 * 3 * 6


def test_equilibration_keeps_the_temperature_of_runs(files: dict[str, str], tmp_path: Path) -> None:
    """Without equilibration half of the kinetic energy becomes potential energy."""
    words = ["--dynamics", files["cell"], "--temperature", 400, "--steps", 100, "--repeats", 1]
    words += ["--cutoff", CUTOFF]

    kept = {}
    for steps in (0, 300):
        out = tmp_path / str(steps)
        assert run_evaluate(out, *words, "--equilibration", steps) == 0
        runs = [out / "student" / f"run-{seed}.json" for seed in (0, 1)]
        kept[steps] = np.mean([json.loads(path.read_text())["temperature"] for path in runs])
        assert read_evaluation(out)["metrics"]["rdf_distance"] == 0
    assert kept[0] < 260 < 300 < kept[300], kept


def test_a_teacher_as_its_own_student_has_no_error(files: dict[str, str], tmp_path: Path) -> None:
    assert run_evaluate(tmp_path, *all_measurements(files)) == 0
    one = read_evaluation(tmp_path)
    metrics = one["metrics"]
    errors = [name for name in metrics if name.endswith(("_mae", "_rmse"))]
    assert {"force_rmse", "energy_per_atom_mae", "teacher_stress_rmse"} <= set(errors)
    assert [metrics[name] for name in errors] == pytest.approx([0] * len(errors), abs=1e-6)
    assert metrics["force_cosine"] == pytest.approx(1)
    assert metrics["teacher_force_cosine"] == pytest.approx(1)
    assert metrics["teacher_force_r2"] == metrics["teacher_energy_per_atom_r2"] == 1
    assert metrics["rdf_distance"] == 0 < one["rdf"]["floor"]
    assert metrics["rdf_noise_ratio"] == 1
    assert metrics["teacher_volume_error_percent"] == 0
    assert metrics["volume_error_percent"] > 3
    assert metrics["unrelaxed_crystals"] == 0
    assert "bytes_per_atom" not in metrics  # EMT has no tensors
    assert one["teacher"]["drift"] == metrics["drift"]
    for name, value in one["teacher"].items():
        if name not in ("microseconds_per_atom", "nanoseconds_per_day", "rdf_distance"):
            assert value == metrics[name], name
    assert one["teacher"]["rdf_distance"] == one["rdf"]["floor"]
    assert {"force_rmse", "drift"} <= set(one["teacher"])
    modulus = one["elasticity"]["crystal"]["student"]["young"]
    assert modulus == one["elasticity"]["crystal"]["teacher"]["young"] > 50
    pairs = one["parity"]["labels"]["forces"]
    assert len(pairs["student"]) == 3 * 3 * 8
    assert pairs["student"] == pytest.approx(pairs["reference"], abs=1e-6)


def test_a_crystal_that_does_not_relax_counts_and_is_named(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its volume, a student that fails would look better than one that does not."""
    hot = read(files["crystal"])
    hot.positions[0] = hot.positions[1] + 0.05
    write(tmp_path / "hot.extxyz", hot)
    words = ["--crystals", files["crystal"], tmp_path / "hot.extxyz"]
    assert run_evaluate(tmp_path / "out", *words, "--require", "unrelaxed_crystals<1") == 1
    one, err = read_evaluation(tmp_path / "out"), capsys.readouterr().err
    (reason,) = {*one["volumes"]["hot"]["failures"].values()}
    assert one["volumes"]["crystal"]["failures"] == {}
    assert f"not relaxed: hot by the student: {reason}" in err
    assert f"not relaxed: hot by the teacher: {reason}" in err
    assert "not accepted: unrelaxed_crystals is 1" in err

    volumes = one["volumes"].values()
    errors = [100 * abs(each["student"] / each["reference"] - 1) for each in volumes]
    assert one["metrics"]["volume_error_percent"] == pytest.approx(np.mean(errors))

    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "out"), "-o", str(page)]) == 0
    assert f"Not relaxed, counted as it was left: student on hot ({reason})" in page.read_text()


def test_error_of_scaled_forces_is_their_scale(files: dict[str, str], tmp_path: Path) -> None:
    assert run_evaluate(tmp_path, "--reference", files["labelled"], student=SOFTER) == 0
    metrics = read_evaluation(tmp_path)["metrics"]
    forces = np.concatenate(_forces(files))
    expected = 0.1 * np.sqrt(np.square(forces).mean())
    assert metrics["force_rmse"] == pytest.approx(expected, rel=1e-5)
    assert metrics["teacher_force_rmse"] == pytest.approx(expected, rel=1e-5)
    assert metrics["teacher_force_rmse_percent"] == pytest.approx(10, rel=1e-5)
    assert metrics["teacher_force_r2"] == pytest.approx(0.99, rel=1e-3)


def _forces(files: dict[str, str]) -> list[np.ndarray]:
    from kd_plugins.structures import read_structures

    return [frame.labels["forces"] for frame in read_structures([files["labelled"]])]


def test_a_label_that_some_structures_lack_is_not_compared_and_reported(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All quantities are compared on the same structures."""
    frames = read(files["labelled"], ":")
    frames[1].calc = SinglePointCalculator(frames[1], energy=frames[1].get_potential_energy())
    write(tmp_path / "some.extxyz", frames)
    assert run_evaluate(tmp_path / "out", "--reference", tmp_path / "some.extxyz") == 0
    assert "forces is not compared: 1 of 3 structures lack it" in caplog.text
    metrics = read_evaluation(tmp_path / "out")["metrics"]
    assert "energy_per_atom_rmse" in metrics and "force_rmse" not in metrics


@pytest.mark.parametrize(
    ("bars", "code", "message"),
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
def test_requirements_set_the_exit_code(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bars: list[str],
    code: int,
    message: str,
) -> None:
    words = [word for bar in bars for word in ("--require", bar)]
    assert run_evaluate(tmp_path, "--reference", files["labelled"], *words) == code
    assert message in capsys.readouterr().err
    assert (tmp_path / "student").exists() == (code < 2)


def test_nan_meets_no_requirement() -> None:
    assert faults(["drift<1"], {"drift": float("nan")}) == ["drift is nan; required: < 1"]
    assert Requirement.parse("drift<=1").fault({"drift": 1.0}) is None
