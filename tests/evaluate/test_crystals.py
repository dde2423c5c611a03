"""Crystals: densities and packing, lists of files, bad ones left out, several at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from kd_plugins.cli import main
from kd_plugins.evaluate import mean_moduli, read_stiffness
from kd_plugins.evaluate.crystal_errors import (
    all_moduli,
    compare_stiffness,
    compare_volumes,
    mean_rmsd15,
    modulus_metrics,
    volume_metrics,
)
from kd_plugins.evaluate.crystals import packing_distance, read_crystals, relaxed_atoms
from kd_plugins.evaluate.settings import CrystalSettings
from kd_plugins.evaluate.stiffness_data import MODULI
from tests.evaluate.fixtures import SOFTER, read_evaluation, run_evaluate

DISORDERED = """data_half
_cell_length_a 5
_cell_length_b 5
_cell_length_c 5
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
C1 C 0 0 0 1.0
O1 O 0.25 0 0 0.5
"""


def nitrogen(scale: float = 1.0) -> Atoms:
    """A crystal of two N2 molecules, its cell and the distances between them scaled."""
    atoms = Atoms("N4", cell=[4 * scale, 4 * scale, 6 * scale], pbc=True)
    centres = np.array([[0.5, 0.5, 0.2], [0.0, 0.0, 0.7]]) * atoms.cell.lengths()
    atoms.positions = np.repeat(centres, 2, axis=0) + np.tile([[0, 0, 0], [0, 0, 1.1]], (2, 1))
    return atoms


def part(atoms: Atoms) -> dict[str, object]:
    """What a relaxation of `nitrogen` to these atoms leaves in a folder."""
    return {
        "reference": nitrogen().get_volume(),
        "volume": atoms.get_volume(),
        "reason": "converged",
        "cell": atoms.cell.array.tolist(),
        "positions": atoms.positions.tolist(),
        "rmsd15": packing_distance(nitrogen(), atoms),
    }


def test_density_is_mass_over_volume_and_packing_is_0_of_a_crystal_itself() -> None:
    larger = nitrogen(1.02)
    teacher, student = {"n2": part(nitrogen())}, {"n2": part(larger)}
    volumes = compare_volumes(student, teacher, {"n2": nitrogen()})
    assert volumes["n2"]["rmsd15_of_teacher"] == pytest.approx(0, abs=1e-6)
    assert volumes["n2"]["rmsd15"] == volumes["n2"]["teacher_rmsd15"] > 0.05
    assert mean_rmsd15(volumes, "rmsd15") == {"rmsd15": volumes["n2"]["rmsd15"]}

    grams = nitrogen().get_masses().sum() / 6.02214076e23
    densities = [grams / (atoms.get_volume() * 1e-24) for atoms in (nitrogen(), larger)]
    assert volumes["n2"]["density"] == pytest.approx(densities[0], rel=1e-6)
    errors = volume_metrics(volumes, "student", "reference")
    assert errors["density_error"] == pytest.approx(densities[0] - densities[1], rel=1e-6)
    assert errors["density_error_percent"] == pytest.approx(100 * (1 - 1.02**-3))
    assert set(volume_metrics(volumes, "teacher", "reference").values()) == {0.0}


def test_a_part_of_before_has_its_density_and_no_packing() -> None:
    """It holds the volume alone."""
    old = {"n2": {name: part(nitrogen(1.1))[name] for name in ("reference", "volume", "reason")}}
    volumes = compare_volumes(old, old, {"n2": nitrogen()})
    assert volume_metrics(volumes, "student", "reference")["density_error"] > 0
    assert mean_rmsd15(volumes, "rmsd15") == mean_rmsd15(volumes, "teacher_rmsd15") == {}


def test_a_crystal_without_a_volume_has_no_packing_and_counts_in_full() -> None:
    lost = {"n2": {**part(nitrogen()), **dict.fromkeys(("volume", "cell", "positions", "rmsd15"))}}
    assert relaxed_atoms(nitrogen(), lost["n2"]) is None
    volumes = compare_volumes(lost, None, {"n2": nitrogen()})
    errors = volume_metrics(volumes, "student", "reference")
    assert errors["volume_error_percent"] == errors["density_error_percent"] == 100
    assert errors["density_error"] == pytest.approx(volumes["n2"]["density"])
    assert mean_rmsd15(volumes, "rmsd15") == {}


def test_bad_crystals_of_a_list_are_left_out_by_name(tmp_path: Path) -> None:
    """Such as disordered ones of COD; a missing file is an error in any case."""
    (tmp_path / "half.cif").write_text(DISORDERED)
    write(tmp_path / "good.cif", nitrogen())
    close = nitrogen()
    close.positions[1] = close.positions[0] + [0, 0, 0.3]
    write(tmp_path / "close.cif", close)
    ids = tmp_path / "ids.txt"
    ids.write_text("# of COD\nhalf\ngood.cif  # with a suffix\n\nclose\n")

    words = ["--crystals-from", ids, "--cifs", tmp_path, "--rigid"]
    assert run_evaluate(tmp_path / "refused", *words) == 2
    assert not (tmp_path / "refused").exists()
    assert run_evaluate(tmp_path / "out", *words, "--leave-out") == 0
    found = read_evaluation(tmp_path / "out")
    assert list(found["volumes"]) == ["good"]
    assert "is disordered" in found["left_out"]["half"]
    assert "Å apart" in found["left_out"]["close"]

    assert run_evaluate(tmp_path / "out", *words, "--leave-out") == 0

    ids.write_text("good\nabsent\n")
    assert run_evaluate(tmp_path / "out", *words, "--leave-out") == 2
    assert run_evaluate(tmp_path / "new", *words, "--leave-out") == 2
    assert not (tmp_path / "new").exists()


def test_rigid_volumes_of_a_scaled_energy_are_the_teachers(tmp_path: Path) -> None:
    """Nothing is relaxed, so there is no packing to compare."""
    write(tmp_path / "n2.extxyz", nitrogen())
    words = ["--crystals", tmp_path / "n2.extxyz", "--rigid"]
    assert run_evaluate(tmp_path / "out", *words, student=SOFTER) == 0
    metrics = read_evaluation(tmp_path / "out")["metrics"]
    assert metrics["teacher_volume_error_percent"] == pytest.approx(0, abs=1e-6)
    assert not {"rmsd15", "teacher_rmsd15"} & set(metrics)
    assert run_evaluate(tmp_path / "no", *words, "--require", "rmsd15<1") == 2
    assert run_evaluate(tmp_path / "no", *words, "--elasticity") == 2


def test_several_at_a_time_give_what_one_at_a_time_gives(tmp_path: Path) -> None:
    """And a crystal that is there already is not measured again."""
    files = []
    for constant in (3.5, 3.6, 3.7):
        files.append(tmp_path / f"cu{constant}.extxyz")
        write(files[-1], bulk("Cu", cubic=True, a=constant))

    parts = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        kept = out / "student" / "crystals" / "cu3.5.json"
        kept.parent.mkdir(parents=True)
        kept.write_text('{"reference": 42.0, "volume": 47.0, "reason": "converged"}')
        assert run_evaluate(out, "--crystals", *files, "--workers", workers) == 0
        volumes = read_evaluation(out)["volumes"]
        assert volumes["cu3.5"]["student"] == 47.0
        parts[workers] = {
            name: (one["student"], one["teacher"], one["failures"]) for name, one in volumes.items()
        }
    assert parts[1] == parts[2]


# --- Stiffness ----------------------------------------------------------------------------------


def isotropic(young: float, ratio: float) -> np.ndarray:
    """The stiffness (6, 6) of an isotropic solid."""
    first = young * ratio / (1 + ratio) / (1 - 2 * ratio)
    shear = young / 2 / (1 + ratio)
    stiffness = np.diag([2 * shear] * 3 + [shear] * 3)
    stiffness[:3, :3] += first
    return stiffness


def write_tensors(path: Path, rows: list[tuple[str, str, np.ndarray]]) -> Path:
    names = ",".join(f"C{i}{j}" for i in range(1, 7) for j in range(1, 7))
    lines = [f"{name},{method},{','.join(map(str, c.ravel()))}" for name, method, c in rows]
    path.write_text("\n".join([f"Compound,Method,{names}", *lines]) + "\n")
    return path


def test_all_averages_of_an_isotropic_solid_are_alike(tmp_path: Path) -> None:
    """Errors are those of the moduli; an unstable crystal is left out, as in the paper."""
    unstable = np.diag([-1.0, 1, 1, 1, 1, 1])
    rows = [("Oxalic acid ", "Exp", isotropic(10, 0.3)), ("oxalic acid", "NNP", isotropic(1, 0.3))]
    rows += [("Oxalic acid", "Exp", isotropic(14, 0.3)), ("oxalic acid", "Exp", unstable)]
    path = write_tensors(tmp_path / "tensors.csv", [*rows, ("urea", "Exp", isotropic(9, 0.2))])

    parts = {
        "oxalic_acid": {"elasticity": {"stiffness": isotropic(15, 0.25).tolist()}},
        "urea": {"elasticity": {"unstable": "not positive definite"}},
    }
    stiffness = compare_stiffness(parts, None, str(path))
    errors = dict(modulus_metrics(stiffness, "student", "reference"))
    assert list(errors) == [f"{name}_error" for name in MODULI]
    for average in ("voigt", "reuss", "hill", "reuss_hill"):
        assert errors[f"young_{average}_error"] == pytest.approx(15 - 12)
    assert errors["poisson_ratio_error"] == pytest.approx(0.05)
    assert errors["anisotropy_error"] == pytest.approx(0, abs=1e-6)
    assert all_moduli(stiffness["urea"]["student"]) is None


def test_measured_moduli_of_published_crystals(shared_file: Callable[[str], Path]) -> None:
    """The errors of PFP v4 and of the mean over compounds, for 40 compounds that are stable."""
    path = shared_file("molecular_crystals/elastic/stiffness_tensors_rev.csv")
    tables = {name: read_stiffness(path, name) for name in ("Exp", "NNP")}
    both = tables["Exp"].keys() & tables["NNP"].keys()
    pairs = [tuple(mean_moduli(tables[one][name]) for one in ("Exp", "NNP")) for name in both]
    kept = [(one["young_reuss_hill"], two["young_reuss_hill"]) for one, two in pairs if one and two]
    experiment, pfp = np.array(kept).T
    assert len(kept) == 40
    assert np.abs(pfp - experiment).mean() == pytest.approx(3.81, abs=0.005)
    assert np.abs(experiment - experiment.mean()).mean() == pytest.approx(5.10, abs=0.005)


def test_experiments_can_be_added_to_moduli_that_are_there(
    files: dict[str, str], tmp_path: Path
) -> None:
    """Nothing is measured again; the report draws them beside student and teacher."""
    words, out = ["--crystals", files["crystal"], "--elasticity"], tmp_path / "out"
    assert run_evaluate(out, *words) == 0
    part = out / "student" / "crystals" / "crystal.json"
    before = part.stat().st_mtime_ns
    assert "young_reuss_hill_error" not in read_evaluation(out)["metrics"]

    table = write_tensors(tmp_path / "tensors.csv", [("Crystal", "Exp", isotropic(100, 0.3))])
    assert run_evaluate(out, *words, "--stiffness", table) == 0
    assert part.stat().st_mtime_ns == before
    found = read_evaluation(out)
    young = found["elasticity"]["crystal"]["student"]["young"]
    assert found["elasticity"]["crystal"]["reference"]["young"] == pytest.approx(100)
    assert found["metrics"]["young_reuss_hill_error"] == pytest.approx(abs(young - 100))
    assert found["metrics"]["young_reuss_hill_error"] == found["teacher"]["young_reuss_hill_error"]
    assert found["metrics"]["teacher_anisotropy_error"] == 0
    assert found["metrics"]["unstable_crystals"] == 0
    assert main(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert "modulus error, reuss-hill" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("Compound,C11\n", "no column 'C12'"),
        (None, "has none of the crystals"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(
    tmp_path: Path, rows: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_tensors(tmp_path / "tensors.csv", [("urea", "Exp", isotropic(9, 0.2))])
    if rows is not None:
        table.write_text(rows)
    write(tmp_path / "n2.extxyz", nitrogen())
    words = ["--crystals", tmp_path / "n2.extxyz", "--elasticity", "--stiffness", table]
    assert run_evaluate(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_crystals_are_read_anew_when_a_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "crystal.extxyz"
    settings = CrystalSettings((str(path),))
    for scale in (1.0, 1.25):
        write(path, nitrogen(scale))
        (one,) = read_crystals(settings).structures
        assert one.atoms.get_volume() == pytest.approx(read(path).get_volume())
