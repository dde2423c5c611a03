"""DistillData gives CHGNet what the files and the store hold, in its units, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from chgnet.data.dataset import collate_graphs

from kd_plugins.chgnet import DistillData, DistillLoss, Ratios, align_references
from kd_plugins.chgnet.convert import to_pymatgen
from kd_plugins.chgnet.data import DataError
from kd_plugins.structures import LabelledStructure
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
"""Of one model's values, in float32, in eV/atom, eV/Å and GPa."""


def test_samples_hold_the_numbers_of_store_and_labels_by_id(salts: Labelled) -> None:
    """Whatever the order, per atom and in GPa."""
    structures = [salts.structures[index] for index in (2, 0, 3, 1)]
    data = salts.data(structures, hard=("energy", "forces", "stress"))

    assert [row.structure_id for row in data.samples] == [
        structure.structure_id for structure in structures
    ]

    for structure, (graph, targets) in zip(structures, data, strict=True):
        assert graph.graph_id == structure.structure_id
        values = {
            name: value.numpy()
            for name, value in salts.store[structure.structure_id].values.items()
        }
        for prefix, source in (("soft_", values), ("", structure.labels)):
            found = {letter: targets[prefix + letter].numpy() for letter in "efs"}
            energy, stress = (np.ravel(source[name]) for name in ("energy", "stress"))
            np.testing.assert_allclose(found["e"], energy[0] / len(structure.atoms), rtol=1e-6)
            np.testing.assert_allclose(found["f"], source["forces"], rtol=1e-6)
            full = voigt_6_to_full_3x3_stress(stress) * 160.21766208
            np.testing.assert_allclose(found["s"], full, rtol=1e-5, atol=1e-5)

    assert data.keys == ("e", "f", "s", "soft_e", "soft_f", "soft_s")


def test_a_teacher_equal_to_the_student_gives_zero_loss(
    salts: Labelled, crystals: Labelled
) -> None:
    """Through store, loader and loss."""
    model = fixtures.student()
    for source in (salts, crystals):
        data = source.data(store=source.own, soft=("energy", "forces", "stress"))
        for graphs, targets in fixtures.loader(data, 2):
            for graph in graphs:
                graph.atom_frac_coord.requires_grad_()
            loss = DistillLoss(Ratios(soft={"energy": 1, "forces": 1, "stress": 1}))
            out = loss(targets, model(graphs, task="efs"))
            assert float(out["loss"]) < 3e-4


@pytest.mark.parametrize("left_handed", [False, True])
def test_stress_equals_the_strain_derivative_of_the_students_energy(
    salts: Labelled, left_handed: bool
) -> None:
    """By central differences of energies that go the same way; 1 GPa is 1e9 J/m³."""
    atoms = salts.structures[2].atoms.copy()
    if left_handed:
        atoms.set_cell(atoms.cell.array[[1, 0, 2]])

    model = fixtures.student()
    volume, step = atoms.get_volume(), 0.004
    found = np.zeros((3, 3))

    for row in range(3):
        for column in range(row, 3):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[row, column] += 0.5 * sign * step
                strain[column, row] += 0.5 * sign * step
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                predicted = model.predict_structure(to_pymatgen(moved), task="e")["e"]
                energies.append(float(predicted) * len(atoms))
            slope = (energies[0] - energies[1]) / (2 * step) / volume * 160.21766208
            found[row, column] = found[column, row] = slope

    expected = model.predict_structure(to_pymatgen(atoms), task="efs")["s"]
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.05)

    assert np.abs(expected).max() > 1.0

    if not left_handed:
        data = salts.data([salts.structures[2]], store=salts.own, soft=("stress",))
        np.testing.assert_allclose(data[0][1]["soft_s"].numpy(), expected, **ROUNDING)


def test_a_left_handed_cell_gives_the_same_predictions(salts: Labelled) -> None:
    atoms = salts.structures[0].atoms
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array[[1, 0, 2]])
    model = fixtures.student()
    one, other = (
        model.predict_structure(to_pymatgen(each), task="efs") for each in (atoms, turned)
    )

    for letter in "efs":
        np.testing.assert_allclose(one[letter], other[letter], **ROUNDING)


def bad_structures(salts: Labelled) -> list[LabelledStructure]:
    """Return good and bad structures in turn."""
    good = salts.structures
    missing = fixtures.moved(good[0], good[0].atoms)
    stretched = good[1].atoms.copy()
    stretched.positions[0, 0] += 0.1
    return [
        good[2],
        LabelledStructure("nowhere/0", missing.atoms, good[0].labels),
        fixtures.moved(good[1], stretched),
        good[0],
        fixtures.with_label(good[3], forces=np.full((2, 3), np.nan)),
        good[0],
    ]


