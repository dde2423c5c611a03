"""Data sets compared with each other: other structures, with the same energy zero."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kd_plugins.chgnet.data import DataError, DistillData
from kd_plugins.doctor.examine import split_allowed
from kd_plugins.doctor.inputs import DoctorInput, Finding, collect_pairs, first_ids
from kd_plugins.doctor.references import fit_references
from kd_plugins.store.structure import POSITION_TOLERANCE, Structure

logger = logging.getLogger(__name__)

# Another zero, as of isolated atoms in the place of pseudopotentials, is off by eV/atom.
SHIFT = 0.25
"""eV/atom that validation energies may differ from the student's beyond what training ones do."""

SCATTER = 5.0
"""Standard deviations of either data set's energies, by which they may differ as well."""


def check_apart(train: DistillData, validation: DistillData, allow: Sequence[str] = ()) -> None:
    """Refuse validation structures that are training structures; warn if some are.

    Errors on structures that were learned choose the most overfitted epoch.

    Args:
        train: to learn from.
        validation: that chooses the best epoch.
        allow: names of errors to overrule, here ``same_validation``.

    Raises:
        DataError: if all validation structures are in the training data.
    """
    parts = ([sample.doctor_input for sample in data.samples] for data in (train, validation))
    shared = _find_shared(*parts)
    if not shared:
        return

    ids = first_ids(shared)
    n_shared, n_all = len(shared), len(validation)
    if n_shared < n_all:
        logger.warning(
            f"{n_shared} of {n_all} validation structures are in the training data, too, such as "
            f"{', '.join(ids)}: their errors tell nothing about other structures; take them out of "
            "one"
        )
        return

    text = (
        f"all {n_all} validation structures are in the training data, too, such as "
        f"{', '.join(ids)}: their errors would choose the most overfitted epoch; give other "
        "structures as validation data"
    )
    finding = Finding("same-validation", "error", "structure", text, ids)
    refused, overruled = split_allowed([finding], allow)
    for one in overruled:
        logger.warning(one.message)
    if refused:
        raise DataError(refused[0].message)


def other_zero(
    first: Sequence[DoctorInput],
    second: Sequence[DoctorInput],
    name: str = "validation data",
    those: str = "those of the training data",
) -> list[Finding]:
    """Return an error if the energies of a second data set have another zero.

    Energies are compared with the student's, after the element references have been fitted to the
    first data set. A constant that is large beside the scatter of both data sets is another zero,
    as of another teacher. Structures with elements that the first does not determine do not count.

    Args:
        first: structures with the student's values as labels and targets as teacher.
        second: the same of another data set: validation data, or another source of training data.
        name: of the second, for the message.
        those: the energies of the first, in words.
    """
    inputs, targets, student = collect_pairs(first, "energy")
    others, their_targets, their_student = collect_pairs(second, "energy")
    if not inputs or not others:
        return []

    numbers = [one.structure.atomic_numbers for one in inputs]
    references = fit_references(numbers, np.array(targets), np.array(student))

    differences = [
        (target - predicted - references.total(one.structure.atomic_numbers)) / one.n_atoms
        for one, target, predicted in zip(others, their_targets, their_student, strict=True)
        if references.covers(one.structure.atomic_numbers)
    ]
    if not differences:
        return []

    mean, scatter = float(np.mean(differences)), max(references.std, float(np.std(differences)))
    if abs(mean) <= max(SHIFT, SCATTER * scatter):
        return []

    is_validation = name.startswith("validation")
    remedy = "label both with one teacher and one store"
    if not is_validation:
        remedy = (
            "label both with one teacher, or move these to the student's zero: align_targets(model,"
            " data), align: true in their block of a YAML"
        )
    text = (
        f"the energies of the {name} are {mean:+.2f} eV/atom off {those} (both against the "
        f"student, element references aside), so they have another zero; {remedy}"
    )
    code = "validation-zero" if is_validation else "source-zero"
    return [Finding(code, "error", "energy", text)]


def _find_shared(
    train: Sequence[DoctorInput], validation: Sequence[DoctorInput]
) -> list[DoctorInput]:
    """Return the validation structures that are in the training data, whatever their ids.

    Comparing all pairs would take the product of both sizes. So structures are grouped by their
    atomic numbers and sorted by a hash that changes little with the positions; only neighbours in
    that order are compared.
    """
    groups: dict[bytes, list[tuple[float, int]]] = defaultdict(list)
    for index, one in enumerate(train):
        groups[one.structure.atomic_numbers.tobytes()].append((_hash(one.structure), index))
    for group in groups.values():
        group.sort()

    found = []
    for one in validation:
        group = groups.get(one.structure.atomic_numbers.tobytes(), [])
        value, slack = _hash(one.structure), 20 * POSITION_TOLERANCE
        first = bisect_left(group, (value - slack, -1))
        last = bisect_right(group, (value + slack, len(train)))

        near = (train[index].structure for _, index in group[first:last])
        if any(structure.difference(one.structure) is None for structure in near):
            found.append(one)
    return found


def _hash(structure: Structure) -> float:
    """Return a number that equal structures share, wrapped into the cell or not.

    A cosine of fractional coordinates does not change when an atom moves by a lattice vector.
    """
    fractions = structure.positions @ np.linalg.pinv(structure.cell)
    waves = np.cos(2 * np.pi * fractions)
    return float(np.linalg.norm(structure.cell) + waves.mean(axis=0).sum())
