"""A store beside its labels: ids, structures, the teacher's own energy, the fix, the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_plugins.doctor.align import align
from kd_plugins.doctor.diagnosis import Diagnosis, diagnose
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.doctor.references import References, fit_references
from kd_plugins.doctor.report import format_diagnosis
from kd_plugins.store import Manifest, Record, StoreError, TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures import LabelledStructure
from kd_plugins.structures.readers import to_atoms
from kd_plugins.teachers import load_teacher
from tests.doctor.faults import BOHR, GPA, HARTREE, KCAL, RYDBERG, changed, every, scaled, volume

MakeStore = Callable[[Iterable[DoctorInput]], TargetStore]
DTYPES = {"energy": "float64", "forces": "float32", "stress": "float32"}


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Write targets, into a new folder each time."""

    def make(inputs: Iterable[DoctorInput], dtypes: Mapping[str, str] = DTYPES) -> TargetStore:
        folder = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        names = {name for item in inputs for name in item.teacher}
        manifest = Manifest("t", "f", {n: d for n, d in dtypes.items() if n in names})
        store = TargetStore.create(folder, manifest)
        store.append(record(item) for item in inputs)
        return store

    return make


def record(item: DoctorInput) -> Record:
    values = {name: torch.from_numpy(value.copy()) for name, value in item.teacher.items()}
    return Record(item.structure_id, item.structure, values)


def to_labelled(inputs: Iterable[DoctorInput]) -> list[LabelledStructure]:
    return [
        LabelledStructure(item.structure_id, to_atoms(item.structure), item.labels)
        for item in inputs
    ]


def codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings}


def examined(inputs: Iterable[DoctorInput], store: TargetStore, **more: object) -> Diagnosis:
    return diagnose(to_labelled(inputs), store, progress=False, **more)


def test_nothing_is_found_in_a_sound_store(
    organic: list[DoctorInput], make_store: MakeStore
) -> None:
    """Though its positions, forces and stress went through float32."""
    diagnosis, n = examined(organic, make_store(organic)), len(organic)
    assert diagnosis.findings == ()
    assert diagnosis.exit_code == 0
    assert (diagnosis.n_labels, diagnosis.n_targets, diagnosis.n_compared) == (n, n, n)
    assert "\nnothing found\n\nwill it help? " in format_diagnosis(diagnosis)


def test_a_wrong_unit_in_a_store_is_an_error(
    organic: list[DoctorInput], make_store: MakeStore
) -> None:
    """Found through the file, with exit code 1."""
    broken = every("teacher", "energy", scaled(KCAL))(organic, np.random.default_rng(0))
    diagnosis = examined(organic, make_store(broken))
    assert codes(diagnosis) == {"energy-unit"}
    assert diagnosis.exit_code == 1
    assert "error energy-unit: " in format_diagnosis(diagnosis)


def test_an_overruled_error_becomes_a_warning(
    organic: list[DoctorInput], make_store: MakeStore
) -> None:
    """With exit code 0; the output names the option and what was overruled."""
    broken = every("teacher", "energy", scaled(KCAL))(organic, np.random.default_rng(0))
    store = make_store(broken)
    assert "--allow energy_unit" in " ".join(format_diagnosis(examined(organic, store)).split())

    diagnosis = examined(organic, store, allow=["energy_unit"])
    assert diagnosis.exit_code == 0
    assert codes(diagnosis) == {"energy-unit"}
    assert "warning energy-unit: " in format_diagnosis(diagnosis)
    with pytest.raises(ValueError, match="did you mean 'energy_unit'"):
        examined(organic, store, allow=["energy_units"])


