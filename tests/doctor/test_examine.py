"""The doctor finds every seeded fault in real data, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from kd_plugins.doctor.examine import ERRORS, check_allow, examine, split_allowed
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.store.structure import Array, Structure
from tests.doctor.faults import (
    ENERGY,
    FAULTS,
    FORCES,
    STRESS,
    Fault,
    atomic,
    changed,
    offset,
    turned,
)

UNITS = {"energy-unit", "energy-per-atom", "energy-sign", "forces-unit", "forces-sign"}
UNITS_SIGNS_ORDERS = UNITS | {
    "stress-unit",
    "stress-sign",
    "stress-order",
    "forces-order",
    "shuffled",
}

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def codes(inputs: list[DoctorInput]) -> set[str]:
    return {finding.code for finding in examine(inputs)}


def drawn(inputs: list[DoctorInput], number: int, seed: int) -> list[DoctorInput]:
    rows = np.random.default_rng(seed).choice(len(inputs), number, replace=False)
    return [inputs[row] for row in rows]


def broken(fault: Fault, inputs: list[DoctorInput], seed: int = 0) -> list[DoctorInput]:
    return fault.apply(inputs, np.random.default_rng(seed))


def test_nothing_is_found_in_sound_data(organic: list[DoctorInput]) -> None:
    """Not with a good teacher."""
    assert examine(organic) == []


def test_only_the_offset_is_found_with_a_poor_teacher_of_another_zero(
    copper: list[DoctorInput],
) -> None:
    """EMT is no DFT, but in the right units."""
    (finding,) = examine(copper)
    assert (finding.code, finding.severity) == ("energy-offset", "warning")
    assert "29: +4.0" in finding.message
    assert "--fix" in finding.message


@pytest.mark.parametrize("number", [12, 20, 30, 50])
def test_nothing_is_found_in_a_part_of_sound_data(organic: list[DoctorInput], number: int) -> None:
    """Whichever structures they are; a dozen may be too few."""
    allowed = {"energy-too-few"} if number < 20 else set()
    assert all(codes(drawn(organic, number, seed)) <= allowed for seed in range(5))


@pytest.fixture(scope="session")
def found(organic: list[DoctorInput]) -> Callable[[Fault], set[str]]:
    """Examine what a fault makes of all structures, once."""
    return cache(lambda fault: codes(broken(fault, organic)))


@every_fault
def test_every_fault_is_found_among_ten_elements(
    found: Callable[[Fault], set[str]], fault: Fault
) -> None:
    """Under its own name."""
    assert fault.code in found(fault)


@every_fault
def test_no_other_unit_sign_or_order_is_found_than_the_wrong_one(
    found: Callable[[Fault], set[str]], fault: Fault
) -> None:
    """Except where two are wrong at once."""
    twofold = {"gradients in kcal/mol/Å", "label stress in VASP's sign and unit"}
    others = found(fault) & UNITS_SIGNS_ORDERS - {fault.code}
    assert not others or (fault.name in twofold and others <= {"forces-sign", "stress-sign"})


@pytest.mark.parametrize("fault", [*ENERGY, *FORCES, *STRESS[:-1]], ids=lambda fault: fault.name)
def test_every_fault_is_found_in_one_element(copper: list[DoctorInput], fault: Fault) -> None:
    """Also with a poor teacher; its shear is too poor to show an order."""
    assert fault.code in codes(broken(fault, copper))


@pytest.mark.parametrize(
    "fault", [*ENERGY[:-2:2], *FORCES[:-1:2], *STRESS[::2]], ids=lambda fault: fault.name
)
def test_faults_are_found_in_few_structures(organic: list[DoctorInput], fault: Fault) -> None:
    """In most samples of 25."""
    samples = [broken(fault, drawn(organic, 25, seed), seed) for seed in range(4)]
    assert sum(fault.code in codes(sample) for sample in samples) >= 3


@pytest.mark.parametrize("fault", ENERGY[:-2], ids=lambda fault: fault.name)
def test_faults_are_found_under_an_energy_offset(organic: list[DoctorInput], fault: Fault) -> None:
    """Claims about scales do not depend on any element's zero."""
    moved = offset(organic, np.random.default_rng(7))
    assert fault.code in codes(broken(fault, moved))


@pytest.mark.parametrize("fault", FAULTS[::4], ids=lambda fault: fault.name)
def test_order_of_structures_does_not_matter(organic: list[DoctorInput], fault: Fault) -> None:
    """The same codes are found in another order."""
    inputs = broken(fault, organic)
    assert codes(inputs[::-1]) == codes(inputs)


