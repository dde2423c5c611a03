"""Validation data beside the training data: other structures, of the same energy zero."""

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

SHIFT = 0.25
"""eV/atom by which validation energies may be off, beyond what training energies are off."""
SCATTER = 5.0
"""Standard deviations of the energies of either, within which they may be off as well."""


def check_apart(train: DistillData, validation: DistillData, allow: Sequence[str] = ()) -> None:
    """Refuse validation data that are the training data; say so of a few structures.

    Errors on structures that were learned choose the most overfitted epoch.

    Args:
        train: to learn from.
        validation: that chooses the best epoch.
        allow: names of errors to overrule, here ``same_validation``.

    Raises:
        DataError: if all structures of one are in the other.
    """
    known = _twins(
        [row.doctor_input for row in train.samples],
        [row.doctor_input for row in validation.samples],
    )
    if not known:
        return

    ids = first_ids(known)
    n_known, n_all = len(known), len(validation)
    if n_known < n_all:
        logger.warning(
            f"{n_known} of {n_all} validation structures are in the training data, too, such as "
            f"{', '.join(ids)}: their errors say nothing of other structures; take them out of one"
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


def other_zero(train: Sequence[DoctorInput], validation: Sequence[DoctorInput]) -> list[Finding]:
    """Return whether the energies of the validation data have another zero.

    Energies are compared with the student's, less what the training data's elements are off: a
    constant that is large beside the scatter of both is another zero, as of another teacher.

    Args:
        train: training structures, with the student's values as labels and targets as teacher.
        validation: the same of validation structures.
    """
    cases, targets, student = collect_pairs(train, "energy")
    others, their_targets, their_student = collect_pairs(validation, "energy")
    if not cases or not others:
        return []
    numbers = [case.structure.atomic_numbers for case in cases]
    references = fit_references(numbers, np.array(targets), np.array(student))

    off = [
        (target - said - references.total(case.structure.atomic_numbers)) / case.n_atoms
        for case, target, said in zip(others, their_targets, their_student, strict=True)
        if references.covers(case.structure.atomic_numbers)
    ]
    mean = float(np.mean(off)) if off else 0.0
    if abs(mean) <= max(SHIFT, SCATTER * references.std, SCATTER * float(np.std(off or [0.0]))):
        return []
    text = (
        f"the energies of the validation data are {mean:+.2f} eV/atom off those of the training "
        "data (both against the student, element references aside), so they have another zero; "
        "label both with one teacher and one store"
    )
    return [Finding("validation-zero", "error", "energy", text)]


def _twins(train: Sequence[DoctorInput], validation: Sequence[DoctorInput]) -> list[DoctorInput]:
    """Return the validation structures that are in the training data, whatever their ids."""
    groups: dict[bytes, list[tuple[float, int]]] = defaultdict(list)
    for index, case in enumerate(train):
        groups[case.structure.atomic_numbers.tobytes()].append((_mark(case.structure), index))
    for group in groups.values():
        group.sort()

    found = []
    for case in validation:
        group = groups.get(case.structure.atomic_numbers.tobytes(), [])
        mark, slack = _mark(case.structure), 20 * POSITION_TOLERANCE
        first = bisect_left(group, (mark - slack, -1))
        last = bisect_right(group, (mark + slack, len(train)))
        near = (train[index].structure for _, index in group[first:last])
        if any(structure.difference(case.structure) is None for structure in near):
            found.append(case)
    return found


def _mark(structure: Structure) -> float:
    """Return a number that a structure shares with itself, for sorting: few others have it."""
    inverse = np.linalg.pinv(structure.cell)
    turns = np.cos(2 * np.pi * (structure.positions @ inverse))
    return float(np.linalg.norm(structure.cell) + turns.mean(axis=0).sum())