def test_bad_structures_are_named_and_never_replaced(salts: Labelled) -> None:
    with pytest.raises(DataError) as caught:
        salts.data(bad_structures(salts), hard=("forces",))

    message = str(caught.value)
    assert message.startswith("4 of 6 structures cannot be trained on (give bad='leave_out'")

    for name in ("nowhere/0", "GaAs/0", "AlP/0", "NaCl/0"):
        assert f"  {name}: " in message


def test_left_out_structures_are_listed_and_the_others_keep_their_order(
    salts: Labelled, caplog: pytest.LogCaptureFixture
) -> None:
    data = salts.data(bad_structures(salts), hard=("forces",), bad="leave_out")
    assert [row.structure_id for row in data.samples] == ["ZnS/0", "NaCl/0"]
    assert [graph.graph_id for graph, _ in data] == ["ZnS/0", "NaCl/0"]
    assert list(data.left_out) == ["nowhere/0", "GaAs/0", "AlP/0", "NaCl/0"]
    assert "holds NaN or inf" in data.left_out["AlP/0"]
    assert "4 of 6 structures cannot be trained on (they are left out)" in caplog.text
    with pytest.raises(IndexError):
        data[2]


def test_labels_that_may_be_missing_are_nan(salts: Labelled) -> None:
    structures = [
        fixtures.with_label(salts.structures[0], energy=None, magmoms=None),
        fixtures.with_label(salts.structures[1], magmoms=[np.nan, -0.5]),
    ]
    names = ("energy", "magmoms")
    data = salts.data(structures, hard=names, missing=names)

    assert data[0][1]["e"].isnan()
    assert data[0][1]["m"].isnan().tolist() == [True, True]
    assert data[1][1]["m"].nan_to_num(-1).tolist() == [-1, 0.5]  # CHGNet's are absolute

    _, targets = collate_graphs([data[0], data[1]])
    assert targets["e"].isnan().tolist() == [True, False]


def test_a_part_is_a_data_set(data: DistillData) -> None:
    part = data.part([3, 1])
    assert [row.structure_id for row in part.samples] == [data.samples[3].structure_id, "GaAs/0"]
    assert len(data) == 4
    assert part.fingerprint != data.fingerprint != data.part([1, 0, 2, 3]).fingerprint
    assert data.fingerprint == data.part(range(4)).fingerprint


def test_aligning_references_removes_an_offset_per_element(
    salts: Labelled, data: DistillData
) -> None:
    """A teacher that is the student plus an energy an element."""
    offsets = {11: 3.0, 17: -2.0, 31: 0.7, 33: 0.2, 30: -1.0, 16: 4.0, 13: 0.0, 15: -6.0}
    structures = [
        fixtures.with_label(
            structure,
            energy=structure.labels["energy"] + sum(offsets[z] for z in structure.atoms.numbers),
        )
        for structure in salts.structures
    ]
    shifted = salts.data(structures, hard=("energy",))
    model = fixtures.student()
    before = model.composition_model.fc.weight.clone()
    graphs = [graph for graph, _ in shifted]
    forces = model.predict_graph(graphs, task="efs")
    references = align_references(model, shifted, "hard")
    changed = {int(z) + 1 for z in (model.composition_model.fc.weight != before)[0].nonzero()[:, 0]}

    assert changed <= set(offsets)
    assert set(references.offsets) == set(offsets)

    after = model.predict_graph(graphs, task="efs")
    for row, one, other in zip(shifted.samples, forces, after, strict=True):
        assert float(other["e"]) == pytest.approx(float(row.targets["e"]), abs=1e-5)
        np.testing.assert_array_equal(one["f"], other["f"])
        np.testing.assert_array_equal(one["s"], other["s"])


def test_aligning_needs_energies_and_references(salts: Labelled) -> None:
    model = fixtures.student()
    with pytest.raises(ValueError, match="no hard energy to align with"):
        align_references(model, salts.data(), "hard")

    model.composition_model = None
    with pytest.raises(ValueError, match="has no element references"):
        align_references(model, salts.data())


def test_atoms_are_not_wrapped_or_reordered() -> None:
    atoms = Atoms("ClNa", cell=np.eye(3) * 4, pbc=True, positions=[[5.0, 0, 0], [-1, 2, 2]])
    structure = to_pymatgen(atoms)
    np.testing.assert_allclose(structure.cart_coords, atoms.positions, atol=1e-12)

    assert [site.species_string for site in structure] == ["Cl", "Na"]


def test_a_molecule_in_a_box_has_no_periodic_images() -> None:
    """As the teacher computes it; with periodicity it has neighbours beyond the box."""
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.13]], cell=[4.0] * 3)
    converter = fixtures.student().graph_converter
    n_edges = {}

    for periodic in (False, True):
        molecule.pbc = periodic
        n_edges[periodic] = len(converter(to_pymatgen(molecule)).atom_graph)

    assert n_edges[False] == 2
    assert n_edges[True] > 2
