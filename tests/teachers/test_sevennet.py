"""SevenNet as a teacher: derivatives of its energy, sums, rotations, batches, refusals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress

from kd_plugins.teachers import Teacher, TeacherError, as_teacher, load_teacher
from kd_plugins.torch_files import load_torch_file
from tests.hosts import in_one_environment
from tests.teachers.batching import assert_batch_independent

pytest.importorskip("sevenn", reason="sevenn is not installed")
pytestmark = in_one_environment

NAMES = ("sevenn", "sevenn+d3")
SINGLE = {"rtol": 1e-4, "atol": 1e-4}
"""Of values that differ by float32's rounding."""
SLOPE = {"rtol": 5e-3, "atol": 5e-3}
"""Of slopes in eV/Å: a total of -100 eV is known to 1e-5 eV, over a step of 0.02 Å."""
STRAIN = {"rtol": 2e-2, "atol": 1e-4}
"""Of stresses in eV/Å³: a total of -30 eV is known to 2e-6 eV, over a strain of 0.01."""


@pytest.fixture(scope="module")
def teachers() -> dict[str, Teacher]:
    """Both teachers, loaded under the suite's rule that warnings are errors."""
    return {name: load_teacher(name) for name in NAMES}


@pytest.fixture(scope="module")
def salt() -> Atoms:
    """A rattled and sheared salt of eight atoms."""
    atoms = bulk("NaCl", "rocksalt", a=5.4, cubic=True)
    atoms.rattle(0.1, seed=1)
    return strained(atoms, np.array([[0.02, 0.15, 0], [0, 0, 0.01], [0, 0, -0.03]]))


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Return the crystal with cell and atoms strained."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def predict(teacher: Teacher, atoms: Atoms, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the targets of one structure."""
    return teacher.predict([atoms], names)[0]


def energy(teacher: Teacher, atoms: Atoms) -> float:
    """Return the energy in eV."""
    return float(predict(teacher, atoms, ["energy"])["energy"])


@pytest.mark.parametrize("name", NAMES)
def test_forces_equal_the_slope_of_the_energy(
    teachers: dict[str, Teacher], salt: Atoms, name: str
) -> None:
    """Along a random direction of all atoms, by central differences."""
    forces = predict(teachers[name], salt, ["forces"])["forces"]
    direction = np.random.default_rng(0).normal(size=forces.shape)
    direction /= np.linalg.norm(direction)

    ahead, back = salt.copy(), salt.copy()
    ahead.positions += direction * 0.01
    back.positions -= direction * 0.01
    slope = (energy(teachers[name], ahead) - energy(teachers[name], back)) / 0.02
    np.testing.assert_allclose(slope, -(forces * direction).sum(), **SLOPE)
    assert np.abs(forces).max() > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_stress_equals_the_slope_of_the_energy_in_strain(
    teachers: dict[str, Teacher], salt: Atoms, name: str
) -> None:
    """Over the volume, in eV/Å³, positive where the crystal wants to be smaller."""
    teacher, step = teachers[name], 1e-2
    found = predict(teacher, salt, ["stress"])["stress"]
    stress = voigt_6_to_full_3x3_stress(found)

    for row, column in ((0, 0), (0, 1)):
        half = np.zeros((3, 3))
        half[row, column] += step / 4
        half[column, row] += step / 4
        rise = energy(teacher, strained(salt, half)) - energy(teacher, strained(salt, -half))
        slope = rise / step / salt.get_volume()
        np.testing.assert_allclose(slope, stress[row, column], **STRAIN)

    assert min(abs(found[0]), abs(found[5])) > 10 * STRAIN["atol"]


def test_atomic_energies_sum_to_the_energy(teachers: dict[str, Teacher], salt: Atoms) -> None:
    found = predict(teachers["sevenn"], salt, ["energy", "atomic_energies", "energy_per_atom"])
    assert found["atomic_energies"].astype(float).sum() == pytest.approx(
        float(found["energy"]), abs=1e-4
    )
    assert found["energy_per_atom"] * len(salt) == pytest.approx(float(found["energy"]))
    assert np.ptp(found["atomic_energies"]) > 0.1
    assert teachers["sevenn"].receptive_field == 25.0


