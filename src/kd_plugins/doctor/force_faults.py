"""Faults of a teacher's forces against the labels: unit, sign, order of atoms and of structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kd_plugins.doctor.agreement import CLEAR_FACTOR, Agreement, agreement, likeliest, suspects
from kd_plugins.doctor.inputs import DoctorInput, Finding, Values, first_ids, paired, share
from kd_plugins.doctor.units import FORCE_UNITS

LARGE_FORCE = 0.1
"""eV/Å, root mean square, below which forces say nothing: relaxed structures."""
FOLLOWS, STRANGE = 0.6, 0.35
"""Cosine above which vectors follow each other, and below which they do not."""
NEARLY_ONE, AT_FACTOR = 0.98, 0.1
"""Cosine, and distance to a unit's factor in natural logarithms, of forces that need no energies to
show a wrong unit."""
WRONG_FORCE = 5.0
"""eV/Å off the label, below which no atom is called an outlier."""


def force_agreement(cases: Sequence[DoctorInput]) -> Agreement | None:
    """Return how forces compare, None if too few are large enough to tell."""
    _, teachers, labels = paired(cases, "forces")
    return agreement(teachers, labels, LARGE_FORCE)


def force_faults(
    cases: Sequence[DoctorInput], compared: Agreement | None, energy_slope: float | None
) -> list[Finding]:
    """Compare a teacher's forces with the labels.

    Args:
        cases: with forces or without.
        compared: what `force_agreement` says of them.
        energy_slope: by how much the teacher's energies vary more than the labels, if they follow,
            negative if they go against them. Forces are derivatives of energies, so a teacher whose
            energies are as soft as its forces, or as opposite, is poor and not in another unit.
    """
    if compared is None:
        return []
    kept, teachers, labels = paired(cases, "forces")
    if abs(compared.cosine) < STRANGE:
        return [_strange(kept, teachers, labels, compared)]
    if abs(compared.cosine) < FOLLOWS:
        return []
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
    factors = suspects(FORCE_UNITS, "eV/Å")
    found = f"the teacher's forces are {compared.ratio:.3g} times the labels"
    softness = abs(slope) if slope is not None else 1.0
    words, plain = likeliest(compared, factors, softness), likeliest(compared, factors)

    if not compared.is_sized and words and _is_certain(compared, slope, factors.values()):
        text = f"{found}: {words}; convert that side and write it anew"
        yield Finding("forces-unit", "error", "forces", text)
    elif not compared.is_sized and plain:
        energies = (
            "energies say nothing of it" if slope is None else f"energies vary {slope:.3g} times"
        )
        text = (
            f"{found}, near a unit's factor ({plain}), but {energies}: more likely the teacher is "
            "poor or hardly trained. If it is the unit, convert that side"
        )
        yield Finding("forces-scale", "warning", "forces", text)
    elif plain and slope is not None and _softer(compared, abs(slope), factors.values()):
        text = (
            f"{found}, though its energies vary {slope:.3g} times as much as theirs: perhaps "
            f"{plain}; compare forces with differences of the energy"
        )
        yield Finding("forces-unit", "warning", "forces", text)
    elif not 0.5 < compared.ratio < 2:
        text = f"{found}, by no factor of a common unit; look where both come from"
        yield Finding("forces-scale", "warning", "forces", text)


def _is_certain(compared: Agreement, slope: float | None, factors: Iterable[float]) -> bool:
    """Return whether a unit is the reason, and not a poor teacher, for forces of a wrong size.

    Energies of the right size say so, as then nothing else explains the forces; without energies,
    only forces that follow almost perfectly and lie at the very factor.
    """
    if slope is not None:
        return 1 / CLEAR_FACTOR < abs(slope) < CLEAR_FACTOR
    nearest = min(compared.distance(factor) for factor in factors)
    return abs(compared.cosine) > NEARLY_ONE and nearest < AT_FACTOR


def _softer(compared: Agreement, slope: float, factors: Iterable[float]) -> bool:
    """Return whether forces are off by a unit's factor from how soft the energies are."""
    off_by_unit = min(compared.distance(slope * factor) for factor in factors) < 0.25
    return off_by_unit and compared.distance(slope) > 0.5


def _strange(
    cases: Sequence[DoctorInput],
    teachers: Sequence[Values],
    labels: Sequence[Values],
    compared: Agreement,
) -> Finding:
    found = f"the teacher's forces do not follow the labels (mean cosine {compared.cosine:.2f})"
    shuffled = [row for row in _elsewhere(teachers, labels) if row in compared.rows]
    if len(shuffled) > 0.3 * len(compared.rows):
        message = f"{found}, but those of another structure: ids or structures are shuffled"
        ids = first_ids(cases[row] for row in shuffled)
        return Finding("shuffled", "error", "forces", f"{message}; label again by id", ids)
    moments = agreement(_moments(teachers), _moments(labels), 0.0)
    if moments is not None and moments.cosine > 0.8:
        message = f"{found}, though a structure's forces as a set do: atoms in another order?"
        return Finding("forces-order", "error", "forces", message)
    message = f"{found}: are ids shuffled, is it another data set, or is the teacher poor?"
    return Finding("forces-unrelated", "warning", "forces", message)


def _moments(forces: Sequence[Values]) -> list[Values]:
    """Return sums over atoms, free of their order: Σ F Fᵀ without its trace, (3, 3)."""
    sums = [values.T @ values for values in forces]
    return [square - np.trace(square) / 3 * np.eye(3) for square in sums]


def _elsewhere(teachers: Sequence[Values], labels: Sequence[Values]) -> Iterator[int]:
    """Yield the positions of structures whose teacher forces are another's label forces."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, forces in enumerate(labels):
        if len(forces) >= 4 and forces.any() and teachers[row].any():
            groups[len(forces)].append(row)
    for rows in groups.values():
        left, right = (_directions([side[row] for row in rows]) for side in (teachers, labels))
        cosines = left @ right.T
        alike = (np.diagonal(cosines) < 0.5) & (cosines.max(axis=1) > 0.9)
        yield from np.array(rows)[alike].tolist()


def _directions(forces: Sequence[Values]) -> Values:
    flat = np.array([values.ravel() for values in forces])
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _outliers(
    cases: Sequence[DoctorInput], teachers: Sequence[Values], labels: Sequence[Values]
) -> Iterator[Finding]:
    largest = np.array([_largest(t - f) for t, f in zip(teachers, labels, strict=True)])
    smaller = np.array(
        [min(_largest(t), _largest(f)) for t, f in zip(teachers, labels, strict=True)]
    )
    rows = np.flatnonzero((largest > WRONG_FORCE) & (largest > 3 * smaller))
    if len(rows):
        worst = rows[np.argsort(-largest[rows], kind="stable")]
        yield Finding(
            "forces-outlier",
            "warning",
            "forces",
            f"{share(len(rows), len(cases))} have an atom whose forces differ by more than "
            f"{WRONG_FORCE} eV/Å where one side has small ones, the worst by "
            f"{largest[worst[0]]:.3g} eV/Å; look at these calculations",
            first_ids(cases[row] for row in worst),
        )


def _largest(vectors: Values) -> float:
    return float(np.linalg.norm(vectors, axis=1).max())
