"""Faults of a teacher's energies against the labels: unit, sign, per atom, offset, order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from kd_plugins.doctor.agreement import CLEAR_FACTOR, Agreement, rank_correlation, rms
from kd_plugins.doctor.energies import FEWEST_FREE, PLAIN, Energies
from kd_plugins.doctor.explanations import Claim, explain, explanations
from kd_plugins.doctor.inputs import Finding, first_ids, share
from kd_plugins.doctor.references import References, find_outliers
from kd_plugins.store.structure import Array

SMALL_SPREAD = 0.02
"""eV/atom of spread in the labels below which a good teacher may fail to follow them."""
LARGE_OFFSET = 0.5
"""eV/atom between teacher and labels above which an offset is worth a warning."""


def energy_faults(
    energies: Energies, forces: Agreement | None
) -> tuple[list[Finding], float | None]:
    """Compare a teacher's energies with the labels.

    Args:
        energies: of both.
        forces: how they compare, None if not known. Where they do not follow, nothing is claimed of
            units, because such a teacher may agree with anything by chance.

    Returns:
        What is wrong, and by how much the teacher's energies vary more than the labels once that
        is mended; negative if they go against the labels, None if they do not follow.
    """
    if not energies.cases:
        return [], None
    if not energies.enough:
        return [_too_few(energies)], None
    sound = energies.part(~_far_off(energies))
    if not sound.enough:
        return [_too_few(sound)], None

    doubtful = forces is not None and abs(forces.cosine) < 0.5
    claim = None if doubtful else explain(sound, forces)
    certain = claim is not None and claim.certain
    slope = sound.slope(claim.best if claim is not None and certain else PLAIN)

    if claim is not None and certain:
        return [_wrong(claim)], slope
    unrelated = _unrelated(sound, forces)
    if unrelated:
        return [unrelated], slope
    scale = _scale(slope, claim)
    return [*scale, *_offset(energies), *_outliers(energies)], slope


def _far_off(energies: Energies) -> Bool[Array, " B"]:
    """Return the few structures, (B,), that are far off under the best of all explanations."""
    best = min([PLAIN, *explanations(energies)], key=energies.unexplained)
    differences = energies.teachers * best.teacher - energies.labels * best.labels
    return find_outliers(energies.compositions, differences / energies.n_atoms)


def _too_few(energies: Energies) -> Finding:
    n, rank = len(energies.cases), energies.compositions.rank
    return Finding(
        "energy-too-few",
        "warning",
        "energy",
        f"{n} structures with a teacher's and a label's energy are too few to check them: their "
        f"elements alone take {rank} to fit, and {FEWEST_FREE} or more must be left; examine more",
    )


def _wrong(claim: Claim) -> Finding:
    return Finding(
        claim.best.code,
        "error",
        "energy",
        f"{claim.words}: after a fit to the elements this leaves {claim.left:.2g} of the labels' "
        f"spread unexplained, and the values as they are {claim.plain:.2g}; {claim.evidence}. "
        "Look which side it is, convert that side and write it anew",
    )


def _unrelated(energies: Energies, forces: Agreement | None) -> Finding | None:
    teacher, label = energies.spreads(PLAIN)
    follows = rank_correlation(teacher, label)
    if np.median(np.abs(label)) < SMALL_SPREAD or follows > 0.5:
        return None

    # An untrained network may have forces of the right direction, but not of the right size.
    ratio = rms(teacher) / rms(label)
    wild = ratio > 3 and (forces is None or forces.cosine > 0.5)
    trained = forces is not None and forces.cosine > 0.8 and forces.is_sized
    hint = (
        "though forces do; energies stand beside the wrong structures or another set's"
        if trained
        else "are ids shuffled, is it another data set, or is the teacher poor?"
    )
    return Finding(
        "energy-unrelated",
        "error" if wild or trained else "warning",
        "energy",
        f"the teacher's energies do not follow the labels (correlation {follows:.2f} after a fit "
        f"to the elements, spread {rms(teacher):.3g} against {rms(label):.3g} eV/atom), {hint}",
    )


def _scale(slope: float | None, claim: Claim | None) -> Iterator[Finding]:
    """Warn of a teacher whose energies vary much more or less than the labels, or against them."""
    if slope is None or 1 / CLEAR_FACTOR < slope < CLEAR_FACTOR:
        return
    if claim is None:
        why = "by no factor of a common unit; look where both come from"
    else:
        why = (
            f"near a unit's factor ({claim.words}), but {claim.evidence}: more likely the teacher "
            "is poor or hardly trained. If it is the unit, convert that side"
        )
    text = f"the teacher's energies vary {slope:.3g} times as much as the labels, {why}"
    yield Finding("energy-scale", "warning", "energy", text)


def _offset(energies: Energies) -> Iterator[Finding]:
    references = energies.references
    differences = (energies.teachers - energies.labels) / energies.n_atoms
    mean = float(np.mean(np.abs(differences - references.residuals)))
    if mean > LARGE_OFFSET:
        yield Finding("energy-offset", "warning", "energy", _offset_words(mean, references))


def _offset_words(mean: float, references: References) -> str:
    offsets = ", ".join(
        f"{z}: {value:+.3f}{_doubt(z, references)}" for z, value in references.offsets.items()
    )
    return (
        f"the teacher's energies are {mean:.2f} eV/atom off the labels, mostly by an offset an "
        f"element, teacher minus label in eV by atomic number: {offsets}; {references.std:.3f} "
        f"eV/atom (median {references.mad:.3f}) remain after it. A student of both is torn between "
        "two zeros: --fix writes a store without the offset"
    )


def _doubt(element: int, references: References) -> str:
    if element in references.supported:
        return ""
    return " (by one structure)" if element in references.determined else " (not told apart)"


def _outliers(energies: Energies) -> Iterator[Finding]:
    references = energies.references
    rows = np.flatnonzero(references.outliers)
    if len(rows):
        worst = rows[np.argsort(-np.abs(references.residuals[rows]), kind="stable")]
        cases = [energies.cases[row] for row in worst]
        yield Finding(
            "energy-outlier",
            "warning",
            "energy",
            f"{share(len(rows), len(energies.cases))} have energies far off what all others "
            f"suggest, the worst by {references.residuals[worst[0]]:+.2f} eV/atom (teacher minus "
            f"label, {references.mad:.3f} is the median); look at these calculations",
            first_ids(cases),
        )
