"""Units are claimed where there are some, on the right side, and never of a poor teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from kd_plugins.doctor.examine import examine
from kd_plugins.doctor.energies import Energies
from kd_plugins.doctor.inputs import DoctorInput
from tests.doctor.faults import BOHR, HARTREE, KCAL, KJ, RYDBERG, changed, every, scaled
from tests.doctor.labelled import COPPER, ORGANIC, SMALL, SharedFile, labelled
from tests.hosts import is_installed

ENERGY = {"kcal/mol": KCAL, "kJ/mol": KJ, "Hartree": HARTREE, "Rydberg": RYDBERG}
FORCES = {
    "kcal/mol/Å": KCAL,
    "kJ/mol/Å": KJ,
    "kJ/mol/nm": 10 * KJ,
    "Hartree/Bohr": HARTREE * BOHR,
    "Rydberg/Bohr": RYDBERG * BOHR,
}
TOGETHER = dict(
    zip(ENERGY, ("kcal/mol/Å", "kJ/mol/Å", "Hartree/Bohr", "Rydberg/Bohr"), strict=True)
)
SIDES = {"teacher": "the teacher's energies are in", "labels": "the label energies are in"}
ALUMINIUM = "metals/Al_aimd300K_test.extxyz.xz"
MOLYBDENUM = "metals/mlearn_Mo_test.extxyz.xz"

Named = dict[str, list[DoctorInput]]


@pytest.fixture(scope="session")
def teachers(shared_file: SharedFile) -> Named:
    """Real teachers and labels: EMT with another zero, CHGNet with the same, and soft by 30 %."""
    found = {
        "EMT, copper": list(labelled(shared_file(COPPER), "emt")),
        "EMT, aluminium": list(labelled(shared_file(ALUMINIUM), "emt"))[::5],
    }
    if is_installed("chgnet"):
        found["CHGNet, organic"] = list(labelled(shared_file(ORGANIC), "chgnet", SMALL))
        found["CHGNet, molybdenum"] = list(labelled(shared_file(MOLYBDENUM), "chgnet"))
    return found


def in_unit(cases: list[DoctorInput], side: str, quantity: str, factor: float) -> list[DoctorInput]:
    """Return cases of which one side is in another unit."""
    return every(side, quantity, scaled(factor))(cases, np.random.default_rng(0))


def errors(cases: list[DoctorInput]) -> dict[str, str]:
    """Return code to text of what stops a run."""
    return {one.code: one.text for one in examine(cases) if one.severity == "error"}


def other_zero(cases: list[DoctorInput]) -> list[DoctorInput]:
    """Give the teacher an offset an atom that no unit explains."""
    return [
        changed(case, "teacher", "energy", case.teacher["energy"] + 2.3 * case.n_atoms)
        for case in cases
    ]


def wrong(cases: list[DoctorInput]) -> Iterator[tuple[str, list[DoctorInput], str, str]]:
    """Yield a name, cases with one wrong unit, the code and the words that must be found."""
    for side, words in SIDES.items():
        for unit, factor in ENERGY.items():
            broken = in_unit(cases, side, "energy", factor)
            yield f"{side} energy {unit}", broken, "energy-unit", f"{words} {unit}"
        for unit, factor in FORCES.items():
            yield (
                f"{side} forces {unit}",
                in_unit(cases, side, "forces", factor),
                "forces-unit",
                unit,
            )


def test_every_unit_is_found_on_its_side(teachers: Named) -> None:
    """Of energies and of forces, with the same zero and with another: none missed, none wrong."""
    missed = [
        f"{name}, {what}: {found}"
        for name, sound in teachers.items()
        for cases in (sound, other_zero(sound))
        for what, broken, code, words in wrong(cases)
        if words not in (found := errors(broken)).get(code, "")
    ]
    assert missed == []


def test_energies_and_forces_in_the_same_wrong_unit_are_found(teachers: Named) -> None:
    """By the zero of energies; with another zero, if the teacher's are too large to be poor."""
    for name, cases in teachers.items():
        for side, words in SIDES.items():
            for unit, factor in ENERGY.items():
                energies = in_unit(cases, side, "energy", factor)
                broken = in_unit(energies, side, "forces", FORCES[TOGETHER[unit]])
                found = errors(broken)
                larger = (factor > 1) == (side == "teacher")
                if name.startswith("CHGNet") or larger:
                    assert f"{words} {unit}" in found["energy-unit"], (name, side, unit)
                    assert TOGETHER[unit] in found["forces-unit"], (name, side, unit)


def test_no_unit_is_claimed_of_sound_teachers(teachers: Named) -> None:
    """Nor where energies or forces are all there is."""
    for cases in teachers.values():
        for held in (cases, other_zero(cases)):
            assert errors(held) == {}
            for name in ("energy", "forces"):
                assert errors([changed(case, "teacher", name, None) for case in held]) == {}


def shrunk(cases: list[DoctorInput], size: float, seed: int) -> list[DoctorInput]:
    """Return cases with a teacher that has learnt energies and forces to some part, with noise."""
    rng = np.random.default_rng(seed)
    energies = Energies.of(cases)
    spread = energies.compositions.residuals(energies.labels / energies.n_atoms)
    mean = energies.labels / energies.n_atoms - spread
    taught = []
    for case, own, offset in zip(cases, spread, mean, strict=True):
        forces = case.labels["forces"]
        energy = case.n_atoms * (offset + size * own * rng.normal(1.0, 0.1))
        noisy = size * forces * rng.normal(1.0, 0.3, forces.shape)
        taught.append(replace(case, teacher={"energy": np.asarray(energy), "forces": noisy}))
    return taught


def test_no_unit_is_claimed_of_a_teacher_that_is_learning(teachers: Named) -> None:
    """Its energies and forces grow from nothing and pass every unit's factor on the way."""
    for name, cases in teachers.items():
        for size in np.geomspace(1e-3, 1.0, 24):
            for zero in (0.0, 7.0):
                learning = [
                    changed(case, "teacher", "energy", case.teacher["energy"] + zero * case.n_atoms)
                    for case in shrunk(cases, float(size), 0)
                ]
                assert errors(learning) == {}, (name, size, zero)


def test_a_small_teacher_is_warned_of_with_the_unit_that_it_might_be(teachers: Named) -> None:
    """And with what speaks against it."""
    learning = shrunk(teachers["EMT, copper"], 1 / KCAL, 0)
    found = {one.code: one for one in examine(learning)}
    assert "total energies agree as they are" in found["energy-scale"].text
    assert "the label energies are in kcal/mol" in found["energy-scale"].text
    assert "hardly trained" in found["forces-scale"].text


def test_opposite_forces_of_a_teacher_with_opposite_energies_are_only_warned_of(
    teachers: Named,
) -> None:
    """An untrained network may have both; gradients for forces are still found."""
    cases = teachers["EMT, copper"]
    opposite = shrunk(cases, -0.01, 0)
    assert errors(opposite) == {}
    gradients = in_unit(cases, "teacher", "forces", -1.0)
    assert set(errors(gradients)) == {"forces-sign"}
