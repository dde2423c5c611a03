"""Faults of a teacher's forces against the labels: unit, sign, order of atoms and of structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kd_plugins.core.agreement import (
    CLEAR_FACTOR,
    Agreement,
    agreement,
    likeliest,
    suspects,
)
from kd_plugins.core.cases import Case, Finding, Values, first_ids, paired, share
from kd_plugins.core.units import FORCE_UNITS

LARGE_FORCE = 0.1
"""eV/Å, root mean square, below which forces say nothing: relaxed structures."""
FOLLOWS, STRANGE = 0.6, 0.35
"""Cosine above which vectors follow each other, and below which they do not."""
WRONG_FORCE = 5.0
"""eV/Å off the label, below which no atom is called an outlier."""


def force_agreement(cases: Sequence[Case]) -> Agreement | None:
    """Return how forces compare, None if too few are large enough to tell."""
    _, teachers, labels = paired(cases, "forces")
    return agreement(teachers, labels, LARGE_FORCE)


def force_faults(
    cases: Sequence[Case], compared: Agreement | None, energy_slope: float | None
) -> list[Finding]:
    """Compare a teacher's forces with the labels.

    Args:
        cases: with forces or without.
        compared: what `force_agreement` says of them.
        energy_slope: by how much the teacher's energies vary more than the labels, if they follow:
            how soft the teacher is, which tells eV/Bohr from a soft teacher.
    """
    if compared is None:
        return []
    kept, teachers, labels = paired(cases, "forces")
    if abs(compared.cosine) < STRANGE:
        return [_strange(kept, teachers, labels, compared)]
    if abs(compared.cosine) < FOLLOWS:
        return []
    scale = [*_sign(compared), *_unit(compared, energy_slope)]
    return scale or list(_outliers(kept, teachers, labels))


def _sign(compared: Agreement) -> Iterator[Finding]:
    if compared.cosine < 0:
        yield Finding(
            "forces-sign",
            "error",
            "forces",
            f"the teacher's forces point against the labels (mean cosine {compared.cosine:.2f}): "
            "one side holds gradients, which are minus the forces; turn its sign",
        )


def _unit(compared: Agreement, slope: float | None) -> Iterator[Finding]:
    factors = suspects(FORCE_UNITS, "eV/Å")
    ratio, words = compared.ratio, likeliest(compared, factors)
    found = f"the teacher's forces are {ratio:.3g} times the labels"
    clear = not 1 / CLEAR_FACTOR < ratio < CLEAR_FACTOR
    if clear and words:
        message = f"{found}: {words}; convert that side and write it anew"
        yield Finding("forces-unit", "error", "forces", message)
    elif words and slope is not None and _softer(compared, slope, factors.values()):
        message = (
            f"{found}, though its energies vary {slope:.3g} times as much as theirs: perhaps "
            f"{words}; compare forces with differences of the energy"
        )
        yield Finding("forces-unit", "warning", "forces", message)
    elif not 0.5 < ratio < 2:
        message = f"{found}, by no factor of a common unit; look where both come from"
        yield Finding("forces-scale", "warning", "forces", message)


def _softer(compared: Agreement, slope: float, factors: Iterable[float]) -> bool:
    """Return whether forces are off by a unit's factor from how soft the energies are."""
    off_by_unit = min(compared.distance(slope * factor) for factor in factors) < 0.25
    return off_by_unit and compared.distance(slope) > 0.5


def _strange(
    cases: Sequence[Case], teachers: Sequence[Values], labels: Sequence[Values], compared: Agreement
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
    cases: Sequence[Case], teachers: Sequence[Values], labels: Sequence[Values]
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
