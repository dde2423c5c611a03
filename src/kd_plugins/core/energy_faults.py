"""Faults of a teacher's energies against the labels: unit, sign, per atom, offset, order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from kd_plugins.core.agreement import CLEAR_FACTOR, rank_correlation, rms
from kd_plugins.core.cases import Finding, first_ids, share
from kd_plugins.core.energies import FEWEST_FREE, PLAIN, Energies, Explanation
from kd_plugins.core.references import References, find_outliers
from kd_plugins.core.structure import Array
from kd_plugins.core.units import ENERGY_UNITS

SMALL_SPREAD = 0.02
"""eV/atom of spread in the labels below which a good teacher may fail to follow them."""
LARGE_OFFSET = 0.5
"""eV/atom between teacher and labels above which an offset is worth a warning."""
EXPLAINED, BETTER, FOLLOWS = 0.5, 2.0, 0.8
"""An explanation must leave less than this part of the labels' spread, so many times less than
plain agreement leaves, and correlate so well."""


def energy_faults(energies: Energies, force_cosine: float | None) -> list[Finding]:
    """Compare a teacher's energies with the labels.

    Args:
        energies: of both.
        force_cosine: how well forces follow, None if not known. Where they do not, nothing is
            claimed of units, because such a teacher may agree with anything by chance.
    """
    if not energies.cases:
        return []
    if not energies.enough:
        return [_too_few(energies)]
    sound = energies.part(~_far_off(energies))
    if not sound.enough:
        return [_too_few(sound)]
    doubtful = force_cosine is not None and abs(force_cosine) < 0.5
    found = None if doubtful else _explanation(sound)
    found = found or _unrelated(sound, force_cosine)
    return [found] if found else [*_offset(energies), *_outliers(energies)]


def _far_off(energies: Energies) -> Bool[Array, " B"]:
    """Return the few structures, (B,), that are far off under the best of all explanations."""
    best = min([PLAIN, *_explanations(energies)], key=energies.unexplained)
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


def _explanations(energies: Energies) -> Iterator[Explanation]:
    n_atoms = energies.n_atoms
    for sign, opposite in ((1.0, ""), (-1.0, " and of opposite sign")):
        for unit, size in ENERGY_UNITS.items():
            words = f"the teacher's energies are in {unit}{opposite}, not eV"
            yield Explanation("energy-unit", words, teacher=sign * size)
            words = f"the label energies are in {unit}{opposite}, not eV"
            yield Explanation("energy-unit", words, teacher=sign, labels=size)
    yield Explanation("energy-sign", "one side's energies have the wrong sign", teacher=-1.0)
    words = "the {} energies are per atom, not total ones of the structure"
    yield Explanation("energy-per-atom", words.format("teacher's"), teacher=n_atoms)
    yield Explanation("energy-per-atom", words.format("label"), labels=n_atoms)


def _explanation(energies: Energies) -> Finding | None:
    """Return what explains the labels far better than plain agreement does, if anything."""
    plain = energies.unexplained(PLAIN)
    scores = [(energies.unexplained(one), one) for one in _explanations(energies)]
    left, best = min(scores, key=lambda pair: pair[0])
    if (
        left >= EXPLAINED
        or left * BETTER >= plain
        or rank_correlation(*energies.spreads(best)) < FOLLOWS
    ):
        return None
    others = [one.words for score, one in scores if score < 1.5 * left and one is not best]
    also = f" (or: {'; '.join(others)})" if others else ""
    return Finding(
        best.code,
        "error",
        "energy",
        f"{best.words}{also}: after a fit to the elements this leaves {left:.2g} of the labels' "
        f"spread unexplained, and the values as they are {plain:.2g}; convert that side and write "
        "it anew",
    )


def _unrelated(energies: Energies, force_cosine: float | None) -> Finding | None:
    teacher, label = energies.spreads(PLAIN)
    follows = rank_correlation(teacher, label)
    if np.median(np.abs(label)) < SMALL_SPREAD or follows > 0.5:
        return None
    ratio = rms(teacher) / rms(label)
    wild, trained = ratio > 3, force_cosine is not None and force_cosine > 0.8
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


def _offset(energies: Energies) -> Iterator[Finding]:
    slope = energies.slope
    if slope is not None and not 1 / CLEAR_FACTOR < slope < CLEAR_FACTOR:
        yield Finding(
            "energy-scale",
            "warning",
            "energy",
            f"the teacher's energies vary {slope:.3g} times as much as the labels, by no factor of "
            "a common unit; look where both come from",
        )
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
