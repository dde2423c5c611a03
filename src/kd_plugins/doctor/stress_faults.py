"""Faults of a teacher's stress against the labels: unit, sign, virial, order of shear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kd_plugins.doctor.energy_faults import is_sized
from kd_plugins.doctor.inputs import DoctorInput, Finding, Values, collect_pairs
from kd_plugins.doctor.units import (
    STRESS_UNITS,
    Agreement,
    compare_vectors,
    cosine,
    likeliest_hypotheses,
    rank_correlation,
    unit_hypotheses,
)

# 0.003 eV/Å³ is 0.5 GPa. CHGNet's error is 0.35 GPa on its test set (Deng et al. 2023), so smaller
# labels say little of a teacher.
LARGE_STRESS = 0.003
"""eV/Å³, root mean square, below which stress is not compared: relaxed structures."""

# Any teacher's pressure goes with the density, one way or the other, so pressures of one sign agree
# in direction without following. Hence cosine *and* rank correlation.
FOLLOWS, STRANGE = 0.5, 0.3
"""Cosine and rank correlation of pressures above which stress follows, and below which it does
not."""

# exp(0.2) = 1.22; without energies and forces nothing else distinguishes a unit from softness.
AT_FACTOR = 0.2
"""Distance to a unit's factor, in natural logarithms, at which stress alone shows a wrong unit."""

# With one or two, a poor teacher's shear may fit VASP's order better by chance.
FEWEST_SHEARED = 3
"""Structures with shear, below which its order is not examined."""

_VASP_ORDERS = {"teacher's": [0, 1, 2, 4, 5, 3], "label": [0, 1, 2, 5, 3, 4]}
"""What puts the teacher's components in ASE's order, if that side or the label is in VASP's."""


def stress_faults(
    inputs: Sequence[DoctorInput], force_cosine: float | None, softness: float | None
) -> list[Finding]:
    """Compare a teacher's stress with the labels, in structures that are periodic all around.

    Args:
        inputs: with stress or without.
        force_cosine: how well forces follow the labels, None if that is not known. Where they do
            not, no unit is reported: any teacher's pressure goes with the density, one way or the
            other.
        softness: how many times larger the teacher's energies or forces are than the labels, None
            if that is not known. The stress of a teacher that is soft all over is in no other unit.
    """
    periodic = [item for item in inputs if item.structure.pbc.all()]
    kept, teachers, labels = collect_pairs(periodic, "stress")
    compared = compare_vectors(teachers, labels, LARGE_STRESS)
    if compared is None:
        return []

    pairs = [(teachers[row], labels[row]) for row in compared.rows]
    volumes = np.array([abs(np.linalg.det(kept[row].structure.cell)) for row in compared.rows])
    divisor = _best_divisor(compared, volumes)
    follows = compared.cosine, _pressure_correlation(pairs, divisor)

    if max(np.abs(follows)) < STRANGE:
        return [_unrelated(follows)]
    if force_cosine is not None and abs(force_cosine) < FOLLOWS:
        return []
    if not (min(follows) > FOLLOWS or max(follows) < -FOLLOWS):
        return []

    all_pairs = list(zip(teachers, labels, strict=True))
    return [
        *_sign(follows, is_sound=softness is None or is_sized(softness)),
        *_scale(compared, volumes, softness),
        *_order(all_pairs, np.sign(compared.cosine)),
    ]


def _best_divisor(compared: Agreement, volumes: Values) -> Values:
    """Return what the teacher's stress must be divided by, up to a factor: 1, V or 1/V, (R,).

    Virials are stresses times volume. The right one of the three leaves the least scatter of
    ratios; with a wrong one, large cells alone would decide the order of pressures.
    """

    def scatter(divisor: Values) -> float:
        logarithms = np.log(compared.ratios / divisor)
        return float(np.median(np.abs(logarithms - np.median(logarithms))))

    return min((np.ones_like(volumes), volumes, 1 / volumes), key=scatter)


def _pressure_correlation(pairs: Sequence[tuple[Values, Values]], divisor: Values) -> float:
    """Return Spearman's correlation of pressures, which no constant factor changes."""
    teacher = np.array([values[:3].mean() for values, _ in pairs]) / divisor
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


def _sign(follows: tuple[float, float], *, is_sound: bool) -> Iterator[Finding]:
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

    factors: dict[str, float | Values] = dict(unit_hypotheses(STRESS_UNITS, "eV/Å³"))
    factors["the teacher's values are virials (stress times volume)"] = volumes
    factors["the labels are virials (stress times volume)"] = 1 / volumes
    words = likeliest_hypotheses(compared, factors)
    found = f"the teacher's stress is {compared.ratio:.3g} times the labels: "

    # Without energies and forces, only stress at the very factor shows a wrong unit.
    if softness is None:
        is_certain = min(compared.distance(factor) for factor in factors.values()) < AT_FACTOR
        evidence = "nothing else supports it"
    else:
        is_certain = is_sized(softness)
        evidence = f"its energies and forces vary {softness:.3g} times as much as the labels"

    if words and is_certain:
        text = f"{found}{words}; convert that side and write it anew"
        yield Finding("stress-unit", "error", "stress", text)
    elif words:
        text = f"{found}perhaps {words}, but {evidence}: more likely the teacher is poor"
        yield Finding("stress-scale", "warning", "stress", text)
    else:
        yield Finding("stress-scale", "warning", "stress", f"{found}no common unit's factor")


def _order(pairs: Sequence[tuple[Values, Values]], sign: float) -> Iterator[Finding]:
    """Compare shear in ASE's and in VASP's order, in the structures that have most of it."""
    sizes = np.array([np.linalg.norm(one[3:]) * np.linalg.norm(other[3:]) for one, other in pairs])

    # Cubic and orthorhombic cells have no shear but rounding, in whatever order.
    rows = np.flatnonzero((sizes > 1e-12) & (sizes > 1e-3 * sizes.max(initial=0.0)))
    if len(rows):
        rows = rows[sizes[rows] >= np.median(sizes[rows])]
    if len(rows) < FEWEST_SHEARED:
        return

    def follows(order: Sequence[int]) -> float:
        sheared = [(pairs[row][0][order][3:], pairs[row][1][3:]) for row in rows]
        return sign * float(np.mean([cosine(teacher, label) for teacher, label in sheared]))

    as_it_is = follows(range(6))
    best, side = max((follows(order), side) for side, order in _VASP_ORDERS.items())

    # Both limits: a good teacher's shear follows in its own order, and a poor one's in none.
    if as_it_is < 0.6 and best > max(0.8, as_it_is + 0.3):
        yield Finding(
            "stress-order",
            "error",
            "stress",
            f"the {side} stress has its shear components in VASP's order (xx yy zz xy yz zx), not "
            f"(xx yy zz yz xz xy): so read, their cosine is {best:.2f} instead of {as_it_is:.2f}; "
            "put them in order",
        )
