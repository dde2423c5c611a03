"""CHGNet as a teacher: derivatives of its energy, embeddings of its atoms, batches, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress
from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator
from dftd3.ase import DFTD3

from kd_plugins.chgnet.teacher import CHGNetTeacher, EmbeddingCalculator, chgnet
from kd_plugins.structures import read_structures
from kd_plugins.teachers import CalculatorTeacher, Teacher, TeacherError, load_teacher
from tests.teachers.batching import assert_batch_independent

SINGLE = {"rtol": 1e-4, "atol": 1e-4}
"""Of energies (eV), forces, stress and embeddings that differ by float32's rounding."""
TURNED = {"rtol": 1e-3, "atol": 2e-3}
"""Of forces (eV/Å) of a crystal and of its turned copy."""
SLOPE = {"rtol": 5e-3, "atol": 5e-3}
"""Of slopes in eV/Å: a total of -100 eV is known to 1e-5 eV, over a step of 0.02 Å."""
STRAIN = {"rtol": 2e-2, "atol": 2e-5}
"""Of stresses in eV/Å³, over a strain of 0.004."""


@pytest.fixture(scope="module")
def teachers() -> dict[str, CHGNetTeacher]:
    """Both teachers."""
    return {name: load_teacher(name) for name in ("chgnet", "chgnet+d3")}


@pytest.fixture(scope="module")
def crystals(shared_data: Path) -> dict[str, Atoms]:
    """Two molecular crystals, rattled a little."""
    found = {}
    for name in ("urea", "co2"):
        path = shared_data / "molecular_crystals" / "x23" / f"{name}.cif"
        (structure,) = read_structures([path])
        structure.atoms.rattle(0.03, seed=1)
        found[name] = structure.atoms
    return found


def predict(teacher: Teacher, atoms: Atoms, *names: str) -> dict[str, np.ndarray]:
    """Return the targets of one structure."""
    (values,) = teacher.predict([atoms], names)
    return values


def energy(teacher: Teacher, atoms: Atoms) -> float:
    """Return the energy in eV."""
    return float(predict(teacher, atoms, "energy")["energy"])


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Return the crystal with cell and atoms strained."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


@pytest.mark.parametrize(("name", "crystal"), [("chgnet", "urea"), ("chgnet+d3", "co2")])
def test_forces_equal_the_slope_of_the_energy(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms], name: str, crystal: str
) -> None:
    """Along random directions of all atoms, by central differences."""
    teacher, atoms, generator = teachers[name], crystals[crystal], np.random.default_rng(0)
    forces = predict(teacher, atoms, "forces")["forces"]

    for _ in range(2):
        direction = generator.normal(size=forces.shape)
        direction /= np.linalg.norm(direction)
        ahead, back = atoms.copy(), atoms.copy()
        ahead.positions += direction * 0.01
        back.positions -= direction * 0.01
        slope = (energy(teacher, ahead) - energy(teacher, back)) / 0.02
        np.testing.assert_allclose(slope, -(forces * direction).sum(), **SLOPE)

    assert np.abs(forces).max() > 1


@pytest.mark.parametrize(("name", "crystal"), [("chgnet", "co2"), ("chgnet+d3", "urea")])
def test_stress_equals_the_slope_of_the_energy_in_strain(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms], name: str, crystal: str
) -> None:
    """Over the volume, in eV/Å³, positive where the crystal wants to be smaller."""
    teacher, atoms, step = teachers[name], crystals[crystal], 4e-3
    stress = voigt_6_to_full_3x3_stress(predict(teacher, atoms, "stress")["stress"])

    for row, column in ((0, 0), (1, 1), (0, 2)):
        strain = np.zeros((3, 3))
        strain[row, column] += step / 2
        strain[column, row] += step / 2
        half = strain / 2
        rise = energy(teacher, strained(atoms, half)) - energy(teacher, strained(atoms, -half))
        slope = rise / step / atoms.get_volume()
        np.testing.assert_allclose(slope, stress[row, column], **STRAIN)

    assert np.abs(stress).max() > 5e-3


