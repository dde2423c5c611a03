"""Faults of a teacher's forces against the labels: unit, sign, order of atoms and of structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kd_plugins.doctor.energy_faults import is_sized
from kd_plugins.doctor.inputs import DoctorInput, Finding, Values, collect_pairs, first_ids, share
from kd_plugins.doctor.units import (
    FORCE_UNITS,
    Agreement,
    compare_vectors,
    likeliest_hypotheses,
    unit_hypotheses,
)

# CHGNet's error is 0.08 eV/Å on its test set (Deng et al. 2023), EMT's on metals is 0.1 in the
# tests; smaller labels say little of a teacher.
LARGE_FORCE = 0.1
"""eV/Å, root mean square, below which forces are not compared: relaxed structures."""

# Mean cosines in the tests: 0.95 and more of EMT and CHGNet against DFT, 0.08 and less of random
# forces. A teacher between both limits is poor in a way that no unit and no order explains.
FOLLOWS, STRANGE = 0.6, 0.35
"""Mean cosine above which forces follow the labels, and below which they do not."""

# Without energies, a half trained teacher may have any factor; its cosine is not that high, and its
# ratios scatter by more than exp(0.1), 10 %.
NEARLY_ONE, AT_FACTOR = 0.98, 0.1
"""Cosine, and distance to a unit's factor in natural logarithms, that prove a unit alone."""

# Far above a teacher's error, and above what rattled and strained structures have on one atom.
WRONG_FORCE = 5.0
"""eV/Å off the label, below which no atom is called an outlier."""


def compare_forces(inputs: Sequence[DoctorInput]) -> Agreement | None:
    """Return how forces compare; None if too few are large enough."""
    _, teachers, labels = collect_pairs(inputs, "forces")
    return compare_vectors(teachers, labels, LARGE_FORCE)


def force_faults(
    inputs: Sequence[DoctorInput], compared: Agreement | None, energy_slope: float | None
) -> list[Finding]:
    """Compare a teacher's forces with the labels.

    Args:
        inputs: with forces or without.
        compared: result of `compare_forces`.
        energy_slope: how many times more the teacher's energies vary than the labels, if they
            follow; negative if they go against them. Forces are derivatives of energies, so a
            teacher with energies as soft as its forces, or as opposite, is poor and not in another
            unit.
    """
    if compared is None:
        return []

    kept, teachers, labels = collect_pairs(inputs, "forces")
    if abs(compared.cosine) < STRANGE:
        return [_unrelated(kept, teachers, labels, compared)]
    if abs(compared.cosine) < FOLLOWS:
        return []

    # Outliers mean little where all forces are wrong.
    scale = [*_sign(compared, energy_slope), *_unit(compared, energy_slope)]
    return scale or list(_outliers(kept, teachers, labels))


def _sign(compared: Agreement, slope: float | None) -> Iterator[Finding]:
    if compared.cosine > 0:
        return
    found = f"the teacher's forces point against the labels (mean cosine {compared.cosine:.2f})"
    if slope is not None and slope < 0:
        text = f"{found}, and so do its energies: a poor teacher, or do both have the wrong sign?"
        yield Finding("forces-sign", "warning", "forces", text)
    elif slope is None and not compared.is_sized:
        text = f"{found} and are {compared.ratio:.3g} times as large: a poor teacher, or gradients?"
        yield Finding("forces-sign", "warning", "forces", text)
    else:
        text = f"{found}: one side holds gradients, which are minus the forces; turn its sign"
        yield Finding("forces-sign", "error", "forces", text)


def _unit(compared: Agreement, slope: float | None) -> Iterator[Finding]:
    factors = unit_hypotheses(FORCE_UNITS, "eV/Å")
    found = f"the teacher's forces are {compared.ratio:.3g} times the labels"

    # A teacher with soft energies has forces that are as soft, in whatever unit.
    softness = abs(slope) if slope is not None else 1.0
    words = likeliest_hypotheses(compared, factors, softness)
    words_alone = likeliest_hypotheses(compared, factors)

    if not compared.is_sized and words and _is_certain(compared, slope, factors.values()):
        text = f"{found}: {words}; convert that side and write it anew"
        yield Finding("forces-unit", "error", "forces", text)

    elif not compared.is_sized and words_alone:
        energies = (
            "energies do not support it" if slope is None else f"energies vary {slope:.3g} times"
        )
        text = (
            f"{found}, near a unit's factor ({words_alone}), but {energies}: more likely the "
            "teacher is poor or hardly trained. If it is the unit, convert that side"
        )
        yield Finding("forces-scale", "warning", "forces", text)

    elif words_alone and slope is not None and _differ(compared, abs(slope), factors.values()):
        text = (
            f"{found}, though its energies vary {slope:.3g} times as much as theirs: perhaps "
            f"{words_alone}; compare forces with differences of the energy"
        )
        yield Finding("forces-unit", "warning", "forces", text)

    elif not 0.5 < compared.ratio < 2:
        text = f"{found}, by no factor of a common unit; look where both come from"
        yield Finding("forces-scale", "warning", "forces", text)