def test_orientation_does_not_matter(organic: list[DoctorInput]) -> None:
    """Sound data stay sound when they are turned."""
    assert codes(turned(organic, np.random.default_rng(5))) == set()


def test_findings_are_deterministic(organic: list[DoctorInput]) -> None:
    """The same findings, word by word."""
    inputs = broken(FAULTS[2], organic)
    assert examine(inputs) == examine(inputs)


def noisy(inputs: list[DoctorInput], seed: int, size: float) -> list[DoctorInput]:
    """Return structures with random numbers as teacher."""
    generator = np.random.default_rng(seed)
    return [
        replace(
            item,
            teacher={
                "energy": np.asarray(size * generator.normal() * item.n_atoms),
                "forces": size * generator.normal(size=(item.n_atoms, 3)),
                "stress": size * generator.normal(size=6),
            },
        )
        for item in inputs
    ]


@pytest.mark.parametrize("size", [1e-2, 0.3, 1.0, 30.0])
def test_a_random_teacher_is_only_warned_of(copper: list[DoctorInput], size: float) -> None:
    """No unit is found, however large the numbers."""
    for seed in range(5):
        found = examine(noisy(copper, seed, size))
        assert not {finding.code for finding in found} & UNITS_SIGNS_ORDERS
        assert "forces-unrelated" in {finding.code for finding in found}


def repelling(item: DoctorInput) -> dict[str, Array]:
    """Return energy and forces of a soft repulsion: what an untrained network may look like."""
    here = item.structure
    apart = here.positions[:, None] - here.positions[None]
    apart -= np.round(apart @ np.linalg.pinv(here.cell)) @ here.cell
    squares = np.square(apart).sum(axis=2)
    pairs = 0.02 * np.exp(-squares / 8)
    forces = (pairs[..., None] * apart / 2).sum(axis=1)
    return {"energy": np.asarray(pairs.sum()), "forces": forces}


def test_a_smooth_but_wrong_teacher_is_only_warned_of(copper: list[DoctorInput]) -> None:
    """Its energies and forces go with the structure, but not as the labels do."""
    inputs = [replace(item, teacher=repelling(item)) for item in copper]
    assert not {finding.code for finding in examine(inputs) if finding.severity == "error"}


@pytest.mark.parametrize("softness", [0.7, 0.85, 1.2, 1.3])
def test_nothing_is_found_with_a_soft_teacher(organic: list[DoctorInput], softness: float) -> None:
    """Models of relaxations are soft, that is no unit."""
    soft = [
        changed(item, "teacher", "forces", softness * item.teacher["forces"]) for item in organic
    ]
    assert codes(soft) == set()


def test_ids_shuffled_within_one_material_are_found(copper: list[DoctorInput]) -> None:
    """By forces that fit another structure."""
    large = [item for item in copper if item.n_atoms == 108 and item.labels["forces"].any()]
    teachers = [item.teacher for item in large]
    moved = [
        replace(item, teacher=teacher)
        for item, teacher in zip(large, teachers[1:] + teachers[:1], strict=True)
    ]
    assert "shuffled" in codes(moved)


def test_labels_targets_or_both_may_be_missing(organic: list[DoctorInput]) -> None:
    """Labels or targets may be empty, and so may all."""
    assert examine([]) == []
    assert codes([replace(item, labels={}) for item in organic]) == set()
    assert codes([replace(item, teacher={}) for item in organic]) == set()
    unlike = [
        replace(item, labels={"energy": item.labels["energy"]}, teacher={"forces": forces})
        for item in organic
        for forces in [item.teacher["forces"]]
    ]
    assert codes(unlike) == set()


def test_targets_are_examined_without_labels(organic: list[DoctorInput]) -> None:
    """By the teacher's values alone."""
    alone = [replace(item, labels={}) for item in organic]
    assert codes(atomic(0.9)(alone, np.random.default_rng(0))) == {"sum"}
    assert codes(atomic(1.0)(alone, np.random.default_rng(0))) == set()
    zero = [changed(item, "teacher", "energy", np.zeros(())) for item in alone]
    assert codes(zero) == {"zeros"}


def test_an_energy_of_exactly_zero_is_only_warned_of(organic: list[DoctorInput]) -> None:
    """The structure that all others are relative to, or the formation energy of an element."""
    for side in ("labels", "teacher"):
        last = changed(organic[-1], side, "energy", np.zeros(()))
        for inputs in ([*organic[:-1], last], [replace(item, labels={}) for item in [last]]):
            found = [one for one in examine(inputs) if one.code == "zeros"]
            assert all(one.severity == "warning" for one in found)

    near = changed(changed(organic[-1], "teacher", "energy", np.asarray(0.01)), "labels", "energy",
                   np.zeros(()))  # fmt: skip
    assert "zeros" not in codes([*organic[:-1], near])