def test_chgnet_d3_is_the_sum_of_chgnet_and_d3(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms]
) -> None:
    """The difference of the teachers is Grimme's D3 for PBE, which holds molecules together."""
    names, atoms = ["energy", "forces", "stress"], crystals["co2"]
    plain, both = (predict(teachers[name], atoms, *names) for name in ("chgnet", "chgnet+d3"))
    dispersion = CalculatorTeacher(DFTD3(method="PBE", damping="d3bj"))
    alone = predict(dispersion, atoms, *names)

    for name in names:
        np.testing.assert_allclose(both[name] - plain[name], alone[name], rtol=0, atol=1e-9)

    assert alone["energy"] < -0.5
    assert alone["stress"][:3].min() > 0


def test_atomic_energies_sum_to_the_energy(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms]
) -> None:
    """References included; so do the energies per atom."""
    names = ["energy", "atomic_energies", "energy_per_atom"]
    for atoms in crystals.values():
        found = predict(teachers["chgnet"], atoms, *names)
        total = found["atomic_energies"].astype(float).sum()
        assert total == pytest.approx(float(found["energy"]), abs=1e-4)
        assert found["energy_per_atom"] * len(atoms) == pytest.approx(float(found["energy"]))


def transformed(atoms: Atoms, how: str) -> tuple[Atoms, np.ndarray, np.ndarray]:
    """Return a crystal that is the same, the order of its atoms, and the rotation."""
    generator = np.random.default_rng(2)
    order, rotation = np.arange(len(atoms)), np.eye(3)

    if how == "permuted":
        order = generator.permutation(order)
        atoms = atoms[order]
    elif how == "rotated":
        rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        rotation *= np.sign(np.linalg.det(rotation))
        atoms = atoms.copy()
        atoms.set_cell(atoms.cell[:] @ rotation, scale_atoms=True)
    else:
        atoms = atoms.copy()
        atoms.positions += [0.3, -1.7, 2.2]
        atoms.positions += generator.integers(-2, 3, (len(atoms), 3)) @ atoms.cell[:]

    return atoms, order, rotation


@pytest.mark.parametrize("how", ["permuted", "rotated", "moved and unwrapped"])
def test_embeddings_follow_the_atoms_and_ignore_axes_and_origin(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms], how: str
) -> None:
    """Permuted, rotated and moved with the structure; forces turn with it."""
    names = ["energy", "forces", "atomic_energies", "node_embeddings", "magmoms"]
    teacher, atoms = teachers["chgnet"], crystals["urea"]
    same, order, rotation = transformed(atoms, how)
    expected, found = predict(teacher, atoms, *names), predict(teacher, same, *names)

    assert found["node_embeddings"].shape == (len(atoms), 64)

    for name in ("atomic_energies", "node_embeddings", "magmoms"):
        np.testing.assert_allclose(found[name], expected[name][order], err_msg=name, **SINGLE)

    np.testing.assert_allclose(found["forces"], expected["forces"][order] @ rotation, **TURNED)
    assert np.ptp(expected["node_embeddings"], axis=0).max() > 0.1


def test_readout_of_the_embeddings_gives_the_atomic_energies(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms]
) -> None:
    """The model's own last layers make its atomic energies of them, but for the references."""
    teacher, atoms = teachers["chgnet"], crystals["co2"]
    found = predict(teacher, atoms, "node_embeddings", "atomic_energies")
    model = teacher.calculator.model

    with torch.no_grad():
        shares = model.mlp(torch.tensor(found["node_embeddings"])).squeeze(1).numpy()

    references = model.composition_model.fc.weight[0].detach().numpy()
    expected = shares + references[atoms.numbers - 1]
    np.testing.assert_allclose(found["atomic_energies"], expected, **SINGLE)


