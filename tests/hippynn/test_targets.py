"""A teacher's targets in a database: equal from every kind of teacher, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from hippynn.experiment import assemble_for_training
from hippynn.graphs import GraphModule
from hippynn.graphs.gops import swap_pairfinders
from hippynn.graphs.nodes.pairs import DynamicPeriodicPairs
from hippynn.interfaces.ase_interface import HippynnCalculator

from kd_plugins.hippynn import (
    ArrayNames,
    DataError,
    HippynnTeacher,
    add_teacher_targets,
    cache_pairs,
    distillation_loss,
    to_arrays,
)
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure
from tests.hippynn import fixtures

EVERYTHING = ("atomic_energies", "energy", "forces")


@pytest.fixture
def structures(shared_file: Callable[[str], Path]) -> list[LabelledStructure]:
    return fixtures.read_molybdenum(shared_file, large=12)


@pytest.fixture
def teacher(structures: list[LabelledStructure]) -> fixtures.Hipnn:
    """An untrained model whose atoms have the labels' mean energy."""
    model = fixtures.make_hipnn()
    fixtures.initialise(model, fixtures.make_database(structures))
    return model


def added(data: Any) -> dict[str, torch.Tensor]:
    return {
        f"{split} {name}": array
        for split, arrays in data.splits.items()
        for name, array in arrays.items()
        if name.startswith("teacher_")
    }


def labelled(
    folder: Path, structures: list[LabelledStructure], model: Any, **changes: Any
) -> TargetStore:
    """Return a store with a model's targets of structures."""
    manifest = Manifest("HIPNN", "a model", dict.fromkeys(EVERYTHING, "float64"))
    store = TargetStore.create(folder, manifest)
    arrays = {n: torch.as_tensor(a) for n, a in to_arrays(structures).items()}
    predicted = HippynnTeacher(model).predict_arrays(arrays, EVERYTHING)

    records = []
    for row, one in enumerate(structures):
        n = len(one.atoms)
        values = {
            "atomic_energies": predicted["atomic_energies"][row][:n],
            "energy": predicted["energy"][row],
            "forces": predicted["forces"][row][:n],
        }
        values = {name: torch.tensor(value) for name, value in values.items()}
        structure = to_structure(changes.get("atoms", one.atoms))
        records.append(Record(one.structure_id, structure, values))
    store.append(records[: changes.get("count")])
    return store


