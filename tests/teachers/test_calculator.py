"""An ASE calculator as a teacher predicts what the calculator does, for each structure alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import MixedCalculator, SumCalculator
from ase.constraints import ExternalForce, FixAtoms, Hookean
from torch import nn

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.teachers.calculator import (
    CalculatorTeacher,
    as_teacher,
    check_quantities,
    count_weights,
    describe,
    weights_hash,
)
from kd_plugins.teachers.ensemble import Ensemble
from kd_plugins.teachers.teacher import TeacherError
from tests.house import ROOT

EVERYTHING = ("energy", "energy_per_atom", "forces", "stress", "atomic_energies")


class Charged(Calculator):
    """Reads the total charge where many learned potentials do, and ASE's cache does not look."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        """Give the charge for an energy."""
        super().calculate(atoms, *args, **kwargs)
        self.results = {"energy": float(atoms.info["charge"]), "forces": np.zeros((len(atoms), 3))}


class ListsMagmoms(Charged):
    """Lists magmoms, and does not compute them."""

    implemented_properties = ["energy", "forces", "magmoms"]


class NoEnergy(Charged):
    """Computes no energy."""

    implemented_properties = ["forces", "dipole"]


class Neural(Charged):
    """Holds modules as calculators do: as an attribute, in a list, or in an object of its own."""

    def __init__(self, place: str, *modules: nn.Module, **settings: Any) -> None:
        super().__init__(**settings)
        held: dict[str, Any] = {
            "attribute": modules[0],
            "list": list(modules),
            "object": Holder(modules[0]),
            "nested": {"all": [Holder(module) for module in modules]},
        }
        self.held = held[place]


class Holder:
    """Has a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


def linear(seed: int = 0) -> nn.Module:
    """Return a small model with a buffer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def rattled(seed: int) -> Atoms:
    """Return a rattled copper cell of one to four atoms."""
    atoms = bulk("Cu", cubic=bool(seed % 2)) * (1, 1, 1 + seed % 3)
    atoms.rattle(0.1, seed=seed)
    return atoms


def bare(atoms: Atoms, calculator: Any) -> dict[str, Any]:
    """Return what ASE's user would read."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    values = {
        "energy": energy,
        "energy_per_atom": energy / len(atoms),
        "forces": atoms.get_forces(),
        "atomic_energies": atoms.get_potential_energies(),
    }
    return {**values, "stress": atoms.get_stress()} if atoms.pbc.all() else values


def check_same(found: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Compare bit for bit."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize("make", [EMT, lambda: LennardJones(sigma=2.3, rc=4.0)])
def test_predictions_equal_the_bare_calculator(make: Callable[[], Any]) -> None:
    """Bit for bit, in the shapes of the table, whatever was predicted before."""
    teacher = CalculatorTeacher(make())
    for seed in range(6):
        atoms = rattled(seed)
        found = teacher(atoms, EVERYTHING)
        check_same(found, bare(atoms, make()))
        for name, value in found.items():
            row = QUANTITIES[name]
            assert row.fits(value.shape[1:] if row.scope == "atom" else value.shape)


def test_predictions_do_not_depend_on_order() -> None:
    """Not by a bit: a structure's targets are its own."""
    teacher, expected = CalculatorTeacher(EMT()), {}
    for seed in range(6):
        expected[seed] = CalculatorTeacher(EMT())(rattled(seed), EVERYTHING)
    for seed in (3, 3, 0, 5, 1, 4, 2, 0):
        check_same(teacher(rattled(seed), EVERYTHING[::-1]), expected[seed])
        check_same(teacher(rattled(seed), ["energy"]), {"energy": expected[seed]["energy"]})


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: SumCalculator([inner])])
def test_charge_in_info_is_read_for_each_structure(wrap: Callable[[Any], Any]) -> None:
    """ASE takes two structures that differ in their info only for one."""
    teacher = CalculatorTeacher(wrap(Charged()))
    for charge in (0, 1, -1, 1):
        atoms = molecule("OH")
        atoms.info["charge"] = charge
        assert teacher(atoms, ["energy", "forces"])["energy"] == charge


