"""Databases, teachers and limits that would make a training wrong are refused, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from hippynn.databases import Database
from hippynn.graphs import inputs, networks, targets

from kd_plugins.hippynn import (
    ArrayNames,
    DataError,
    HippynnTeacher,
    add_teacher_targets,
    structure_keys,
    to_arrays,
)
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure
from tests.hippynn import fixtures

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def structures(shared_file: Callable[[str], Path]) -> list[LabelledStructure]:
    return fixtures.read_molybdenum(shared_file, small=6, large=6)


@pytest.fixture(scope="module")
def teacher(structures: list[LabelledStructure]) -> fixtures.Hipnn:
    """An untrained model, its atoms with the labels' mean energy; tests do not change it."""
    model = fixtures.make_hipnn()
    fixtures.initialise(model, fixtures.make_database(structures))
    return model


def target_arrays(data: Any) -> list[str]:
    return [name for arrays in data.splits.values() for name in arrays if "teacher_" in name]


def set_to(name: str, value: Callable[[torch.Tensor], Any], split: str = "train") -> Callable:
    """Return a function that replaces an array."""
    return lambda data: data.splits[split].update(
        {name: torch.as_tensor(value(data.splits[split][name]))}
    )


def edited(name: str, index: Any, value: Any, split: str = "train") -> Callable[[Any], None]:
    """Return a function that changes a few numbers of an array."""

    def change(data: Any) -> None:
        array = data.splits[split][name].clone()
        array[index] = value
        data.splits[split][name] = array

    return change


def flags(data: Any) -> None:
    for arrays in data.splits.values():
        arrays["_pbc"] = torch.ones(len(arrays["cell"]), 3)
    data.splits["train"]["_pbc"][3, 2] = 0


def cellless(data: Any) -> None:
    for arrays in data.splits.values():
        arrays["cell"] = torch.zeros_like(arrays["cell"])


DATABASES: Mapping[str, tuple[Callable[[Any], None], str]] = {
    "one is a molecule": (
        edited("cell", [1, 4], 0.0),
        r"split 'train': 'cell' has no volume in 2 of \d+ structures, rows 1, 4; hippynn would",
    ),
    "one is a slab": (edited("cell", (2, 2), 0.0, "valid"), "split 'valid': 'cell' has no volume"),
    "all are molecules": (cellless, r"no structure has a cell.*ArrayNames\(cell=None\)"),
    "flags": (flags, "split 'train': '_pbc' says not periodic in 1 of .*row 3"),
    "flat cells": (set_to("cell", lambda a: a.flatten(1)), r"'cell': expected \(\d+, 3, 3\) as of"),
    "one cell": (set_to("cell", lambda a: a[0]), r"'cell': expected \(\d+, 3, 3\)"),
    "NaN cell": (edited("cell", 0, np.nan), "'cell' is NaN or inf in 1 of .*row 0"),
    "inf position": (edited("positions", (2, 0), np.inf), "'positions' is NaN or inf in 1 .*row 2"),
    "flat positions": (set_to("positions", lambda a: a.flatten(1)), "'positions': expected"),
    "whole positions": (set_to("positions", lambda a: a.long()), "expected float32 or float64"),
    "half positions": (set_to("positions", lambda a: a.half()), "float32 or float64, got .*16"),
    "half energies": (set_to("energy", lambda a: a.half()), "'energy': expected float32 or"),
    "broken species": (set_to("numbers", lambda a: a.float()), "expected whole atomic numbers"),
    "short species": (set_to("numbers", lambda a: a.to(torch.uint8)), "expected .* int64"),
    "flat species": (set_to("numbers", lambda a: a[:, 0]), "expected whole atomic numbers"),
    "negative species": (edited("numbers", (1, 0), -1), "no element has in 1 of .*row 1"),
    "species 300": (edited("numbers", (1, 0), 300), "no element has in 1 of .*row 1"),
    "no atoms": (edited("numbers", 5, 0), "'numbers' holds no atom in 1 of .*row 5"),
    "no structures": (
        lambda data: data.splits.update(valid={n: a[:0] for n, a in data.splits["valid"].items()}),
        "split 'valid': 'numbers': expected .* of one structure or more",
    ),
    "numpy's": (
        lambda data: data.splits["train"].update(cell=data.splits["train"]["cell"].numpy()),
        "array 'cell': expected a torch tensor, got ndarray",
    ),
    "two energies": (set_to("energy", lambda a: a.repeat(1, 2)), "expected one a structure"),
    "not all split": (
        lambda data: (
            setattr(data, "splitting_completed", False)
            or data.arr_dict.update(indices=torch.arange(4))
        ),
        "4 structures of the database are in no split yet",
    ),
    "targets of validation": (
        lambda data: data.splits["valid"].update(teacher_atomic_energies=torch.zeros(1)),
        "has 'teacher_atomic_energies' already",
    ),
    "weights alone": (
        lambda data: data.splits["train"].update(teacher_atomic_energies_weight=torch.zeros(1)),
        "has 'teacher_atomic_energies_weight' already",
    ),
}