def test_labels_without_targets_and_targets_without_labels_are_counted(
    copper: list[DoctorInput], make_store: MakeStore
) -> None:
    """A warning has their number, and the side that lacks them."""
    diagnosis = examined(copper[:20], make_store(copper[5:]))
    found = {finding.code: finding for finding in diagnosis.findings}
    assert diagnosis.n_compared == 15
    assert found["label-without-target"].message.startswith("5 of 20 labels have no target")
    assert found["target-without-label"].message.startswith("11 of 26 targets have no label")
    assert found["label-without-target"].structure_ids == tuple(
        item.structure_id for item in copper[:5]
    )
    assert diagnosis.exit_code == 0


def test_no_common_id_is_an_error(copper: list[DoctorInput], make_store: MakeStore) -> None:
    """One finding with an example of each, not two lists."""
    renamed = [replace(item, structure_id=f"x{item.structure_id}") for item in copper]
    diagnosis = examined(renamed, make_store(copper))
    assert codes(diagnosis) == {"ids-disjoint"}
    assert f"'x{copper[0].structure_id}'" in diagnosis.findings[0].message
    assert "nothing to examine" not in format_diagnosis(diagnosis)


def test_a_repeated_id_is_an_error(copper: list[DoctorInput], make_store: MakeStore) -> None:
    """Only its first structure is examined."""
    diagnosis = examined([*copper, copper[3]], make_store(copper))
    (finding,) = [finding for finding in diagnosis.findings if finding.severity == "error"]
    assert (finding.code, finding.structure_ids) == ("id-twice", (copper[3].structure_id,))
    assert (diagnosis.n_labels, diagnosis.n_compared) == (32, 31)


def test_exchanged_ids_are_distinguished_from_edited_structures(
    copper: list[DoctorInput], make_store: MakeStore
) -> None:
    """Because the structures stand in the store, elsewhere."""
    ids = [item.structure_id for item in copper]
    moved = [
        replace(item, structure_id=name)
        for item, name in zip(copper, ids[1:] + ids[:1], strict=True)
    ]
    diagnosis = examined(copper, make_store(moved))
    assert codes(diagnosis) == {"ids-shuffled"}
    assert diagnosis.n_compared == 0


def test_an_edited_structure_is_an_error(copper: list[DoctorInput], make_store: MakeStore) -> None:
    """With how the first of them differs."""
    moved = copper[4].structure.positions.copy()
    moved[2, 0] += 0.02
    here = copper[4].structure
    edited = Structure(here.atomic_numbers, moved, here.cell, here.pbc)
    inputs = [*copper[:4], replace(copper[4], structure=edited), *copper[5:]]
    diagnosis = examined(inputs, make_store(copper))
    (finding,) = [finding for finding in diagnosis.findings if finding.severity == "error"]
    assert finding.code == "structure-edited"
    assert "atom 2 is 0.0200 Å away" in finding.message


def test_a_damaged_record_is_an_error(copper: list[DoctorInput], make_store: MakeStore) -> None:
    """The others are examined all the same."""
    store = make_store(copper)
    whole = store.record

    def damaged(name: str) -> Record:
        if name == copper[2].structure_id:
            raise StoreError("its checksum does not fit")
        return whole(name)

    store.record = damaged
    diagnosis = examined(copper, store)
    assert codes(diagnosis) == {"damaged", "energy-offset"}
    assert diagnosis.n_compared == 30


def test_the_sample_depends_on_its_seed_alone(
    copper: list[DoctorInput], make_store: MakeStore
) -> None:
    """The same seed gives the same findings; every structure has its chance."""
    store = make_store(copper)
    first, again, other = (examined(copper, store, limit=20, seed=seed) for seed in (1, 1, 2))
    assert first.n_compared == 20
    assert first.findings == again.findings
    assert first.summaries != other.summaries
    with pytest.raises(ValueError, match="limit: expected a whole number of 1 or more, got 0"):
        examined(copper, store, limit=0)


def test_targets_without_labels_are_examined_alone(
    copper: list[DoctorInput], make_store: MakeStore
) -> None:
    """Only the teacher's side is examined."""
    bare = [replace(item, labels={}) for item in copper]
    diagnosis = examined(bare, make_store(copper))
    assert diagnosis.findings == ()
    assert diagnosis.references is None
    assert "there are no labels to compare with" in format_diagnosis(diagnosis)