CONSTRAINTS = {
    "fixed": FixAtoms([0]),
    "spring": Hookean(0, 1, rt=1.0, k=5.0),
    "pull": ExternalForce(0, 1, 2.0),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_do_not_change_predictions(name: str) -> None:
    """Neither in forces and stress nor, for a spring, in the energy."""
    free = rattled(1)
    constrained = free.copy()
    constrained.set_constraint(CONSTRAINTS[name])
    found = CalculatorTeacher(EMT())(constrained, EVERYTHING)
    check_same(found, CalculatorTeacher(EMT())(free, EVERYTHING))


@pytest.mark.parametrize(
    ("cell", "pbc", "has_stress"),
    [
        ([9, 9, 9], True, True),
        ([9, 9, 9], False, False),
        ([9, 9, 9], [True, True, False], False),
        ([9, 9, 0], [True, True, False], False),
        (None, False, False),
    ],
)
def test_stress_is_predicted_for_crystals_only(cell: Any, pbc: Any, has_stress: bool) -> None:
    """Of a molecule, a slab or a wire it is left out and not made up."""
    atoms = Atoms("CuCu", [[0, 0, 0], [0, 0, 2.4]], cell=cell, pbc=pbc)
    found = CalculatorTeacher(EMT())(atoms, EVERYTHING)
    assert ("stress" in found) == has_stress
    assert set(found) >= {"energy", "forces"}


def test_predicting_leaves_the_structure_unchanged() -> None:
    """With its constraints, info, arrays, and no calculator."""
    atoms = rattled(1)
    atoms.set_constraint(FixAtoms([0]))
    atoms.set_tags(range(len(atoms)))
    atoms.info = {"name": "x", "list": [1, 2]}
    before = atoms.todict(), dict(atoms.info)
    CalculatorTeacher(EMT())(atoms, EVERYTHING)
    after = atoms.todict(), dict(atoms.info)
    assert atoms.calc is None
    np.testing.assert_equal(after, before)


def test_results_are_copies() -> None:
    """What was given away is no view of what the calculator keeps."""
    teacher, atoms = CalculatorTeacher(EMT()), rattled(1)
    expected = teacher(atoms, ["forces"])["forces"].copy()
    teacher(atoms, ["forces"])["forces"][:] = 0.0
    assert np.array_equal(teacher(atoms, ["forces"])["forces"], expected)


def test_quantities_of_calculators() -> None:
    """In the order of the table, energy per atom for free; ASE's names are ours, but for one."""
    assert CalculatorTeacher(EMT()).quantities == (*EVERYTHING, "magmoms")
    assert CalculatorTeacher(LennardJones()).quantities == EVERYTHING
    assert CalculatorTeacher(Charged()).quantities == ("energy", "energy_per_atom", "forces")
    both = SumCalculator([LennardJones(), Charged()])
    assert CalculatorTeacher(both).quantities == ("energy", "energy_per_atom", "forces")


def test_listed_but_missing_quantity_is_a_teacher_error() -> None:
    """Not that of the structure."""
    atoms = Atoms("H", info={"charge": 0})
    teacher = CalculatorTeacher(ListsMagmoms())
    assert teacher(atoms, ["energy"]) == {"energy": 0.0}
    with pytest.raises(
        TeacherError, match="ListsMagmoms promises but does not give magmoms.*leave"
    ):
        teacher(atoms, ["energy", "magmoms"])


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (None, "expected an ASE calculator, got NoneType"),
        ("emt", "expected an ASE calculator, got str"),
        (EMT, "expected an ASE calculator, got the class EMT"),
        (NoEnergy(), "NoEnergy gives no energy; it gives dipole, forces"),
    ],
)
def test_what_is_no_calculator_is_refused(thing: Any, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        CalculatorTeacher(thing)


def test_unknown_repeated_or_missing_quantities_are_refused() -> None:
    offered = ("energy", "forces")
    check_quantities(["forces", "energy"], offered, "it")
    with pytest.raises(KeyError, match="unknown quantity 'force'; did you mean 'forces'"):
        check_quantities(["force"], offered, "it")
    with pytest.raises(TeacherError, match="it gives no 'stress'; it gives energy, forces"):
        check_quantities(["energy", "stress"], offered, "it")
    for wanted in ([], ["energy", "energy"]):
        with pytest.raises(TeacherError, match="one or more different names"):
            check_quantities(wanted, offered, "it")


DIFFERENT: dict[str, Callable[[], Any]] = {
    "emt": EMT,
    "emt, asap": lambda: EMT(asap_cutoff=True),
    "lj": LennardJones,
    "lj, sigma": lambda: LennardJones(sigma=1.1),
    "lj, smooth": lambda: LennardJones(smooth=True),
    "sum": lambda: SumCalculator([EMT(), LennardJones()]),
    "other order": lambda: SumCalculator([LennardJones(), EMT()]),
    "other part": lambda: SumCalculator([EMT(), LennardJones(sigma=1.1)]),
    "weighted": lambda: MixedCalculator(EMT(), LennardJones(), 1.0, 0.5),
    "weighted otherwise": lambda: MixedCalculator(EMT(), LennardJones(), 1.0, 0.6),
    "a sum in a sum": lambda: SumCalculator([EMT(), SumCalculator([EMT(), LennardJones()])]),
    "charged": Charged,
    "number": lambda: Charged(setting=1),
    "string": lambda: Charged(setting="1"),
    "list": lambda: Charged(setting=[1, 2]),
    "list, longer": lambda: Charged(setting=[1, 2, 3]),
    "array": lambda: Charged(setting=np.array([1.5, 2.0])),
    "mapping": lambda: Charged(setting={"s8": 0.7875}),
    "mapping, other": lambda: Charged(setting={"s8": 0.7}),
    "deep": lambda: Charged(setting={"of": {"H": [1, {"x": np.float64(2)}]}}),
    "object": lambda: Charged(setting=Holder(linear())),
    "weights": lambda: Neural("attribute", linear()),
    "other weights": lambda: Neural("attribute", linear(1)),
    "two models": lambda: Neural("list", linear(), linear(1)),
    "two other models": lambda: Neural("list", linear(), linear(2)),
    "model in an object": lambda: Neural("object", linear(3)),
    "other model in an object": lambda: Neural("object", linear(4)),
    "models in objects": lambda: Neural("nested", linear(3), linear(4)),
    "other models in objects": lambda: Neural("nested", linear(3), linear(5)),
}


def descriptions() -> list[str]:
    """Return the identities of calculators that differ."""
    return [describe(make()) for make in DIFFERENT.values()]


def test_different_calculators_have_different_fingerprints() -> None:
    """Class, settings of any kind, weights wherever they are, parts and their weights."""
    assert len(set(descriptions())) == len(DIFFERENT)


def test_fingerprint_is_the_same_in_another_process() -> None:
    """In another process, which hashes and lays out memory differently."""
    code = "from tests.teachers.test_calculator import *; print(*descriptions(), sep='\\n')"
    settings = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == descriptions(), done.stderr


def test_fingerprint_does_not_change_with_use() -> None:
    """Nor do numpy's numbers, a tuple, or a setting that is None."""
    calculator = EMT()
    before = describe(calculator)
    CalculatorTeacher(calculator)(rattled(1), EVERYTHING)
    assert describe(calculator) == before == CalculatorTeacher(calculator).fingerprint
    assert describe(Charged(a=(1, 2), b=None)) == describe(Charged(a=np.array([1, 2])))
    assert describe(Charged(b=1, a=2)) == describe(Charged(a=np.int64(2), b=1))


def test_versions_name_the_computing_packages() -> None:
    """Of the packages that are installed, by their distributions' names."""
    versions = CalculatorTeacher(SumCalculator([EMT(), Charged()])).versions
    assert set(versions) == {"ase", "numpy", "torch"}
    assert versions["numpy"] == np.__version__


def changed(how: str) -> nn.Module:
    """Return the model with one thing changed."""
    model = linear()
    with torch.no_grad():
        if how == "one bit":
            weight = model[0].weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(10.0))
        elif how == "a buffer":
            model[1].running_mean[0] = 0.1
        elif how == "a counter":
            model[1].num_batches_tracked += 1
        elif how == "two rows swapped":
            model[0].weight.copy_(model[0].weight.flip(0))
    return {
        "precision": lambda: model.double(),
        "a name": lambda: nn.Sequential(model),
        "shape": lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(2)),
    }.get(how, lambda: model)()