def test_forces_that_vanish_by_symmetry_are_no_placeholders(copper: list[DoctorInput]) -> None:
    """Whatever a teacher in another unit, or a poor one, predicts there."""
    crystal = min(copper, key=lambda item: np.abs(item.labels["forces"]).max())
    zero = np.zeros((crystal.n_atoms, 3))
    noisy_one = changed(changed(crystal, "labels", "forces", zero), "teacher", "forces", zero + 0.1)
    others = [
        changed(item, "teacher", "forces", 23.06 * item.teacher["forces"])
        for item in copper
        if item is not crystal
    ]
    assert "zeros" not in codes([*others, noisy_one])

    lone = Structure([29], [[0.0, 0.0, 0.0]], np.eye(3) * 2.3, [True] * 3)
    item = DoctorInput("lone", lone, {"forces": np.zeros((1, 3))}, {"forces": np.full((1, 3), 9.0)})
    assert "zeros" not in codes([*copper, item])


def test_too_few_structures_are_a_warning(organic: list[DoctorInput]) -> None:
    """Rather than guessed at, though every one is in kcal/mol."""
    few = broken(ENERGY[2], organic[:5])
    (finding,) = examine(few)
    assert (finding.code, finding.severity) == ("energy-too-few", "warning")


def test_errors_come_before_warnings(organic: list[DoctorInput]) -> None:
    """Before warnings, whatever they are about."""
    inputs = broken(FAULTS[-4], offset(organic, np.random.default_rng(0)))
    severities = [finding.severity for finding in examine(inputs)]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}


def test_a_message_names_the_remedy_and_the_structures(organic: list[DoctorInput]) -> None:
    """And the structures, where only some are concerned."""
    (finding,) = examine(broken(ENERGY[2], organic))
    assert "kcal/mol" in finding.message
    assert "convert that side" in finding.message
    (missing,) = examine(broken(Fault("", "missing", _one_without_energy), organic))
    assert missing.structure_ids == (organic[3].structure_id,)


def _one_without_energy(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
    return [
        changed(item, "labels", "energy", None) if row == 3 else item
        for row, item in enumerate(inputs)
    ]


def test_molecules_need_no_cell() -> None:
    """No cell is needed."""
    nowhere = np.zeros((3, 3))
    hydrogen = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]], nowhere, [False] * 3)
    values = {"energy": np.asarray(-1.0), "forces": np.zeros((2, 3))}
    assert codes([DoctorInput("h2", hydrogen, values, values)]) == {"energy-too-few"}


def test_an_unknown_quantity_is_refused() -> None:
    """With the nearest name."""
    hydrogen = Structure([1], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)
    with pytest.raises(KeyError, match="unknown quantity 'enrgy'; did you mean 'energy'"):
        DoctorInput("h", hydrogen, {"enrgy": np.asarray(1.0)}, {})


def test_an_error_is_overruled_by_the_name_in_its_message(organic: list[DoctorInput]) -> None:
    """It is then a warning, and the others still stop the run."""
    gradients = broken(FORCES[0], broken(ENERGY[2], organic))
    findings = examine(gradients)
    assert {finding.name for finding in findings} == {"energy_unit", "forces_sign"}
    for finding in findings:
        assert finding.message.endswith(f"allow: [{finding.name}] overrules this")

    (refused,), (overruled,) = split_allowed(findings, ["energy_unit"])
    assert (refused.code, refused.severity) == ("forces-sign", "error")
    assert (overruled.code, overruled.severity) == ("energy-unit", "warning")
    assert overruled.message.endswith("(overruled by allow: [energy_unit])")
    assert split_allowed(findings, ["energy-unit", "forces_sign"])[0] == []


@every_fault
def test_every_error_can_be_overruled(organic: list[DoctorInput], fault: Fault) -> None:
    """So that no run is stopped for good."""
    found = [one for one in examine(broken(fault, organic)) if one.severity == "error"]
    assert {one.name for one in found} <= ERRORS
    assert split_allowed(found, sorted(ERRORS))[0] == []


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        (["energy_unt"], "allow: no error is called 'energy_unt'; did you mean 'energy_unit'"),
        ("energy_unit", "allow: expected a list of names"),
        (True, "allow: expected a list of names"),
        ([1], "no error is called '1'"),
    ],
)
def test_an_unknown_name_in_allow_is_refused(allow: object, message: str) -> None:
    """With the nearest one."""
    with pytest.raises(ValueError, match=message):
        check_allow(allow)