@pytest.mark.usefixtures("unchecked")
def test_a_path_in_place_of_a_store_is_refused() -> None:
    """With what opens it."""
    with pytest.raises(ValueError, match="store: expected a TargetStore"):
        diagnose([], "targets")


def test_an_isolated_atom_is_a_warning(make_store: MakeStore) -> None:
    """In a wide cell, but not in a small one, where its image is near."""
    values = {"energy": np.asarray(0.0 - 1.0)}
    cells = {"wide": 20.0, "narrow": 3.0}
    inputs = [
        DoctorInput(
            name, Structure([18], [[0.0] * 3], np.eye(3) * size, [True] * 3), values, values
        )
        for name, size in cells.items()
    ]
    (finding,) = [
        finding
        for finding in examined(inputs, make_store(inputs)).findings
        if finding.code == "isolated-atom"
    ]
    assert finding.structure_ids == ("wide",)


BY_DIFFERENCES = {
    "sound": ("energy", lambda item, value: value, None),
    "energy in kcal/mol": ("energy", scaled(KCAL), "other-teacher"),
    "another energy": ("energy", lambda c, value: value + 0.05 * c.n_atoms, "other-teacher"),
    "gradients": ("forces", scaled(-1.0), "forces-not-derived"),
    "forces in eV/Bohr": ("forces", scaled(BOHR), "forces-not-derived"),
    "stress in GPa": ("stress", scaled(GPA), "stress-not-derived"),
    "pressure": ("stress", scaled(-1.0), "stress-not-derived"),
    "virial": ("stress", lambda item, value: value * volume(item), "stress-not-derived"),
    "forces by 20 %": ("forces", scaled(1.2), "forces-not-derived"),
}


@pytest.mark.parametrize("name", BY_DIFFERENCES)
def test_stored_values_are_compared_with_differences_of_the_teachers_energy(
    copper: list[DoctorInput], make_store: MakeStore, name: str
) -> None:
    """No label is needed to see that a store's values are not its derivatives."""
    quantity, change, code = BY_DIFFERENCES[name]
    bare = [replace(item, labels={}) for item in copper if item.n_atoms < 100]
    store = make_store(every("teacher", quantity, change)(bare, np.random.default_rng(0)))
    store.manifest = replace(store.manifest, fingerprint=load_teacher("emt").fingerprint)
    diagnosis = examined(bare, store, teacher=load_teacher("emt"))
    assert codes(diagnosis) == ({code} if code else set())
    assert diagnosis.exit_code == int(code is not None and name != "forces by 20 %")


def test_a_wrong_unit_is_named_from_differences_of_the_energy(
    copper: list[DoctorInput], make_store: MakeStore
) -> None:
    """Unit and sign at once, and the fingerprint."""
    broken = every("teacher", "forces", scaled(-BOHR))(copper, np.random.default_rng(0))
    store = make_store(every("teacher", "energy", scaled(KCAL))(broken, np.random.default_rng(0)))
    diagnosis = examined(copper, store, teacher=load_teacher("emt"))
    messages = {finding.code: finding.message for finding in diagnosis.findings}
    assert "eV/Bohr, not eV/Å with the wrong sign" in messages["forces-not-derived"]
    assert "in kcal/mol (the fingerprints differ)" in messages["other-teacher"]


@pytest.mark.parametrize(
    ("unit", "factor"), [("Rydberg/Bohr", RYDBERG * BOHR), ("Hartree/Å", HARTREE)]
)
def test_units_that_are_nearly_equal_are_distinguished_by_differences(
    copper: list[DoctorInput], make_store: MakeStore, unit: str, factor: float
) -> None:
    """Both are 6 % apart; finite differences are more precise."""
    bare = [replace(item, labels={}) for item in copper if item.n_atoms < 100]
    store = make_store(every("teacher", "forces", scaled(factor))(bare, np.random.default_rng(0)))
    (finding,) = examined(bare, store, teacher=load_teacher("emt")).findings
    assert f"in {unit}, not eV/Å" in finding.text