def test_one_structure_has_the_same_values_whatever_was_predicted_before(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms]
) -> None:
    """To the bit, with initial magnetic moments or without."""
    teacher = teachers["chgnet"]
    names = teacher.quantities
    first = {name: predict(teacher, atoms, *names) for name, atoms in crystals.items()}

    for name, atoms in reversed(crystals.items()):
        magnetic = atoms.copy()
        magnetic.set_initial_magnetic_moments([1.0] * len(atoms))
        for found in (predict(teacher, one, *names) for one in (atoms, magnetic)):
            for quantity in names:
                assert np.array_equal(found[quantity], first[name][quantity]), quantity


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("He", cell=[9, 9, 9], pbc=True), "1 isolated atom"),
        (Atoms("CO2", [[0, 0, 0], [1, 0, 0], [8, 8, 8]], cell=[20] * 3), "1 isolated atom"),
        (Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), "needs three lattice vectors.*box"),
        (Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9, 9, 0]), "needs three lattice vectors"),
    ],
)
def test_structures_outside_the_domain_are_refused(
    teachers: dict[str, CHGNetTeacher], atoms: Atoms, message: str
) -> None:
    """Alone and in a batch, by an error that is not of the teacher as a whole."""
    for teacher in teachers.values():
        with pytest.raises(ValueError, match=message) as caught:
            predict(teacher, atoms, "energy")
        assert not isinstance(caught.value, TeacherError)


def test_a_molecule_in_a_box_has_no_neighbours_beyond_it(
    teachers: dict[str, CHGNetTeacher],
) -> None:
    """Without periodicity the box does not matter, and there is no stress."""
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.13]])
    for teacher in teachers.values():
        found = []
        for side in (4.0, 9.0):
            molecule.set_cell([side] * 3)
            found.append(predict(teacher, molecule, "energy", "forces", "stress"))
        assert set(found[0]) == {"energy", "forces"}
        np.testing.assert_allclose(found[0]["energy"], found[1]["energy"], **SINGLE)


@pytest.mark.parametrize("name", ["chgnet", "chgnet+d3"])
def test_a_structure_does_not_depend_on_its_batch(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms], name: str
) -> None:
    """To float32's rounding; a molecule in a box has no stress and keeps its place."""
    batched = CHGNetTeacher(teachers[name].calculator, batch_size=3)
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.13]], cell=[9.0] * 3)
    assert_batch_independent(
        batched, [*crystals.values(), molecule, bulk("NaCl", "rocksalt", a=5.6)]
    )


@pytest.mark.parametrize("name", ["chgnet", "chgnet+d3"])
def test_predictions_equal_those_of_the_ase_calculator(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms], name: str
) -> None:
    teacher = teachers[name]
    plain = CalculatorTeacher(teacher.calculator)
    left_handed = crystals["co2"].copy()
    left_handed.set_cell(left_handed.cell[:][[1, 0, 2]])

    for atoms in (*crystals.values(), left_handed):
        expected = predict(plain, atoms, *teacher.quantities)
        found = predict(teacher, atoms, *teacher.quantities)
        assert set(found) == set(expected)
        for quantity, value in expected.items():
            np.testing.assert_array_equal(found[quantity], value, err_msg=quantity)


def test_a_left_handed_cell_has_the_same_stress(
    teachers: dict[str, CHGNetTeacher], crystals: dict[str, Atoms]
) -> None:
    """CHGNet alone would take its volume for negative, and so its stress."""
    atoms, turned = crystals["urea"], crystals["urea"].copy()
    turned.set_cell(atoms.cell[:][[1, 0, 2]])
    assert turned.cell.handedness == -1

    teacher = teachers["chgnet"]
    expected, found = (predict(teacher, one, "energy", "stress") for one in (atoms, turned))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **SINGLE)
    assert np.abs(expected["stress"]).max() > 10 * SINGLE["atol"]


