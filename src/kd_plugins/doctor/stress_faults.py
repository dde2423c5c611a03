"""Faults of a teacher's stress against the labels: unit, sign, virial, order of shear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kd_plugins.doctor.agreement import (
    CLEAR_FACTOR,
    Agreement,
    agreement,
    cosine,
    likeliest,
    rank_correlation,
    suspects,
)
from kd_plugins.doctor.inputs import DoctorInput, Finding, Values, paired
from kd_plugins.doctor.units import STRESS_UNITS

LARGE_STRESS = 0.003
"""eV/Å³, root mean square, below which stress says nothing: relaxed structures."""
FOLLOWS, STRANGE = 0.5, 0.3
"""Cosine and rank correlation of pressures above which stress follows, and below which it does
not; both, because pressures of one sign agree in direction without following."""
AT_FACTOR = 0.2
"""Distance to a unit's factor, in natural logarithms, of stress that alone shows a wrong unit."""
FEWEST_SHEARED = 3
"""Structures with shear, below which nothing is said of its order."""
_ORDERS = {"teacher's": [0, 1, 2, 4, 5, 3], "label": [0, 1, 2, 5, 3, 4]}
"""What makes ASE's order of the teacher's components, if that or the label is in VASP's."""


def stress_faults(
    cases: Sequence[DoctorInput], force_cosine: float | None, softness: float | None
) -> list[Finding]:
    """Compare a teacher's stress with the labels, in structures that are periodic all around.

    Args:
        cases: with stress or without.
        force_cosine: how well forces follow, None if not known. Where they do not, nothing is
            claimed of units: any teacher's pressure goes with the density, one way or the other.
        softness: by how much the teacher's energies or forces are larger than the labels, None if
            not known. Stress of a teacher that is soft all over is in no other unit.
    """
    periodic = [case for case in cases if case.structure.pbc.all()]
    kept, teachers, labels = paired(periodic, "stress")
    compared = agreement(teachers, labels, LARGE_STRESS)
    if compared is None:
        return []
    pairs = [(teachers[row], labels[row]) for row in compared.rows]
    volumes = np.array([abs(np.linalg.det(kept[row].structure.cell)) for row in compared.rows])
    follows = compared.cosine, _pressure_correlation(pairs, _measure(compared, volumes))
    if max(np.abs(follows)) < STRANGE:
        return [_unrelated(follows)]
    if force_cosine is not None and abs(force_cosine) < FOLLOWS:
        return []
    if not (min(follows) > FOLLOWS or max(follows) < -FOLLOWS):
        return []
    order = _order(list(zip(teachers, labels, strict=True)), np.sign(compared.cosine))
    is_sound = softness is None or 1 / CLEAR_FACTOR < softness < CLEAR_FACTOR
    return [*_sign(follows, is_sound), *_scale(compared, volumes, softness), *order]


def _measure(compared: Agreement, volumes: Values) -> Values:
    """Return what the teacher's stress must be divided by, up to a factor: 1, V or 1/V, (R,)."""

    def scatter(measure: Values) -> float:
        logarithms = np.log(compared.ratios / measure)
        return float(np.median(np.abs(logarithms - np.median(logarithms))))

    return min((np.ones_like(volumes), volumes, 1 / volumes), key=scatter)


def _pressure_correlation(pairs: Sequence[tuple[Values, Values]], measure: Values) -> float:
    """Return Spearman's correlation of pressures, which does not care for a factor."""
    teacher = np.array([values[:3].mean() for values, _ in pairs]) / measure
    label = np.array([values[:3].mean() for _, values in pairs])
    return rank_correlation(teacher, label)


def _unrelated(follows: tuple[float, float]) -> Finding:
    return Finding(
        "stress-unrelated",
        "warning",
        "stress",
        f"the teacher's stress does not follow the labels (mean cosine {follows[0]:.2f}, rank "
        f"correlation of pressures {follows[1]:.2f}): are ids shuffled, or is the teacher poor?",
    )


def _sign(follows: tuple[float, float], is_sound: bool) -> Iterator[Finding]:
    if max(follows) < 0:
        yield Finding(
            "stress-sign",
            "error" if is_sound else "warning",
            "stress",
            f"the teacher's stress is opposite to the labels (mean cosine {follows[0]:.2f}): one "
            "side has pressure positive, as VASP does, but tension must be; turn its sign",
        )


def _scale(compared: Agreement, volumes: Values, softness: float | None) -> Iterator[Finding]:
    if compared.is_sized:
        return
    factors: dict[str, float | Values] = dict(suspects(STRESS_UNITS, "eV/Å³"))
    factors["the teacher's values are virials (stress times volume)"] = volumes
    factors["the labels are virials (stress times volume)"] = 1 / volumes
    words = likeliest(compared, factors)
    found = f"the teacher's stress is {compared.ratio:.3g} times the labels: "

    # Without energies and forces, only stress at the very factor shows a wrong unit.
    if softness is None:
        is_certain = min(compared.distance(factor) for factor in factors.values()) < AT_FACTOR
        known = "nothing else speaks for it"
    else:
        is_certain = 1 / CLEAR_FACTOR < softness < CLEAR_FACTOR
        known = f"its energies and forces vary {softness:.3g} times as much as the labels"

    if words and is_certain:
        text = f"{found}{words}; convert that side and write it anew"
        yield Finding("stress-unit", "error", "stress", text)
    elif words:
        text = f"{found}perhaps {words}, but {known}: more likely the teacher is poor"
        yield Finding("stress-scale", "warning", "stress", text)
    else:
        yield Finding("stress-scale", "warning", "stress", f"{found}no common unit's factor")


def _order(pairs: Sequence[tuple[Values, Values]], sign: float) -> Iterator[Finding]:
    """Compare shear in every order, in the structures that have most of it."""
    sizes = np.array([np.linalg.norm(one[3:]) * np.linalg.norm(other[3:]) for one, other in pairs])
    rows = np.flatnonzero((sizes > 1e-12) & (sizes > 1e-3 * sizes.max(initial=0.0)))
    rows = rows[sizes[rows] >= np.median(sizes[rows])] if len(rows) else rows
    if len(rows) < FEWEST_SHEARED:
        return

    def follows(order: Sequence[int]) -> float:
        sheared = [(pairs[row][0][order][3:], pairs[row][1][3:]) for row in rows]
        return sign * float(np.mean([cosine(teacher, label) for teacher, label in sheared]))

    plain = follows(range(6))
    best, whose = max((follows(order), whose) for whose, order in _ORDERS.items())
    if plain < 0.6 and best > max(0.8, plain + 0.3):
        yield Finding(
            "stress-order",
            "error",
            "stress",
            f"the {whose} stress has its shear components in VASP's order (xx yy zz xy yz zx), not "
            f"(xx yy zz yz xz xy): so read, their cosine is {best:.2f} instead of {plain:.2f}; put "
            "them in order",
        )