def test_rounding_of_a_float32_teacher_is_no_fault(
    organic: list[DoctorInput], make_store: MakeStore
) -> None:
    """Rounding is no fault."""
    teacher = load_teacher("chgnet")
    store = make_store(organic[:4])
    store.manifest = replace(store.manifest, fingerprint=teacher.fingerprint)
    diagnosis = examined(organic[:4], store, teacher=teacher)
    assert codes(diagnosis) <= {"energy-too-few"}


def references(inputs: Iterable[DoctorInput]) -> References:
    elements = [item.structure.atomic_numbers for item in inputs]
    teachers, labels = (
        np.array([float(side["energy"]) for side in sides])
        for sides in ([c.teacher for c in inputs], [c.labels for c in inputs])
    )
    return fit_references(elements, teachers, labels)


def shared_out(item: DoctorInput) -> DoctorInput:
    """Give the teacher atomic energies and an energy per atom as well."""
    each = item.teacher["energy"] / item.n_atoms
    with_parts = changed(item, "teacher", "atomic_energies", np.full(item.n_atoms, each))
    return changed(with_parts, "teacher", "energy_per_atom", each)


EVERYTHING = {**DTYPES, "atomic_energies": "float64", "energy_per_atom": "float64"}


def test_aligned_store_has_no_offset_and_gives_the_original_back(
    copper: list[DoctorInput], make_store: MakeStore, tmp_path: Path
) -> None:
    """A second look finds nothing, and what was added gives the original back."""
    inputs = [shared_out(item) for item in copper]
    store = make_store(inputs, EVERYTHING)
    before = examined(inputs, store)
    assert codes(before) == {"energy-offset"}
    aligned = align(store, before.references, tmp_path / "aligned", progress=False)
    assert examined(inputs, aligned).findings == ()
    added = aligned.manifest.energy_offsets
    assert list(added) == ["Cu"]
    for item in inputs:
        old, new = (held.record(item.structure_id) for held in (store, aligned))
        n_atoms = item.n_atoms
        for name, count in (("energy", n_atoms), ("energy_per_atom", 1), ("atomic_energies", 1)):
            torch.testing.assert_close(new.values[name] - count * added["Cu"], old.values[name])
        assert torch.equal(new.values["forces"], old.values["forces"])
        assert torch.equal(new.values["stress"], old.values["stress"])
    assert aligned.manifest.fingerprint == store.manifest.fingerprint
    assert aligned.manifest.dtypes == store.manifest.dtypes


def test_aligned_store_still_agrees_with_its_teacher(
    copper: list[DoctorInput], make_store: MakeStore, tmp_path: Path
) -> None:
    """Its fresh energies are compared with the offsets added."""
    store = make_store(copper)
    store.manifest = replace(store.manifest, fingerprint=load_teacher("emt").fingerprint)
    aligned = align(store, references(copper), tmp_path / "aligned", progress=False)
    assert examined(copper, aligned, teacher=load_teacher("emt")).findings == ()


def test_aligning_twice_into_one_folder_changes_nothing(
    copper: list[DoctorInput], make_store: MakeStore, tmp_path: Path
) -> None:
    """And doing it again changes nothing."""
    fitted, folder = references(copper), tmp_path / "aligned"
    store = make_store(copper)
    align(store, fitted, folder, progress=False)
    assert len(align(store, fitted, folder, progress=False)) == len(copper)


def test_offsets_of_two_alignments_add_up(
    copper: list[DoctorInput], make_store: MakeStore, tmp_path: Path
) -> None:
    """The manifest has the sum of what was added."""
    fitted = references(copper)
    once = align(make_store(copper), fitted, tmp_path / "once", progress=False)
    twice = align(once, fitted, tmp_path / "twice", progress=False)
    assert twice.manifest.energy_offsets["Cu"] == pytest.approx(-2 * fitted.offsets[29])