CHANGES = ("one bit", "a buffer", "a counter", "two rows swapped", "precision", "a name", "shape")


def test_weights_hash_differs_for_different_models() -> None:
    hashes = {weights_hash(changed(how)) for how in ("nothing", *CHANGES)}
    assert len(hashes) == 1 + len(CHANGES)
    assert weights_hash(changed("nothing")) == weights_hash(linear())


def test_weights_hash_does_not_depend_on_memory_layout() -> None:
    """Not of where and how they lie, nor of whether they are trained."""
    model, expected = linear(), weights_hash(linear())
    model.eval().requires_grad_(False)
    model[0].weight.data = model[0].weight.data.t().contiguous().t()
    model[1].register_buffer("scratch", torch.zeros(3), persistent=False)
    assert weights_hash(model) == expected
    model[1].register_buffer("empty", torch.zeros(0, dtype=torch.bfloat16))
    model[1].register_buffer("flag", torch.tensor(True))
    assert weights_hash(model) != expected


def test_count_of_weights_without_repeats_and_tables() -> None:
    model = linear()  # 3 * 2 + 2 and 2 + 2
    assert count_weights(Neural("attribute", model)) == 12
    assert count_weights(SumCalculator([Neural("list", model, linear(1)), EMT()])) == 24
    assert count_weights(SumCalculator([Neural("list", model), Neural("object", model)])) == 12
    model.register_parameter("elements", nn.Parameter(torch.arange(5), requires_grad=False))
    assert count_weights(Neural("attribute", model)) == 12
    assert count_weights(EMT()) == 0


def test_the_receptive_field_of_several_is_the_largest_if_all_are_known() -> None:
    short, long, unknown = EMT(), EMT(), EMT()
    short.receptive_field, long.receptive_field = 5.0, 24.0
    assert CalculatorTeacher(SumCalculator([short, long])).receptive_field == 24.0
    assert CalculatorTeacher(SumCalculator([short, unknown])).receptive_field is None
    assert Ensemble([as_teacher(short), as_teacher(long)]).receptive_field == 24.0
    assert Ensemble([as_teacher(short), as_teacher(unknown)]).receptive_field is None
