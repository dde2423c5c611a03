"""An EquiformerV2 labels with the targets that it has in a training, the same each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch_geometric.data import Batch

from kd_plugins.fairchem.batch_teacher import BATCH_SIZES, EqV2Teacher
from kd_plugins.fairchem.checkpointing import read_checkpoint
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.fairchem.teacher import FrozenEquiformerV2
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.teachers import TeacherError, label, load_teacher
from tests.fairchem import tiny
from tests.teachers.batching import assert_batch_independent
from tests.tolerances import REORDERED

EVERYTHING = EqV2Teacher.quantities
ROLLED = {"rtol": 0.0, "atol": 2e-2}
"""In eV, eV/Å and features of a tiny model, between other rolls of its edge frames."""


@pytest.fixture(scope="module")
def name(teacher: Path) -> str:
    """The teacher's name."""
    return f"eqv2 checkpoint={teacher} weights=raw"


@pytest.fixture(scope="module")
def labeller(name: str) -> EqV2Teacher:
    """The teacher, made by its name."""
    return load_teacher(name)


def predicted(
    teacher: EqV2Teacher, atoms: Atoms, quantities: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the prediction of one structure."""
    (values,) = teacher.predict([atoms], quantities)
    return values


def online(checkpoint: Path) -> FrozenEquiformerV2:
    """Return the teacher that distils in every step."""
    settings = TeacherSettings(str(checkpoint), weights="raw")
    return FrozenEquiformerV2(read_checkpoint(settings), torch.device("cpu"))


def test_targets_equal_those_of_the_teacher_in_memory(labeller: EqV2Teacher, teacher: Path) -> None:
    """Of the batches that fairchem's own data pipeline makes, given the same random rolls."""
    as_trained = online(teacher)
    for index in range(3):
        atoms = tiny.slab(index)
        batch = Batch.from_data_list([labeller._to_graph.convert(atoms)])
        torch.manual_seed(0)
        expected = as_trained(batch).values
        found = predicted(labeller, atoms, EVERYTHING)
        assert found["energy"].shape == found["energy_per_atom"].shape == ()
        for quantity in expected:
            value = torch.from_numpy(np.asarray(found[quantity]))
            torch.testing.assert_close(
                value, expected[quantity].reshape(value.shape), **REORDERED[torch.float32]
            )


def test_targets_are_the_same_every_time(labeller: EqV2Teacher, name: str) -> None:
    """To the bit: after other structures, after other random numbers, by another teacher."""
    atoms = tiny.slab(0)
    expected = predicted(labeller, atoms, EVERYTHING)
    predicted(labeller, tiny.slab(1), ["energy"])
    torch.rand(7)
    for who in (labeller, load_teacher(name)):
        for quantity, value in predicted(who, atoms, EVERYTHING).items():
            assert np.array_equal(value, expected[quantity]), quantity


def test_targets_do_not_depend_on_the_batch(
    labeller: EqV2Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edge frames included, which the bare model draws for all edges of a batch.

    No structure is symmetric: where the neighbours' parts of a degree cancel, the model's layer
    norm divides rounding by rounding, and a molecule of CH4 has forces that differ by 1e-2.
    """
    monkeypatch.setitem(BATCH_SIZES, "cpu", 4)
    slabs = [tiny.slab(index) * (1 + index, 1, 1) for index in range(3)]
    molecules = [molecule(name) for name in ("H2O", "CH4")]
    for atoms in molecules:
        atoms.rattle(0.1, seed=1)
    mixed = [slabs[0], molecules[0], *slabs[1:], molecules[1]]
    assert_batch_independent(labeller, mixed, tolerance=1e-4)


def test_random_numbers_of_the_caller_are_left_alone(labeller: EqV2Teacher, name: str) -> None:
    """Neither labelling nor making the teacher takes or seeds any."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    predicted(labeller, tiny.slab(0), ["energy"])
    load_teacher(name)
    assert torch.equal(torch.rand(3), expected)


def test_energies_and_embeddings_fit_together(labeller: EqV2Teacher) -> None:
    """Atomic energies sum to the energy; node embeddings are row 0 of the equivariant ones."""
    atoms = tiny.slab(2)
    found = predicted(labeller, atoms, EVERYTHING)
    assert found["atomic_energies"].sum() == pytest.approx(float(found["energy"]), abs=1e-5)
    assert found["energy_per_atom"] * len(atoms) == pytest.approx(float(found["energy"]))
    assert found["equivariant_embeddings"].shape == (5, 9, 8)
    assert np.array_equal(found["equivariant_embeddings"][:, 0], found["node_embeddings"])


def test_only_the_quantities_given_are_returned(labeller: EqV2Teacher) -> None:
    """And no stress, which it does not offer."""
    assert set(predicted(labeller, tiny.slab(0), ["forces"])) == {"forces"}
    assert "stress" not in labeller.quantities


def test_permutation_and_translation(labeller: EqV2Teacher) -> None:
    """Energies and invariant embeddings go with their atoms, to the edge frames' random rolls."""
    atoms, order = tiny.slab(0), np.array([3, 1, 4, 0, 2])
    moved = atoms.copy()
    moved.positions += [0.4, -0.7, 0.2] + 3 * atoms.cell[0]
    expected = predicted(labeller, atoms, EVERYTHING)
    for same, places in ((moved, np.arange(5)), (atoms[order], order)):
        found = predicted(labeller, same, EVERYTHING)
        for quantity in ("energy", "forces", "atomic_energies", "node_embeddings"):
            reordered = expected[quantity] if quantity == "energy" else expected[quantity][places]
            np.testing.assert_allclose(found[quantity], reordered, **ROLLED)


def test_the_structure_is_left_as_it_was(labeller: EqV2Teacher) -> None:
    """Also one with fixed atoms outside its cell."""
    atoms = tiny.slab(1)
    atoms.calc = None
    atoms.positions += 2 * atoms.cell[0]
    before = atoms.copy()
    predicted(labeller, atoms, ["energy"])
    assert atoms == before
    assert atoms.calc is None
    assert atoms.info == before.info
    assert len(atoms.constraints) == 1


def test_targets_into_a_store(
    name: str, labeller: EqV2Teacher, databases: tuple[Path, Path], tmp_path: Path
) -> None:
    """From fairchem's own database, under the ids that it gives, embeddings in half precision."""
    _, source = databases
    folder = tmp_path / "targets"
    wanted = {"energy": "float64", "forces": "float32", "node_embeddings": "float16"}
    report = label(read_structures([source]), name, folder, wanted, progress=False)
    assert (report.labelled, report.failed) == (3, {})
    store = TargetStore.open(folder)
    assert sorted(store.ids()) == [f"slab{index}/0" for index in (6, 7, 8)]
    assert store.verify() == []
    assert store.manifest.fingerprint == labeller.fingerprint
    assert set(store.manifest.versions) == {"fairchem-core", "torch"}
    for frame in read_structures([source]):
        expected, found = (
            predicted(labeller, frame.atoms, tuple(wanted)),
            store[frame.structure_id].values,
        )
        assert found["energy"].item() == expected["energy"]
        assert np.array_equal(found["forces"].numpy(), expected["forces"])
        half = expected["node_embeddings"].astype(np.float16)
        assert np.array_equal(found["node_embeddings"].numpy(), half)
    assert label(read_structures([source]), name, folder, progress=False).skipped == 3


def test_identity_is_that_of_the_weights(
    labeller: EqV2Teacher, teacher: Path, tmp_path: Path
) -> None:
    """Raw and averaged ones differ; a copy of the file does not."""
    copy = tmp_path / "copy.pt"
    copy.write_bytes(teacher.read_bytes())
    raw, averaged = (load_teacher(f"eqv2 checkpoint={copy} weights={w}") for w in ("raw", "ema"))
    assert raw.fingerprint == labeller.fingerprint
    assert averaged.fingerprint != labeller.fingerprint


Edit = Callable[[dict[str, Any]], object]

FAULTS = {
    "no file": (None, "weights=raw", "checkpoint: there is no file"),
    "open choice": (lambda raw: None, "", "weights: ema .what fairchem validates with. or raw"),
    "wrong choice": (lambda raw: None, "weights=EMA", "unknown choice 'EMA'; known: ema, raw"),
    "a word for a boolean": (lambda raw: None, "trust_pickle=no", "expected true or false"),
    "no such degree": (lambda raw: None, "weights=raw lmax=3", "lmax: expected at most 2, .*got 3"),
    "a word for a degree": (lambda raw: None, "weights=raw lmax=two", "lmax: .*'?two'?"),
    "no checkpoint": (lambda raw: raw.pop("config"), "", "not a fairchem checkpoint"),
    "another model": (
        lambda raw: raw["config"]["model"].update(name="gemnet_oc"),
        "weights=raw",
        "the teacher is a 'gemnet_oc'; expected an EquiformerV2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_and_arguments_that_are_refused(teacher: Path, tmp_path: Path, fault: str) -> None:
    """In the words of the command, not of a training's YAML."""
    edit, arguments, message = FAULTS[fault]
    path = tmp_path / "teacher.pt"
    if edit is not None:
        raw = tiny.load(teacher)
        edit(raw)
        torch.save(raw, path)
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(f"eqv2 checkpoint={path} {arguments}")
    assert "task.distill" not in str(caught.value)


def test_a_file_that_is_no_torch_file(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("hello")
    with pytest.raises(TeacherError, match=r"notes\.pt: not a"):
        load_teacher(f"eqv2 checkpoint={tmp_path / 'notes.pt'}")


def test_a_model_without_a_force_head(teacher: Path, tmp_path: Path) -> None:
    """Predicts the rest, and stops a labelling of forces at its first structure."""
    raw = tiny.load(teacher)
    del raw["config"]["model"]["heads"]["forces"]
    raw["config"]["model"]["backbone"]["regress_forces"] = False
    raw["state_dict"] = {
        name: value for name, value in raw["state_dict"].items() if ".forces." not in name
    }
    torch.save(raw, tmp_path / "energy.pt")
    made = load_teacher(f"eqv2 checkpoint={tmp_path / 'energy.pt'} weights=raw")
    assert set(predicted(made, tiny.slab(0), ["energy", "node_embeddings"])) == {
        "energy",
        "node_embeddings",
    }
    frames = [LabelledStructure("slab", tiny.slab(0))]
    with pytest.raises(TeacherError, match="gives no 'forces'; leave that out of the quantities"):
        label(frames, made, tmp_path / "store", progress=False)


@pytest.mark.parametrize("box", [{}, {"vacuum": 4.0}], ids=["no cell", "in a box"])
def test_molecules_are_labelled(labeller: EqV2Teacher, box: dict[str, float]) -> None:
    """Is labelled as well, with or without a cell."""
    found, bare = (predicted(labeller, molecule("H2O", **sides), EVERYTHING) for sides in (box, {}))
    for quantity, value in found.items():
        np.testing.assert_allclose(value, bare[quantity], **ROLLED)


def test_an_atom_without_neighbours(labeller: EqV2Teacher) -> None:
    """Is beyond EquiformerV2, and no number is made up for it."""
    with pytest.raises(ValueError, match="no atom of the structure has a neighbour"):
        predicted(labeller, Atoms("O", cell=[9, 9, 9], pbc=True), ["energy"])