def test_quantities_turn_with_the_structure_and_follow_its_atoms(
    teachers: dict[str, Teacher], salt: Atoms
) -> None:
    generator = np.random.default_rng(2)
    order = generator.permutation(len(salt))
    rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))

    names = ["energy", "forces", "stress", "atomic_energies"]
    expected = predict(teachers["sevenn"], salt, names)
    turned = salt[order]
    turned.set_cell(turned.cell[:] @ rotation, scale_atoms=True)
    found = predict(teachers["sevenn"], turned, names)

    np.testing.assert_allclose(found["energy"], expected["energy"], **SINGLE)
    np.testing.assert_allclose(found["forces"], expected["forces"][order] @ rotation, **SINGLE)
    np.testing.assert_allclose(
        found["atomic_energies"], expected["atomic_energies"][order], **SINGLE
    )
    before, after = (voigt_6_to_full_3x3_stress(one["stress"]) for one in (expected, found))
    np.testing.assert_allclose(after, rotation.T @ before @ rotation, **SINGLE)


def test_a_structure_does_not_depend_on_its_batch(
    teachers: dict[str, Teacher], salt: Atoms
) -> None:
    """Nor on what was predicted before, to the bit; a molecule has no stress."""
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.13]])
    structures = [salt, molecule, bulk("Cu")]
    for name in NAMES:
        assert_batch_independent(teachers[name], structures, tolerance=1e-12)

    found = predict(teachers["sevenn+d3"], molecule, ["energy", "forces", "stress"])
    assert set(found) == {"energy", "forces"}


def test_sevenn_d3_adds_the_dispersion_of_chgnet_d3(
    teachers: dict[str, Teacher], salt: Atoms
) -> None:
    """D3(BJ) of PBE; it has no atomic energies."""
    from dftd3.ase import DFTD3

    plain, both = teachers["sevenn"], teachers["sevenn+d3"]
    names = ("energy", "energy_per_atom", "forces", "stress")
    assert plain.quantities == (*names, "atomic_energies")
    assert both.quantities == names

    dispersion = as_teacher(DFTD3(method="PBE", damping="d3bj"))
    alone, without, found = (predict(one, salt, names) for one in (dispersion, plain, both))
    for name in names:
        np.testing.assert_allclose(found[name] - without[name], alone[name], rtol=0, atol=1e-9)
    assert alone["energy"] < -0.5


@pytest.mark.parametrize("name", NAMES)
def test_an_element_without_weights_fails_alone(teachers: dict[str, Teacher], name: str) -> None:
    """By an error of the structure, not of the teacher."""
    with pytest.raises(ValueError, match="do not know atomic number: 84") as caught:
        energy(teachers[name], bulk("Po", "sc", a=3.3))
    assert not isinstance(caught.value, TeacherError)


def test_a_checkpoint_is_read_if_it_is_trusted_and_is_the_same_teacher(
    teachers: dict[str, Teacher], tmp_path: Path
) -> None:
    """A file of SevenNet's holds NumPy arrays, so pickled objects."""
    from sevenn.util import pretrained_name_to_path

    source = pretrained_name_to_path("7net-0")
    content = load_torch_file(source, trust_pickle=True, remedy="")
    kept = {name: content[name] for name in ("config", "model_state_dict")}
    torch.save(kept, tmp_path / "mine.pth")

    with pytest.raises(TeacherError, match=r"mine\.pth.*trust_pickle=true"):
        load_teacher(f"sevenn model={tmp_path / 'mine.pth'}")
    same = load_teacher(f"sevenn model={tmp_path / 'mine.pth'} trust_pickle=true")
    assert same.fingerprint == teachers["sevenn"].fingerprint
    assert teachers["sevenn"].fingerprint in teachers["sevenn+d3"].fingerprint
    assert {"sevenn", "dftd3", "torch", "ase"} <= set(teachers["sevenn+d3"].versions)


def test_modals_of_one_model_are_different_teachers(salt: Atoms) -> None:
    pbe, r2scan = (load_teacher(f"sevenn model=7net-mf-0 modal={one}") for one in ("PBE", "R2SCAN"))
    assert pbe.fingerprint != r2scan.fingerprint
    assert abs(energy(pbe, salt) - energy(r2scan, salt)) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=nope", "Given nope does not exist.*7net-0"),
        ("modal=PBE", "no modals, got modal=PBE"),
        ("model=7net-mf-0", "modal argument missing.*R2SCAN"),
        ("device=cuda:99", "device: expected"),
        ("trust_pickle=maybe model={}", "trust_pickle: expected true or false"),
        ("model={}", "expected a checkpoint of SevenNet, with config and model_state_dict"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: str, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save({"config": {}, "weights": [1.0]}, path)
    with pytest.raises(TeacherError, match=message):
        load_teacher(f"sevenn {arguments.format(path)}")


def test_loading_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither SevenNet's advice on accelerators, which would break the progress bar."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        load_teacher("sevenn")
    assert "".join(capsys.readouterr()) == ""