def test_targets_equal_hippynns_predictions(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    """In every split, padded, and atoms add up to the whole."""
    data = fixtures.make_database(structures)
    report = add_teacher_targets(data, teacher.energy, EVERYTHING)
    for split, arrays in data.splits.items():
        predicted = fixtures.predict_with_hippynn(teacher, arrays)
        for name, value in predicted.items():
            np.testing.assert_allclose(arrays[f"teacher_{name}"], value, rtol=1e-5, atol=1e-5)
        real = arrays["numbers"] != 0
        assert torch.equal(arrays["teacher_atomic_energies_weight"] == 1, real)
        assert not arrays["teacher_atomic_energies"][~real].any()
        total = arrays["teacher_atomic_energies"].sum(1, keepdim=True)
        torch.testing.assert_close(total, arrays["teacher_energy"], rtol=1e-5, atol=1e-3)
        errors = ((total - arrays["energy"]) / real.sum(1, keepdim=True)).double()
        assert report.sums[split].mean == pytest.approx(errors.mean().item(), abs=1e-4)
        assert split in str(report)


def test_targets_are_the_same_from_every_kind_of_teacher(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn, tmp_path: Path
) -> None:
    """A node, its model, a model with other pair finders, an ASE calculator, a store."""
    expected = fixtures.make_database(structures)
    add_teacher_targets(expected, teacher.energy)
    cached = with_cached_pairs(structures, teacher)
    dynamic = fixtures.copy.deepcopy(teacher)
    swap_pairfinders(dynamic.energy, DynamicPeriodicPairs, module_kwargs={"dist_hard_max": 4.0})
    sources = {
        "model": GraphModule(fixtures.input_nodes(teacher), [teacher.energy.main_output]),
        "cached pairs": cached,
        "dynamic pairs": dynamic.energy,
        "calculator": PerAtom(teacher.energy),
        "store": labelled(tmp_path / "store", structures, teacher.energy),
    }
    for source in sources.values():
        data = fixtures.make_database(structures)
        add_teacher_targets(data, source)
        for name, array in added(expected).items():
            torch.testing.assert_close(added(data)[name], array, rtol=1e-5, atol=1e-5)


class PerAtom(HippynnCalculator):
    """hippynn's calculator with each atom's energy under ASE's name, in eV."""

    def __init__(self, energy: Any) -> None:
        extra = {"potential_energies": energy.atom_energies}
        super().__init__(energy, extra_properties=extra, en_unit=1.0)
        self.implemented_properties.append("energies")

    def get_property(self, name: str, atoms: Any, allow_calculation: bool = True) -> Any:
        found = super().get_property(
            {"energies": "potential_energies"}.get(name, name), atoms, allow_calculation
        )
        return found[:, 0] if name == "energies" else found


def with_cached_pairs(structures: list[LabelledStructure], teacher: fixtures.Hipnn) -> Any:
    """Return the model of a script that has cached its pairs."""
    twin, data = fixtures.copy.deepcopy(teacher), fixtures.make_database(structures)
    loss = distillation_loss(twin.energy, weights={"energy": 1}, energies="total")
    modules, _ = assemble_for_training(loss.train, dict(loss.validation))
    cache_pairs(modules.model, data)
    modules, info = assemble_for_training(loss.train, dict(loss.validation))
    assert "AutoPrecomputedPairs" in info["inputs"]
    return modules.model


def test_several_models_give_mean_and_spread(structures: list[LabelledStructure]) -> None:
    """Equal to the mean and the sample standard deviation of hippynn's own predictions."""
    models = [fixtures.make_hipnn(seed) for seed in (2, 4, 6)]
    for model in models:
        fixtures.initialise(model, fixtures.make_database(structures))
    data = fixtures.make_database(structures)
    add_teacher_targets(data, [model.energy for model in models], spread=0.01)
    for arrays in data.splits.values():
        predicted = np.stack(
            [fixtures.predict_with_hippynn(model, arrays)["atomic_energies"] for model in models]
        )
        np.testing.assert_allclose(arrays["teacher_atomic_energies"], predicted.mean(0), atol=1e-4)
        real = arrays["numbers"].numpy() != 0
        expected = real / (1 + np.square(predicted.std(0, ddof=1) / 0.01))
        np.testing.assert_allclose(
            arrays["teacher_atomic_energies_weight"], expected, rtol=1e-3, atol=1e-4
        )


def test_teacher_is_never_changed(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    """Weights, mode and graph of the user's model."""
    teacher.network.torch_module.train()
    before = {n: p.clone() for n, p in teacher.network.torch_module.named_parameters()}
    names = sorted(node.name for node in teacher.energy.get_all_connected())
    add_teacher_targets(
        fixtures.make_database(structures), [teacher.energy, teacher.energy], EVERYTHING
    )
    assert teacher.network.torch_module.training
    assert names == sorted(node.name for node in teacher.energy.get_all_connected())
    for name, parameter in teacher.network.torch_module.named_parameters():
        assert torch.equal(parameter, before[name])


def test_align_subtracts_an_offset(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    """Only if asked for; the teacher then has the labels' zero of energy."""
    with torch.no_grad():
        teacher.energy.torch_module.layers[0].weight += 3.0
    with pytest.raises(DataError, match=r"\d eV/atom above the labels.*align=True"):
        add_teacher_targets(fixtures.make_database(structures), teacher.energy)
    data = fixtures.make_database(structures)
    report = add_teacher_targets(data, teacher.energy, ("atomic_energies", "energy"), align=True)
    assert report.offsets[42] == pytest.approx(3.0, abs=0.2)
    assert abs(report.sums["train"].mean) < 0.05
    arrays = data.splits["test"]
    total = arrays["teacher_atomic_energies"].sum(1, keepdim=True)
    torch.testing.assert_close(total, arrays["teacher_energy"], rtol=1e-5, atol=1e-3)


def test_max_sum_error_drops_structures(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn
) -> None:
    data = fixtures.make_database(structures)
    report = add_teacher_targets(data, teacher.energy, max_sum_error=0.1)
    assert any(report.dropped.values())
    for split, arrays in data.splits.items():
        counts = arrays["teacher_atomic_energies_weight"].amax(1)
        beyond = np.abs(report.sums[split].per_atom) > 0.1
        assert counts.tolist() == [float(not one) for one in beyond]


def test_missing_structures_have_weight_zero_if_allowed(
    structures: list[LabelledStructure], teacher: fixtures.Hipnn, tmp_path: Path
) -> None:
    store = labelled(tmp_path / "store", structures, teacher.energy, count=-2)
    with pytest.raises(DataError, match="no targets of .* allow_missing=True"):
        add_teacher_targets(fixtures.make_database(structures), store)
    data = fixtures.make_database(structures)
    report = add_teacher_targets(data, store, EVERYTHING, allow_missing=True)
    assert sum(report.missing.values()) == 2
    weights = torch.cat([a["teacher_energy_weight"] for a in data.splits.values()])
    assert int((weights == 0).sum()) == 2


def _edited(change: Callable[[Any], None]) -> Callable[..., Any]:
    def prepare(
        data: Any, teacher: Any, structures: Any, folder: Path
    ) -> tuple[Any, dict[str, Any]]:
        change(data.splits["train"])
        return teacher.energy, {}

    return prepare


def _nan(name: str) -> Callable[[Any], None]:
    def change(arrays: Any) -> None:
        arrays[name][0] = float("nan")

    return change


def _scaled(name: str, factor: float) -> Callable[[Any], None]:
    def change(arrays: Any) -> None:
        arrays[name] *= factor

    return change


def _settings(**settings: Any) -> Callable[..., Any]:
    return lambda data, teacher, structures, folder: (teacher.energy, settings)


def _per_atom(arrays: Any) -> None:
    arrays["energy"] /= (arrays["numbers"] != 0).sum(1, keepdim=True)


def _calculator(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    return LennardJones(), {"quantities": ("magmoms",)}


def _other_structures(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    moved = [f.atoms.copy() for f in structures]
    for atoms in moved:
        atoms.positions[0] += 0.1
    shifted = [
        LabelledStructure(f.structure_id, a, f.labels)
        for f, a in zip(structures, moved, strict=True)
    ]
    return labelled(folder / "moved", shifted, teacher.energy), {}


def _shuffled_ids(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    ids = [structure.structure_id for structure in structures][::-1]
    other = [LabelledStructure(i, f.atoms, f.labels) for i, f in zip(ids, structures, strict=True)]
    return labelled(folder / "shuffled", other, teacher.energy), {}


def _no_keys(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    for arrays in data.splits.values():
        del arrays["structure_key"]
    return labelled(folder / "store", structures, teacher.energy), {}


def _unsplit(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    data.splits.clear()
    return teacher.energy, {}


def _other_elements(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    return fixtures.make_hipnn(elements=(29, 47)).energy, {}


def _twice(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    add_teacher_targets(data, teacher.energy)
    return teacher.energy, {}


def _several_energies(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    from hippynn.graphs.nodes.targets import HEnergyNode

    second = HEnergyNode("second", teacher.network)
    return GraphModule(
        fixtures.input_nodes(teacher), [teacher.energy.main_output, second.main_output]
    ), {}


def _gradients(data: Any, teacher: Any, structures: Any, folder: Path) -> Any:
    with torch.no_grad():
        teacher.energy.torch_module.layers[1].weight *= 1000
    for arrays in data.splits.values():
        arrays["forces"] = -torch.as_tensor(
            fixtures.predict_with_hippynn(teacher, arrays)["forces"]
        )
    return teacher.energy, {"quantities": EVERYTHING}


def _given(teacher: Any) -> Callable[..., Any]:
    return lambda data, own, structures, folder: (teacher, {})


BAD: Mapping[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "NaN energy": (_edited(_nan("energy")), DataError, "'energy' is NaN or inf in 1 of"),
    "NaN force": (_edited(_nan("forces")), DataError, "'forces' is NaN or inf in 1 of"),
    "NaN position": (_edited(_nan("positions")), DataError, "NaN or inf"),
    "energies per atom": (_edited(_per_atom), DataError, "above the labels|per atom"),
    "kcal/mol": (_edited(_scaled("energy", 23.06)), DataError, "eV/atom above the labels|unit"),
    "gradients": (_gradients, DataError, "turn its sign"),
    "other elements": (_other_elements, DataError, "element 42, which the teacher does not know"),
    "other structures": (_other_structures, DataError, "not the one that was labelled"),
    "shuffled ids": (_shuffled_ids, DataError, "not the one that was labelled"),
    "no keys": (_no_keys, DataError, "no array 'structure_key'"),
    "not split": (_unsplit, DataError, "has not been split; split it first"),
    "twice": (_twice, DataError, "has 'teacher_atomic_energies' already"),
    "no folder": (_given("nowhere"), DataError, "holds no hippynn model"),
    "no teacher": (_given(3), DataError, "expected a hippynn GraphModule"),
    "empty list": (_given([]), DataError, "empty list"),
    "several energies": (_several_energies, DataError, "several energies"),
    "not given by it": (_calculator, KeyError, "unknown quantity 'magmoms'"),
    "unknown quantity": (
        _settings(quantities=("charges",)),
        KeyError,
        "unknown quantity 'charges'",
    ),
    "a word": (_settings(quantities="energy"), DataError, "expected one or more names"),
    "other names": (_settings(names=ArrayNames(species="Z")), DataError, "no array 'Z'"),
    "no cells": (_settings(names=ArrayNames(cell=None)), DataError, "the teacher needs cells"),
    "sums of forces": (
        _settings(quantities=("forces",), max_sum_error=0.1),
        DataError,
        "max_sum_error: split .* has no energies",
    ),
    "spread of one": (_settings(spread=0.1), DataError, "one teacher, so there is no spread"),
    "forces' shape": (
        _edited(lambda a: a.update(forces=a["forces"][:, :-1])),
        DataError,
        "'forces': expected",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_adds_nothing(
    name: str, structures: list[LabelledStructure], teacher: fixtures.Hipnn, tmp_path: Path
) -> None:
    prepare, error, message = BAD[name]
    data = fixtures.make_database(structures)
    source, settings = prepare(data, teacher, structures, tmp_path)
    before = sorted(added(data))
    with pytest.raises(error, match=message):
        add_teacher_targets(data, source, **settings)
    assert sorted(added(data)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda structures: [], "no structures"),
        (lambda structures: [structures[0], structures[0]], "comes twice"),
        (lambda structures: [LabelledStructure("a", structures[0].atoms, {})], "has no energy"),
        (
            lambda structures: [
                LabelledStructure("a", structures[0].atoms, {"energy": np.array(np.nan)})
            ],
            r"expected energy \(\), finite",
        ),
    ],
)
def test_bad_structures_are_refused(
    structures: list[LabelledStructure],
    change: Callable[[list[LabelledStructure]], list[LabelledStructure]],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        to_arrays(change(structures))
