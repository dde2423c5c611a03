"""Wrong options, structures and settings are refused before anything is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from kd_plugins.cli import main
from kd_plugins.evaluate.evaluator import Evaluator
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, EvaluationSettings
from tests.evaluate.fixtures import (
    run_evaluate,
)


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_wrong_options_are_refused_before_anything_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
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
    assert run_evaluate(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_structures_without_labels_need_a_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "cell.xyz", bulk("Al", cubic=True))
    words = ["evaluate", "--student", "emt", "--reference", str(tmp_path / "cell.xyz")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "cell.xyz: no energy, forces or stress that all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_element_in_dynamics_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calculators raise exceptions of any kind."""
    write(tmp_path / "si.xyz", bulk("Si", cubic=True))
    words = ["evaluate", "--student", "emt", "--dynamics", str(tmp_path / "si.xyz")]
    assert main([*words, "--repeats", "1", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert re.search("error: emt fails in dynamics of .*si.xyz: NotImplementedError: .*Si", err)


def test_a_teacher_that_is_no_ase_calculator_is_refused_for_crystals(
    files: dict[str, str], tmp_path: Path
) -> None:
    """It message so before anything is measured."""
    crystals = EvaluationSettings(crystals=CrystalSettings((files["crystal"],)))
    with pytest.raises(ValueError, match="is no ASE calculator, so there is no dynamics"):
        Evaluator("emt & emt", tmp_path / "out", crystals)
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_refused(files: dict[str, str]) -> None:
    for changes, message in (
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
        with pytest.raises(ValueError, match=rf"^dynamics\.{message}"):
            DynamicsSettings(files["cell"], **{"temperature": 300, "steps": 0, **changes})
    for changes, message in (
        ({"structures": ()}, "structures: expected one file or more, got none"),
        ({"force_tolerance": 0.0}, "force_tolerance: expected a number above 0 eV/Å, got 0.0"),
        ({"force_tolerance": float("nan")}, "force_tolerance: expected a number above 0"),
        ({"max_steps": 0}, "max_steps: expected a whole number of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=rf"^crystals\.{message}"):
            CrystalSettings(**{"structures": (files["crystal"],), **changes})
    assert EvaluationSettings(crystals=CrystalSettings((files["crystal"],))).structures == ()
