"""Errors are means over numbers, energies count per atom, and what is missing is named."""

from __future__ import annotations

import numpy as np
import pytest

from kd_plugins.evaluate import compare

SIZES = {"a": 2, "b": 5, "c": 1}
Targets = dict[str, dict[str, np.ndarray]]


def targets(seed: int) -> Targets:
    """Return random energies, forces and stresses of three structures."""
    generator = np.random.default_rng(seed)
    return {
        name: {
            "energy": generator.normal(),
            "forces": generator.normal(size=(size, 3)),
            "stress": generator.normal(size=6),
        }
        for name, size in SIZES.items()
    }


def test_the_teacher_itself_has_no_error() -> None:
    found = compare(targets(0), targets(0), SIZES)
    assert {name: (error.mae, error.rmse) for name, error in found.errors.items()} == dict.fromkeys(
        ("energy", "energy_per_atom", "forces", "stress"), (0.0, 0.0)
    )
    assert found.force_cosine == pytest.approx(1.0)


def test_errors_equal_those_of_a_naive_loop() -> None:
    student, teacher = targets(0), targets(1)
    found = compare(student, teacher, SIZES)
    misses = [
        [(student[name]["energy"] - teacher[name]["energy"]) / size] for name, size in SIZES.items()
    ]
    check(found.errors["energy_per_atom"], misses, "eV/atom")
    for name, unit in (("energy", "eV"), ("forces", "eV/Å"), ("stress", "eV/Å³")):
        misses = [student[key][name] - teacher[key][name] for key in SIZES]
        check(found.errors[name], misses, unit)
    cosines = [
        one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        for key in SIZES
        for one, other in zip(student[key]["forces"], teacher[key]["forces"], strict=True)
    ]
    assert found.force_cosine == pytest.approx(np.mean(cosines))


def test_relative_errors_of_scaled_and_of_constant_targets() -> None:
    """Targets that are all alike have no variance, and those of 0 no size."""
    teacher = {name: {"forces": values["forces"] - 0.5} for name, values in targets(1).items()}
    student = {name: {"forces": 0.9 * values["forces"]} for name, values in teacher.items()}
    error = compare(student, teacher, SIZES).errors["forces"]
    forces = np.concatenate([values["forces"].ravel() for values in teacher.values()])
    assert error.percent == pytest.approx(10)
    assert error.r_squared == pytest.approx(1 - 0.01 * (forces**2).mean() / forces.var())

    alike = {name: {"forces": np.full((size, 3), 0.1)} for name, size in SIZES.items()}
    assert np.isnan(compare(student, alike, SIZES).errors["forces"].r_squared)
    zero = {name: {"forces": np.zeros((size, 3))} for name, size in SIZES.items()}
    assert np.isnan(compare(student, zero, SIZES).errors["forces"].percent)


def check(error: object, misses: list[np.ndarray], unit: str) -> None:
    """Compare with all single errors."""
    flat = np.concatenate([np.ravel(miss) for miss in misses])
    assert error.mae == pytest.approx(np.abs(flat).mean())
    assert error.rmse == pytest.approx(np.sqrt((flat**2).mean()))
    assert (error.count, error.unit) == (len(flat), unit)


def test_structures_are_matched_by_id_not_by_order() -> None:
    student, teacher = targets(0), targets(1)
    turned = {name: student[name] for name in reversed(SIZES)} | {"unasked": {}}
    one, other = compare(turned, teacher, SIZES), compare(student, teacher, SIZES)
    assert one == other


def test_structures_and_quantities_of_the_student_alone_are_ignored() -> None:
    teacher = {name: {"forces": values["forces"]} for name, values in targets(1).items()}
    assert list(compare(targets(0), teacher, SIZES).errors) == ["forces"]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([[1, 0, 0], [0, 0, 0]], [[2, 0, 0], [0, 0, 0]], 1.0),  # both zero: not counted
        ([[1, 0, 0], [0, 0, 0]], [[2, 0, 0], [1, 0, 0]], 0.5),
        ([[1, 0, 0], [0, 1, 0]], [[-3, 0, 0], [0, 2, 0]], 0.0),
        ([[0, 0, 0]], [[0, 0, 0]], float("nan")),
    ],
)
def test_force_cosine_of_given_angles(student: list, teacher: list, expected: float) -> None:
    one, other = ({"a": {"forces": np.array(forces)}} for forces in (student, teacher))
    found = compare(one, other, {"a": len(teacher)}).force_cosine
    assert found == pytest.approx(expected, nan_ok=True)


def test_force_cosine_without_forces_is_nan() -> None:
    energy = {"a": {"energy": 1.0}}
    assert np.isnan(compare(energy, energy, SIZES).force_cosine)


def broken(name: str, quantity: str, value: object) -> Targets:
    """Return targets one of which is another, or gone for None."""
    made = targets(0)
    made[name][quantity] = value
    if value is None:
        del made[name][quantity]
    return made


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (broken("b", "forces", None), targets(0), "student has no forces of structure 'b'"),
        (targets(0), broken("b", "energy", None), "teacher has no energy of structure 'b'"),
        ({"a": targets(0)["a"]}, targets(0), "student has no energy of structure 'b'"),
        (broken("c", "energy", np.nan), targets(0), "student's energy of structure 'c' is not"),
        (targets(0), broken("a", "stress", np.full(6, np.inf)), "teacher's stress of .* 'a' is"),
        (
            broken("a", "forces", np.zeros((3, 3))),
            targets(0),
            r"student's forces of structure 'a': expected \(2, 3\), got \(3, 3\)",
        ),
        (broken("a", "stress", np.zeros((3, 3))), targets(0), r"expected \(6,\), got \(3, 3\)"),
        ({}, {}, "expected a teacher with structures and values, got none"),
    ],
)
def test_missing_or_wrong_values_are_named(
    student: Targets, teacher: Targets, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(student, teacher, SIZES)


def test_missing_numbers_of_atoms_are_refused() -> None:
    with pytest.raises(ValueError, match="'a': expected n_atoms to say how many atoms .* got None"):
        compare(targets(0), targets(0), {})
    with pytest.raises(ValueError, match="got 0"):
        compare(targets(0), targets(0), dict.fromkeys(SIZES, 0))


def test_an_unknown_quantity_is_refused_with_a_suggestion() -> None:
    with pytest.raises(KeyError, match="unknown quantity 'force'; did you mean 'forces'"):
        compare({"a": {"force": 1}}, {"a": {"force": 1}}, SIZES)


def test_forces_on_fixed_atoms_are_not_compared() -> None:
    student, teacher = targets(0), targets(1)
    free = {name: np.arange(size) % 2 == 0 for name, size in SIZES.items()}
    found = compare(student, teacher, SIZES, free)
    misses = [
        student[key]["forces"][free[key]] - teacher[key]["forces"][free[key]] for key in SIZES
    ]
    check(found.errors["forces"], misses, "eV/Å")
    everything = compare(student, teacher, SIZES)
    assert found.errors["energy_per_atom"] == everything.errors["energy_per_atom"]
    all_free = {name: np.ones(size, dtype=bool) for name, size in SIZES.items()}
    assert compare(student, teacher, SIZES, all_free) == everything
