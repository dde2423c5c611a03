"""`kd-plugins doctor` as it is typed: what is overruled, what is refused, exit codes."""

from __future__ import annotations

from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins import cli
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.store import TargetStore

DOCTOR = "doctor --labels labels.extxyz --store targets"


def crystals(number: int) -> list[Atoms]:
    """Return strained and rattled copper with EMT's own labels."""
    made = []
    for index in range(number):
        atoms = bulk("Cu", a=3.4 + 0.03 * index, cubic=True)
        atoms.rattle(0.1, seed=index)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with labels and a store of targets that are those labels."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("labels.extxyz", crystals(16))
    assert cli.main(["label", "labels.extxyz", "--teacher", "emt", "--store", "targets"]) == 0
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    """Run a line here; return exit code, output and errors."""
    capsys.readouterr()
    code = cli.main(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_error_is_overruled_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output names the option; the error is then a warning, and the exit code is 0."""
    against = crystals(16)
    for atoms in against:
        results = atoms.calc.results
        atoms.calc = SinglePointCalculator(
            atoms, energy=results["energy"], forces=-results["forces"]
        )
    ase.io.write("labels.extxyz", against)
    code, out, _ = run(capsys, DOCTOR)
    assert code == 1
    assert "if it is meant so: --allow forces_sign" in " ".join(out.split())

    code, out, _ = run(capsys, f"{DOCTOR} --allow forces_sign")
    assert code == 0
    assert "warning forces-sign: " in out
    assert "overruled by allow: [forces_sign]" in " ".join(out.split())


def test_fix_prints_the_added_offsets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An offset an element, as the manifest of the new store has it."""
    moved = crystals(16)
    for atoms in moved:
        results = dict(atoms.calc.results)
        results["energy"] -= 2.0 * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write("labels.extxyz", moved)
    code, out, _ = run(capsys, f"{DOCTOR} --fix aligned")
    assert code == 0
    assert out.endswith("added to each energy, eV an atom: Cu -2.000000\n")
    offsets = TargetStore.open("aligned").manifest.energy_offsets
    assert offsets["Cu"] == pytest.approx(-2.0)


def test_a_store_without_targets_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is found in it, but nothing was examined either."""
    TargetStore.create("empty", Manifest("t", "f", {"energy": "float64"}))
    code, out, err = run(capsys, "doctor --labels labels.extxyz --store empty")
    assert (code, out) == (2, "")
    assert "empty holds no targets to examine; label structures first" in err


def test_an_unknown_name_in_allow_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read."""
    code, out, err = run(capsys, f"{DOCTOR} --allow force_sign")
    assert (code, out) == (2, "")
    assert err.endswith("did you mean 'forces_sign'?\n")
    assert err.count("\n") == 1