def _is_certain(compared: Agreement, slope: float | None, factors: Iterable[float]) -> bool:
    """Return whether forces of a wrong size come from a unit and not from a poor teacher.

    Energies of the right size prove it, as nothing else then explains the forces. Without
    energies, forces must follow almost perfectly and lie at the very factor.
    """
    if slope is not None:
        return is_sized(abs(slope))
    nearest = min(compared.distance(factor) for factor in factors)
    return abs(compared.cosine) > NEARLY_ONE and nearest < AT_FACTOR


def _differ(compared: Agreement, slope: float, factors: Iterable[float]) -> bool:
    """Return whether forces differ by a unit's factor from how soft the energies are.

    It is meant for eV/Bohr, a factor of 1.9 that softness alone may reach: exp(0.25) = 1.3 to the
    unit, and exp(0.5) = 1.65 away from what the energies suggest.
    """
    distance = min(compared.distance(slope * factor) for factor in factors)
    return distance < 0.25 and compared.distance(slope) > 0.5


def _unrelated(
    inputs: Sequence[DoctorInput],
    teachers: Sequence[Values],
    labels: Sequence[Values],
    compared: Agreement,
) -> Finding:
    """Return why forces do not follow: shuffled structures, shuffled atoms, or no reason found."""
    found = f"the teacher's forces do not follow the labels (mean cosine {compared.cosine:.2f})"
    shuffled = [row for row in _find_shuffled(teachers, labels) if row in compared.rows]

    # Of shuffled structures not all have a partner in the sample, and single ones match by chance.
    if len(shuffled) > 0.3 * len(compared.rows):
        text = f"{found}, but those of another structure: ids or structures are shuffled"
        ids = first_ids(inputs[row] for row in shuffled)
        return Finding("shuffled", "error", "forces", f"{text}; label again by id", ids)

    moments = compare_vectors(_moments(teachers), _moments(labels), 0.0)
    if moments is not None and moments.cosine > 0.8:
        text = f"{found}, though a structure's forces as a set do: atoms in another order?"
        return Finding("forces-order", "error", "forces", text)

    text = f"{found}: are ids shuffled, is it another data set, or is the teacher poor?"
    return Finding("forces-unrelated", "warning", "forces", text)


def _moments(forces: Sequence[Values]) -> list[Values]:
    """Return sums over atoms that do not depend on their order: Σ F Fᵀ without its trace, (3, 3).

    The trace is left out because it is positive for any forces, and would make all sums alike.
    """
    sums = [values.T @ values for values in forces]
    return [square - np.trace(square) / 3 * np.eye(3) for square in sums]


def _find_shuffled(teachers: Sequence[Values], labels: Sequence[Values]) -> Iterator[int]:
    """Yield the positions of structures with teacher forces that are another's label forces."""
    # Only structures with equally many atoms can be compared; few atoms agree by chance.
    groups: dict[int, list[int]] = defaultdict(list)
    for row, forces in enumerate(labels):
        if len(forces) >= 4 and forces.any() and teachers[row].any():
            groups[len(forces)].append(row)

    for rows in groups.values():
        left, right = (_directions([side[row] for row in rows]) for side in (teachers, labels))
        cosines = left @ right.T
        is_shuffled = (np.diagonal(cosines) < 0.5) & (cosines.max(axis=1) > 0.9)
        yield from np.array(rows)[is_shuffled].tolist()


def _directions(forces: Sequence[Values]) -> Values:
    """Return each structure's forces as one unit vector, (structures, 3 atoms)."""
    flat = np.array([values.ravel() for values in forces])
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _outliers(
    inputs: Sequence[DoctorInput], teachers: Sequence[Values], labels: Sequence[Values]
) -> Iterator[Finding]:
    differences, smaller = [], []
    for teacher, label in zip(teachers, labels, strict=True):
        differences.append(_longest(teacher - label))
        smaller.append(min(_longest(teacher), _longest(label)))
    largest = np.array(differences)

    # Where both sides have large forces, a large difference may just be the teacher's error.
    rows = np.flatnonzero((largest > WRONG_FORCE) & (largest > 3 * np.array(smaller)))
    if not len(rows):
        return

    worst_first = rows[np.argsort(-largest[rows], kind="stable")]
    yield Finding(
        "forces-outlier",
        "warning",
        "forces",
        f"{share(len(rows), len(inputs))} have an atom whose forces differ by more than "
        f"{WRONG_FORCE} eV/Å where one side has small ones, the worst by "
        f"{largest[worst_first[0]]:.3g} eV/Å; look at these calculations",
        first_ids(inputs[row] for row in worst_first),
    )


def _longest(vectors: Values) -> float:
    return float(np.linalg.norm(vectors, axis=1).max())
