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
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import CalculatorTeacher, label

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


def test_the_end_says_how_good_the_teacher_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With advice, which is no error."""
    code, out, _ = run(capsys, DOCTOR)
    assert code == 0
    assert " (0.0 %, R² 1.000, slope 1.000 ± 0.000, 16 structures)" in out
    assert "advice: a good teacher: its forces are off by 0 %" in out

    soft = crystals(16)
    for atoms in soft:
        results = dict(atoms.calc.results)
        atoms.calc = SinglePointCalculator(atoms, **{k: 1.4 * v for k, v in results.items()})
    ase.io.write("labels.extxyz", soft)
    code, out, _ = run(capsys, DOCTOR)
    assert code == 0
    assert "slope 0.714" in out
    assert "advice: a soft teacher: its forces are 0.71 times the labels" in out


def test_receptive_fields_decide_on_atomic_energies(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store has the teacher's, the options the student's."""
    near = EMT()
    near.receptive_field = 24.0
    structures = ase.io.read("labels.extxyz", ":")
    label(
        [LabelledStructure(f"labels:{i}", atoms) for i, atoms in enumerate(structures)],
        CalculatorTeacher(near),
        "parts",
        ["energy", "atomic_energies"],
        progress=False,
    )
    doctor = DOCTOR.replace("targets", "parts")
    code, out, _ = run(capsys, doctor)
    assert code == 0
    assert "advice: atomic energies: the teacher's depend on atoms up to 24 Å away" in out

    _, out, _ = run(capsys, f"{doctor} --student-cutoff 5.5 --student-layers 1")
    assert "it cannot represent them" in " ".join(out.split())
    _, out, _ = run(capsys, f"{doctor} --student-cutoff 6 --student-layers 4")
    assert "w_A 1 at most" in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--student-cutoff 5.5", "--student-cutoff and --student-layers together"),
        ("--student-cutoff 0 --student-layers 1", "--student-cutoff: expected a number above 0 Å"),
        ("--student-cutoff nan --student-layers 1", "--student-cutoff: expected a number"),
        ("--student-cutoff 5 --student-layers 0", "--student-layers: expected a whole number"),
        ("--student emt", "--student emt: how far it reaches is not known"),
        ("--student emt --student-layers 1", "not both"),
        ("--student nobody", "unknown teacher 'nobody'"),
    ],
)
def test_a_student_without_a_receptive_field_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    code, _, error = run(capsys, f"{DOCTOR} {options}")
    assert code == 2
    assert message in error