@pytest.mark.parametrize("name", DATABASES)
def test_bad_database_is_refused(
    name: str, structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    change, message = DATABASES[name]
    data = fixtures.make_database(structures)
    change(data)
    before = target_arrays(data)
    with pytest.raises(DataError, match=message):
        add_teacher_targets(data, teacher.energy)
    assert target_arrays(data) == before


SETTINGS: Mapping[str, tuple[dict[str, Any], str]] = {
    "spread 0": ({"spread": 0}, "spread: expected a number above 0 eV, got 0"),
    "spread -1": ({"spread": -1.0}, "spread: expected a number above 0 eV, got -1.0"),
    "spread NaN": ({"spread": float("nan")}, "spread: expected a number"),
    "spread a word": ({"spread": "0.1"}, "spread: expected a number"),
    "spread True": ({"spread": True}, "spread: expected a number"),
    "spread of forces": ({"spread": 0.1, "quantities": ("forces",)}, "weighs atomic_energies"),
    "sum error -1": ({"max_sum_error": -1}, "max_sum_error: expected a number above 0 eV/atom"),
    "sum error 0": ({"max_sum_error": 0.0}, "max_sum_error: expected a number above 0 eV/atom"),
    "sum error NaN": ({"max_sum_error": np.nan}, "max_sum_error: expected a number"),
    "sum error inf": ({"max_sum_error": np.inf}, "max_sum_error: expected a number"),
    "sum error tiny": ({"max_sum_error": 1e-12}, "'train': no structure has a target that counts"),
    "a number for quantities": ({"quantities": 3}, "expected one or more names, got 3"),
    "a number as quantity": ({"quantities": [3]}, "expected one or more names"),
    "no quantity": ({"quantities": ()}, "expected one or more names"),
    "sum error huge": ({"max_sum_error": 10**400}, "max_sum_error: expected a number"),
    "align no": ({"align": "no"}, "align: expected True or False, got 'no'"),
    "missing None": ({"allow_missing": None}, "allow_missing: expected True or False"),
    "quantity twice": ({"quantities": ("energy", "energy")}, "expected different names"),
    "names a dict": ({"names": {"species": "Z"}}, "names: expected ArrayNames"),
    "energy called E": ({"names": ArrayNames(energy="E")}, "no array 'E', which ArrayNames says"),
    "forces called F": ({"names": ArrayNames(forces="F")}, "no array 'F', which ArrayNames says"),
    "forces as energy": (
        {"names": ArrayNames(energy="forces", forces="energy")},
        "'forces': expected one a structure",
    ),
    "energy as positions": ({"names": ArrayNames(positions="energy", energy="positions")}, "expec"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_bad_settings_are_refused(
    name: str, structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    """spread=0 made every weight NaN, and max_sum_error=-1 dropped every target."""
    settings, message = SETTINGS[name]
    data = fixtures.make_database(structures)
    members = [teacher.energy, fixtures.copy_perturbed(teacher).energy]
    with pytest.raises(ValueError, match=message):
        add_teacher_targets(data, members, **settings)
    assert not target_arrays(data)


def test_bad_array_names_are_refused() -> None:
    with pytest.raises(DataError, match="expected the name of an array as species, got None"):
        ArrayNames(species=None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected a name for each array"):
        ArrayNames(energy="forces")


@pytest.mark.parametrize("allow", ["energy_unit", ["energy_units"], 3])
def test_unknown_name_in_allow_is_refused(
    allow: Any, structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    data = fixtures.make_database(structures)
    with pytest.raises(ValueError, match="^allow: "):
        add_teacher_targets(data, teacher.energy, allow=allow)
    assert not target_arrays(data)


def test_overruled_error_is_logged(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn, caplog: pytest.LogCaptureFixture
) -> None:
    """The message contains the name that overrules it."""
    data = fixtures.make_database(structures)
    for arrays in data.splits.values():
        arrays["energy"] += 5 * (arrays["numbers"] != 0).sum(1, keepdim=True)
    with pytest.raises(DataError, match=r"allow: \[energy_offset\] overrules this"):
        add_teacher_targets(data, teacher.energy)
    add_teacher_targets(data, teacher.energy, allow=["energy_offset"])
    assert "overruled by allow: [energy_offset]" in caplog.text


def test_missing_energy_labels_are_logged(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn, caplog: pytest.LogCaptureFixture
) -> None:
    data = fixtures.make_database(structures)
    for arrays in data.splits.values():
        del arrays["energy"]
    report = add_teacher_targets(data, teacher.energy)
    assert "no array 'energy', so the teacher's energies are not compared" in caplog.text
    assert "no energies to compare" in str(report) and "train" in str(report)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_bad_batch_size_is_refused(batch_size: Any, teacher: fixtures.Hipnn) -> None:
    with pytest.raises(ValueError, match="batch_size: expected a whole number of 1 or more"):
        HippynnTeacher(teacher.energy, batch_size=batch_size)


def test_teacher_without_cells_is_refused_for_crystals(structures: list[LabelledStructure]) -> None:
    """Its energies would be those of clusters, without an error."""
    sizes = {"possible_species": [0, 42], "n_features": 4, "n_sensitivities": 4}
    sizes |= {"dist_soft_min": 1.5, "dist_soft_max": 3.5, "dist_hard_max": 4.0}
    sizes |= {"n_interaction_layers": 1, "n_atom_layers": 1}
    nodes = (inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R"))
    network = networks.Hipnn("hipnn", nodes, module_kwargs=sizes)
    open_ = targets.HEnergyNode("energy", network)
    with pytest.raises(DataError, match=r"trained without cells.*ArrayNames\(cell=None\)"):
        add_teacher_targets(fixtures.make_database(structures), open_)


class Broken(Calculator):
    """A calculator with wrong atomic energies."""

    implemented_properties = ("energy", "energies")

    def __init__(self, wrong: Callable[[Atoms], Any]) -> None:
        super().__init__()
        self.wrong = wrong

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        super().calculate(atoms, *args, **kwargs)
        self.results = {"energy": 0.0, "energies": self.wrong(atoms)}


def fails(atoms: Atoms) -> Any:
    raise RuntimeError("out of memory")


CALCULATORS: Mapping[str, tuple[Any, str]] = {
    "of another element": (EMT(), r"split '\w+', row 0: .*Mo"),
    "that fails": (Broken(fails), r"split '\w+', row 0: RuntimeError: out of memory"),
    "of another shape": (Broken(lambda atoms: np.zeros(len(atoms) + 1)), r"split '\w+', row 0: "),
    "NaN": (Broken(lambda atoms: np.full(len(atoms), np.nan)), "NaN, inf or too large in .*row"),
    "too large": (Broken(lambda atoms: np.full(len(atoms), 1e39)), "NaN, inf or too large in"),
    "a class": (EMT, "the class EMT"),
    "a database": (Database, "expected a hippynn GraphModule"),
    "lists in a list": ([[EMT()]], "a list in it"),
}


@pytest.mark.parametrize("name", CALCULATORS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_teacher_is_refused(name: str, structures: list[LabelledStructure]) -> None:
    source, message = CALCULATORS[name]
    data = fixtures.make_database(structures)
    with pytest.raises(ValueError, match=message):
        add_teacher_targets(data, source)
    assert not target_arrays(data)


def molecules(
    structures: list[LabelledStructure], which: slice, pbc: Any
) -> list[LabelledStructure]:
    """Return the structures, some with other flags of periodicity."""
    found = list(structures)
    for row in range(len(structures))[which]:
        atoms = structures[row].atoms.copy()
        atoms.pbc = pbc
        found[row] = LabelledStructure(structures[row].structure_id, atoms, structures[row].labels)
    return found


@pytest.mark.parametrize(
    ("which", "pbc", "names", "message"),
    [
        (slice(2, 3), False, ArrayNames(), r"is not periodic .*\(pbc FFF\), as 1 are not"),
        (slice(2, 4), (True, True, False), ArrayNames(), r"\(pbc TTF\), as 2 are not"),
        (slice(None), False, ArrayNames(), r"all others are not periodic.*cell=None"),
        (slice(None), (True, True, False), ArrayNames(), r"\(pbc TTF\), as 12 are not"),
        (slice(1), False, ArrayNames(cell=None), r"is periodic \(pbc TTT\), but ArrayNames"),
    ],
)
def test_mixed_periodicity_is_refused(
    structures: list[LabelledStructure], which: slice, pbc: Any, names: ArrayNames, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        to_arrays(molecules(structures, which, pbc), names=names)


def test_molecules_become_arrays_without_cells(structures: list[LabelledStructure]) -> None:
    arrays = to_arrays(molecules(structures, slice(None), False), names=ArrayNames(cell=None))
    assert "cell" not in arrays


ARRAYS: Mapping[
    str, tuple[Callable[[LabelledStructure], LabelledStructure], dict[str, Any], str]
] = {
    "float16": (lambda f: f, {"dtype": np.float16}, "dtype: expected float32 or float64"),
    "whole": (lambda f: f, {"dtype": int}, "dtype: expected float32 or float64"),
    "labels a word": (lambda f: f, {"labels": "energy"}, "labels: expected a list of names"),
    "overflow": (
        lambda f: LabelledStructure("a", f.atoms, {**f.labels, "energy": np.array(1e39)}),
        {},
        "structure 'a': 'energy' is NaN, inf or too large for float32",
    ),
    "a ghost": (
        lambda f: LabelledStructure("a", Atoms("X", cell=f.atoms.cell, pbc=True), {}),
        {"labels": []},
        "structure 'a': expected atoms, each of an element, got X",
    ),
    "no atoms": (lambda f: LabelledStructure("a", Atoms(), {}), {"labels": []}, "expected atoms"),
    "atoms": (lambda f: f.atoms, {}, "structures: expected LabelledStructures, .* got Atoms"),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_arrays_are_refused(name: str, structures: list[LabelledStructure]) -> None:
    change, settings, message = ARRAYS[name]
    with pytest.raises(DataError, match=message):
        to_arrays([change(structures[0]), *structures[1:]], **settings)


def store_of(
    folder: Path, structures: list[LabelledStructure], values: Callable[[LabelledStructure], Any]
) -> TargetStore:
    manifest = Manifest("numbers", "made", dict.fromkeys(("energy", "atomic_energies"), "float64"))
    store = TargetStore.create(folder, manifest)
    store.append(
        [Record(f.structure_id, to_structure(f.atoms), values(f)) for f in structures if values(f)]
    )
    return store


def shares(structure: LabelledStructure) -> dict[str, torch.Tensor]:
    """Return the label in equal shares."""
    energy, n = float(structure.labels["energy"]), len(structure.atoms)
    return {
        "energy": torch.tensor(energy, dtype=torch.float64),
        "atomic_energies": torch.full((n,), energy / n, dtype=torch.float64),
    }


def test_store_without_a_quantity_of_some_structures_is_refused(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """Energies alone give no targets of atomic energies."""
    lacking = {structure.structure_id for structure in structures[:2]}
    store = store_of(
        tmp_path / "store",
        structures,
        lambda f: {
            name: value
            for name, value in shares(f).items()
            if name == "energy" or f.structure_id not in lacking
        },
    )
    data = fixtures.make_database(structures)
    with pytest.raises(DataError, match=r"store has no targets of \d of \d+ structures, row"):
        add_teacher_targets(data, store)
    report = add_teacher_targets(data, store, allow_missing=True)
    assert sum(report.missing.values()) == 2


def test_store_of_other_structures_is_refused(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """Also if structures may be missing: the run would silently be one without a teacher."""
    other = [LabelledStructure(f"other {f.structure_id}", f.atoms, f.labels) for f in structures]
    store = store_of(tmp_path / "store", other, shares)
    data = fixtures.make_database(structures)
    with pytest.raises(DataError, match="'train': no structure has a target that counts"):
        add_teacher_targets(data, store, allow_missing=True)
    assert not target_arrays(data)


@pytest.mark.parametrize(
    "keys", [lambda k: k.float(), lambda k: k.int(), lambda k: torch.stack([k, k], 1)]
)
def test_keys_of_another_dtype_are_refused(
    keys: Callable[[Any], Any], structures: list[LabelledStructure], tmp_path: Path
) -> None:
    data, store = (
        fixtures.make_database(structures),
        store_of(tmp_path / "store", structures, shares),
    )
    for arrays in data.splits.values():
        arrays["structure_key"] = keys(arrays["structure_key"])
    with pytest.raises(DataError, match="expected one int64 a structure"):
        add_teacher_targets(data, store)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_targets_have_the_databases_dtype(
    dtype: Any, structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    arrays = to_arrays(structures, dtype=dtype)
    data = Database(arrays, None, None, seed=0, test_size=3, valid_size=3, quiet=True)
    add_teacher_targets(data, teacher.energy)
    found = data.splits["train"]["teacher_atomic_energies"]
    assert found.dtype == data.splits["train"]["positions"].dtype


def test_structure_that_comes_twice_has_equal_targets(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """A database may repeat structures to train on them more often."""
    store = store_of(tmp_path / "store", structures, shares)
    arrays = {name: np.concatenate([one, one[:3]]) for name, one in to_arrays(structures).items()}
    data = Database(arrays, None, None, seed=0, quiet=True)
    data.split_the_rest("train")
    add_teacher_targets(data, store)
    found = data.splits["train"]["teacher_atomic_energies"]
    assert torch.equal(found[:3], found[len(structures) :])


@pytest.mark.parametrize("ids", ["abc", [3], [b"a"]])
def test_ids_that_are_no_texts_are_refused(ids: Any) -> None:
    with pytest.raises(DataError, match="structure_ids: expected"):
        structure_keys(ids)


def test_store_of_another_unit_is_refused(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """Such as kcal/mol."""
    store = store_of(
        tmp_path / "store", structures, lambda f: {n: 23.0605 * v for n, v in shares(f).items()}
    )
    data = fixtures.make_database(structures)
    with pytest.raises(DataError, match="unit|above the labels"):
        add_teacher_targets(data, store)
    assert not target_arrays(data)


def test_nan_in_padding_passes(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    """Labels padded with NaN."""
    data = fixtures.make_database(structures)
    for arrays in data.splits.values():
        arrays["forces"][arrays["numbers"] == 0] = float("nan")
    add_teacher_targets(data, teacher.energy, ("atomic_energies", "forces"))
    assert target_arrays(data)
