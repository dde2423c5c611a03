"""How good a teacher is beside the labels: laws of its errors and slopes, and what is advised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kd_plugins.doctor.agreement import (
    LabelAgreement,
    advise,
    advise_on_atomic_energies,
    measure_deviations,
    recommend,
)
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.store.structure import Structure
from tests.doctor.faults import changed
from tests.hosts import in_one_environment

ELEMENTS = (13, 28, 29)


def make_inputs(number: int = 12, noise: float = 0.0, seed: int = 0) -> list[DoctorInput]:
    """Return alloys with labels, and a teacher that is off by noise."""
    generator = np.random.default_rng(seed)
    inputs = []
    for index in range(number):
        n_atoms = int(generator.integers(3, 7))
        positions = generator.uniform(0, 5, (n_atoms, 3))
        numbers = generator.choice(ELEMENTS, n_atoms)
        structure = Structure(numbers, positions, 5 * np.eye(3), [True] * 3)
        labels = {
            "energy": np.asarray(generator.normal() * n_atoms - numbers.sum()),
            "forces": generator.normal(size=(n_atoms, 3)),
            "stress": generator.normal(size=6) * 0.05 + [0.02, 0.02, 0.02, 0, 0, 0],
        }
        teacher = {
            name: value + noise * generator.normal(size=value.shape)
            for name, value in labels.items()
        }
        inputs.append(DoctorInput(f"s{index}", structure, labels, teacher))
    return inputs


def by_quantity(inputs: Sequence[DoctorInput]) -> dict[str, LabelAgreement]:
    return {one.quantity: one for one in measure_deviations(inputs)}


def same(one: LabelAgreement, other: LabelAgreement) -> bool:
    """Compare all numbers, to rounding."""
    numbers = ([d.rmse, d.spread, d.slope, d.slope_error] for d in (one, other))
    return one.n_structures == other.n_structures and np.allclose(*numbers, rtol=1e-9, atol=1e-12)


def test_labels_as_their_own_teacher_are_off_by_nothing() -> None:
    found = by_quantity(make_inputs())
    assert set(found) == {"forces", "energy", "stress"}
    for one in found.values():
        assert one.rmse == pytest.approx(0.0, abs=1e-12)
        assert one.slope == pytest.approx(1.0)
        assert one.r_squared == pytest.approx(1.0)
        assert one.slope_error == pytest.approx(0.0, abs=1e-12)
    assert list(advise(tuple(found.values()))) == []


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, -1.0])
def test_scaled_labels_have_that_slope_and_the_rest_as_error(factor: float) -> None:
    inputs = make_inputs()
    for name in ("forces", "energy"):
        scaled = [changed(item, "teacher", name, factor * item.labels[name]) for item in inputs]
        one = by_quantity(scaled)[name]
        assert one.slope == pytest.approx(factor)
        assert one.share == pytest.approx(abs(1 - factor))


def test_another_zero_of_each_element_changes_no_energy() -> None:
    """Neither of the teacher nor of the labels."""
    inputs, zeros = make_inputs(noise=0.1), {13: 3.0, 28: -700.0, 29: 0.25}
    before = by_quantity(inputs)["energy"]
    for side in ("teacher", "labels"):
        moved = [
            changed(
                item,
                side,
                "energy",
                getattr(item, side)["energy"]
                + sum(zeros[z] for z in item.structure.atomic_numbers),
            )
            for item in inputs
        ]
        assert same(by_quantity(moved)["energy"], before)
    assert before.rmse > 0.01


def test_a_pressure_that_is_off_everywhere_is_an_error_but_no_slope() -> None:
    inputs = make_inputs()
    pressed = [
        changed(item, "teacher", "stress", item.labels["stress"] + [0.1, 0.1, 0.1, 0, 0, 0])
        for item in inputs
    ]
    one = by_quantity(pressed)["stress"]
    assert one.slope == pytest.approx(1.0)
    assert one.rmse == pytest.approx(0.1 * np.sqrt(0.5))


@pytest.mark.parametrize("name", ["forces", "energy", "stress"])
def test_missing_values_are_left_out_with_their_structure(name: str) -> None:
    """Whether there is none or it is NaN, on either side."""
    inputs = make_inputs(noise=0.1)
    expected = by_quantity(inputs[2:])[name]

    bare = replace(inputs[0], labels={k: v for k, v in inputs[0].labels.items() if k != name})
    lost = changed(inputs[1], "teacher", name, np.full_like(inputs[1].teacher[name], np.nan))
    assert same(by_quantity([bare, lost, *inputs[2:]])[name], expected)


def test_the_order_of_structures_and_atoms_changes_nothing() -> None:
    inputs = make_inputs(noise=0.2)
    before = by_quantity(inputs)
    turned = []
    for item in inputs[::-1]:
        here = item.structure
        structure = Structure(here.atomic_numbers[::-1], here.positions[::-1], here.cell, here.pbc)
        sides = [
            {k: v[::-1] if k == "forces" else v for k, v in side.items()} for _, side in item.sides
        ]
        turned.append(DoctorInput(item.structure_id, structure, *sides))
    after = by_quantity(turned)
    assert all(same(after[name], before[name]) for name in before)


def test_atoms_without_force_on_either_side_do_not_count() -> None:
    """As fixed atoms have, of which both sides are set to 0."""
    inputs = make_inputs(noise=0.2)
    fixed = []
    for item in inputs:
        here = item.structure
        structure = Structure(
            [*here.atomic_numbers, 29], [*here.positions, np.zeros(3)], here.cell, here.pbc
        )
        sides = [
            {"forces": np.concatenate([side["forces"], np.zeros((1, 3))])} for _, side in item.sides
        ]
        fixed.append(DoctorInput(item.structure_id, structure, *sides))
    assert same(by_quantity(fixed)["forces"], by_quantity(inputs)["forces"])


def test_the_error_of_the_slope_is_that_of_drawing_structures() -> None:
    """Over 100 draws, with errors that a structure's atoms share, as one soft structure's do."""
    generator, slopes, errors = np.random.default_rng(1), [], []
    for seed in range(100):
        inputs = [
            changed(item, "teacher", "forces", generator.normal(0.9, 0.2) * item.labels["forces"])
            for item in make_inputs(seed=seed)
        ]
        one = by_quantity(inputs)["forces"]
        slopes.append(one.slope)
        errors.append(one.slope_error)
    assert np.mean(slopes) == pytest.approx(0.9, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.2)


def test_too_few_structures_or_labels_that_do_not_vary_give_no_slope() -> None:
    inputs = make_inputs()
    assert measure_deviations(inputs[:1]) == ()
    assert measure_deviations([]) == ()

    flat = [
        changed(item, "labels", "forces", np.zeros_like(item.labels["forces"])) for item in inputs
    ]
    one = by_quantity(flat)["forces"]
    assert np.isnan(one.slope) and one.share == np.inf
    assert "slope" not in one.text
    assert list(advise([one])) == []


@pytest.mark.parametrize(
    ("rmse", "spread", "slope", "advised"),
    [
        (0.118, 0.879, 0.99, ()),  # CHGNet and copper
        (0.507, 1.568, 0.81, ("soft", "poor")),  # CHGNet and molybdenum
        (0.279, 0.877, 0.82, ("soft", "poor")),  # CHGNet and silicon
        (0.100, 0.900, 0.85, ("soft",)),
        (0.300, 0.900, 1.05, ("poor",)),
        (0.030, 0.040, 0.50, ()),  # relaxed structures
    ],
)
def test_poor_and_soft_teachers_are_advised_against(
    rmse: float, spread: float, slope: float, advised: tuple[str, ...]
) -> None:
    deviations = [LabelAgreement("forces", 30, rmse, spread, slope, 0.02)]
    found = list(advise(deviations))
    assert [text.split()[1] for text in found] == list(advised)
    assert bool(list(recommend(deviations))) == (not advised and spread > 0.1)
    uncertain = advise([LabelAgreement("forces", 3, rmse, spread, slope, 0.2)])
    assert "soft" not in " ".join(uncertain)


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        (24.0, 5.5, "up to 24 Å away (cutoff times layers), the student's on 5.5 Å"),
        (5.5, 5.5, "w_A 1 at most"),
        (4.6, 9.2, "w_A 1 at most"),
        (24.0, None, "--student-cutoff and --student-layers"),
        (None, 5.5, "is not known; w_A 1 at most, and 0"),
    ],
)
def test_atomic_energies_of_a_teacher_that_reaches_farther_are_advised_against(
    teacher: float | None, student: float | None, words: str
) -> None:
    text = advise_on_atomic_energies(teacher, student)
    assert words in text
    farther = None not in (teacher, student) and teacher > student
    assert ("w_A 0" in text) == farther


@in_one_environment
def test_real_labels_and_two_real_teachers(
    copper: list[DoctorInput], organic: list[DoctorInput]
) -> None:
    """EMT, with another zero, follows the copper labels; CHGNet those of its own training set."""
    found = by_quantity(copper)
    assert found["forces"].text.startswith("forces 126 of 879 meV/Å (14 %, R² 0.980, slope 1.12")
    assert found["energy"].rmse < 0.05
    assert list(advise(tuple(found.values()))) == []

    taught = by_quantity(organic)
    assert taught["energy"].share < 0.2
    assert 0.9 < taught["forces"].slope < 1.1