def test_predictions_equal_those_of_chgnets_own_calculator(crystals: dict[str, Atoms]) -> None:
    host = CHGNetCalculator(use_device="cpu", return_site_energies=True)
    atoms = crystals["urea"].copy()
    atoms.calc = host
    names = ("energy", "forces", "stress", "magmoms", "atomic_energies")
    found = predict(chgnet().as_teacher(), atoms, *names)
    assert found["energy"] == atoms.get_potential_energy()
    np.testing.assert_allclose(found["forces"], atoms.get_forces(), **SINGLE)
    np.testing.assert_allclose(found["stress"], atoms.get_stress(), **SINGLE)
    np.testing.assert_allclose(found["magmoms"], atoms.get_magnetic_moments(), **SINGLE)
    np.testing.assert_allclose(found["atomic_energies"], atoms.get_potential_energies(), **SINGLE)


def test_the_device_is_chosen_and_reported() -> None:
    """On a CPU one structure at a time is fastest, see `kd_plugins.chgnet.teacher.ON_CPU`."""
    teacher = load_teacher("chgnet+d3", "cpu")
    assert (teacher.device, teacher.batch_size) == ("cpu", 1)
    assert load_teacher("chgnet").device.startswith("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(TeacherError, match="device: expected"):
        chgnet(device="cuda:99")


def test_quantities_of_both_teachers(teachers: dict[str, CHGNetTeacher]) -> None:
    """Dispersion has no atomic energies."""
    common = ("energy", "energy_per_atom", "forces", "stress")
    more = ("atomic_energies", "magmoms", "node_embeddings")

    assert teachers["chgnet"].quantities == (*common, *more)
    assert teachers["chgnet+d3"].quantities == common
    assert teachers["chgnet"].receptive_field == 4 * 6.0


def test_fingerprint_depends_on_the_weights_alone(
    teachers: dict[str, CHGNetTeacher], tmp_path: Path
) -> None:
    """From the package or from a file, and not that of others; use changes nothing."""
    model = teachers["chgnet"].calculator.model
    torch.save({"model": model.as_dict()}, tmp_path / "same.pth.tar")
    same = load_teacher(f"chgnet model={tmp_path / 'same.pth.tar'}")

    assert same.fingerprint == load_teacher("chgnet").fingerprint == teachers["chgnet"].fingerprint

    other = load_teacher("chgnet model=r2scan")
    assert other.fingerprint != same.fingerprint
    assert same.fingerprint in teachers["chgnet+d3"].fingerprint
    assert '"damping": "d3bj"' in teachers["chgnet+d3"].fingerprint
    assert {"chgnet", "dftd3", "torch", "ase"} <= set(teachers["chgnet+d3"].versions)


def test_loading_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout is the command's own, and CHGNet's greeting would break its progress bar."""
    chgnet()
    assert "".join(capsys.readouterr()) == ""


class Opener:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return int, ("1",)


def test_bad_checkpoints_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """Each with what to do, and a pickle only if it is trusted."""
    path = tmp_path / "model.pth.tar"
    state = {"model": load_teacher("chgnet").calculator.model.as_dict()}
    torch.save({**state, "history": Opener()}, path)

    with pytest.raises(TeacherError, match="more than plain tensors.*trust_pickle=true"):
        load_teacher(f"chgnet model={path}")
    with pytest.raises(TeacherError, match="trust_pickle: expected true or false, got 'no'"):
        load_teacher(f"chgnet model={path} trust_pickle=no")
    assert load_teacher(f"chgnet model={path} trust_pickle=true").quantities

    for content in ({"state": 1}, [1]):
        torch.save(content, path)
        with pytest.raises(TeacherError, match="is no CHGNet checkpoint"):
            load_teacher(f"chgnet model={path}")

    for text, expected in (("hello", "is text"), ("<html>404", "web page"), ("", "is empty")):
        path.write_text(text)
        with pytest.raises(TeacherError, match=f"model.pth.tar: (is a )?{expected}") as no:
            load_teacher(f"chgnet model={path}")
        assert "trust" not in str(no.value)

    with pytest.raises(TeacherError, match="CHGNet has no weights '0.9.9', nor is that a file"):
        load_teacher("chgnet model=0.9.9")


def test_a_model_without_atomic_energies_is_refused() -> None:
    model = CHGNet(mlp_first=False, composition_model=None, read_out="ave")
    with pytest.raises(TeacherError, match="pools before its readout"):
        EmbeddingCalculator(model)