def salt(name: str, numbers: list[int], energy: float) -> DoctorInput:
    positions = 2.8 * np.arange(3 * len(numbers)).reshape(-1, 3)
    structure = Structure(numbers, positions, np.zeros((3, 3)), [False] * 3)
    parts = np.full(len(numbers), energy / len(numbers))
    values = {"energy": np.asarray(energy), "atomic_energies": parts}
    return DoctorInput(name, structure, {"energy": np.asarray(0.0)}, values)


def test_align_moves_only_what_the_fit_determines(make_store: MakeStore, tmp_path: Path) -> None:
    """In sodium chloride only the sum of both offsets is known."""
    inputs = [salt("one", [11, 17], -2.0), salt("two", [11, 17, 17, 11], -4.0)]
    fitted, target = references(inputs), tmp_path / "aligned"
    with pytest.raises(ValueError, match=r"'one' \(Na, Cl\): its atomic energies cannot be moved"):
        align(make_store(inputs, EVERYTHING), fitted, target, progress=False)
    assert not target.exists()
    bare = [changed(item, "teacher", "atomic_energies", None) for item in inputs]
    aligned = align(make_store(bare), fitted, target, progress=False)
    for item in inputs:
        assert aligned.record(item.structure_id).values["energy"].item() == pytest.approx(0.0)


@pytest.mark.parametrize("numbers", [[11, 17, 17], [11, 17, 35]], ids=["proportions", "element"])
def test_align_refuses_structures_with_undetermined_offsets(
    make_store: MakeStore, tmp_path: Path, numbers: list[int]
) -> None:
    """Before it writes anything."""
    labelled_ones = [salt("one", [11, 17], -2.0), salt("two", [11, 17, 17, 11], -4.0)]
    whole = [*labelled_ones, salt("odd", numbers, -3.0)]
    inputs = [changed(item, "teacher", "atomic_energies", None) for item in whole]
    with pytest.raises(ValueError, match=r"'odd' \(Na, Cl.*does not follow from the labelled"):
        align(make_store(inputs), references(labelled_ones), tmp_path / "aligned", progress=False)
    assert not (tmp_path / "aligned").exists()


def test_align_refuses_its_own_folder_and_a_store_without_energies(
    copper: list[DoctorInput], make_store: MakeStore, tmp_path: Path
) -> None:
    """Each with what is wrong."""
    store, fitted = make_store(copper), references(copper)
    with pytest.raises(ValueError, match="is the store itself; choose another folder"):
        align(store, fitted, store.folder / ".." / store.folder.name, progress=False)
    forces = make_store([changed(item, "teacher", "energy", None) for item in copper])
    with pytest.raises(ValueError, match="holds no energies; there is nothing to align"):
        align(forces, fitted, tmp_path / "aligned", progress=False)


def test_diagnosis_fits_a_terminal_and_names_elements(
    copper: list[DoctorInput], make_store: MakeStore
) -> None:
    """In a terminal of 100 columns, with symbols of elements."""
    broken = every("teacher", "forces", scaled(-1.0))(copper, np.random.default_rng(0))
    text = format_diagnosis(examined(copper[2:], make_store(broken)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "29 labels, 31 targets, 29 structures examined"
    assert "energy                        29       29   4.098 eV/atom" in text
    assert "by element, eV: Cu +4.098" in text
    assert text.index("error forces-sign") < text.index("warning energy-offset")
    (end,) = [row for row, line in enumerate(lines) if line.startswith("1 error, 2 warnings")]
    assert lines[end] == "1 error, 2 warnings: correct the errors before training"
    assert lines[end + 2].startswith("will it help? ")
    assert "advice" not in text  # nothing follows from forces of the wrong sign
