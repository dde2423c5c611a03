"""Faults of a teacher's forces and stress against the labels: unit, sign, virial, order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kd_plugins.doctor.energy_faults import is_sized
from kd_plugins.doctor.inputs import DoctorInput, Finding, Values, collect_pairs, first_ids, share
from kd_plugins.doctor.units import (
    CLEAR_FACTOR,
    FORCE_UNITS,
    STRESS_UNITS,
    Agreement,
    compare_vectors,
    cosine,
    likeliest_hypotheses,
    rank_correlation,
    unit_hypotheses,
)

# CHGNet's error is 0.08 eV/Å on its test set (Deng et al. 2023), EMT's on metals is 0.1 in the
# tests; smaller labels say little of a teacher.
LARGE_FORCE = 0.1
"""eV/Å, root mean square, below which forces are not compared: relaxed structures."""

# Mean cosines in the tests: 0.95 and more of EMT and CHGNet against DFT, 0.08 and less of random
# forces. A teacher between both limits is poor in a way that no unit and no order explains.
FORCES_FOLLOW, FORCES_STRANGE = 0.6, 0.35
"""Mean cosine above which forces follow the labels, and below which they do not."""

# Without energies, a half trained teacher may have any factor; its cosine is not that high, and its
# ratios scatter by more than exp(0.1), 10 %.
NEARLY_ONE, FORCES_AT_FACTOR = 0.98, 0.1
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
    if abs(compared.cosine) < FORCES_STRANGE:
        return [_forces_unrelated(kept, teachers, labels, compared)]
    if abs(compared.cosine) < FORCES_FOLLOW:
        return []

    # Outliers mean little where all forces are wrong.
    scale = [*_forces_sign(compared, energy_slope), *_forces_unit(compared, energy_slope)]
    return scale or list(_forces_outliers(kept, teachers, labels))


def _forces_sign(compared: Agreement, slope: float | None) -> Iterator[Finding]:
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


def _forces_unit(compared: Agreement, slope: float | None) -> Iterator[Finding]:
    factors = unit_hypotheses(FORCE_UNITS, "eV/Å")
    found = f"the teacher's forces are {compared.ratio:.3g} times the labels"

    # A teacher with soft energies has forces that are as soft, in whatever unit.
    softness = abs(slope) if slope is not None else 1.0
    # eV/Bohr (0.53) is no error: forces of CHGNet are 0.4 times the labels of molybdenum.
    clear = {
        words: factor
        for words, factor in factors.items()
        if not 1 / CLEAR_FACTOR < factor < CLEAR_FACTOR
    }
    words = likeliest_hypotheses(compared, clear, softness)
    words_alone = likeliest_hypotheses(compared, factors)

    if not compared.is_sized and words and _is_certain(compared, slope, clear.values()):
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
    return abs(compared.cosine) > NEARLY_ONE and nearest < FORCES_AT_FACTOR


def _differ(compared: Agreement, slope: float, factors: Iterable[float]) -> bool:
    """Return whether forces differ by a unit's factor from how soft the energies are.

    It is meant for eV/Bohr, a factor of 1.9 that softness alone may reach: exp(0.25) = 1.3 to the
    unit, and exp(0.5) = 1.65 away from what the energies suggest.
    """
    distance = min(compared.distance(slope * factor) for factor in factors)
    return distance < 0.25 and compared.distance(slope) > 0.5


def _forces_unrelated(
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


def _forces_outliers(
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


# ----------------------------------------------------------------------------------------------
# Stress

# 0.003 eV/Å³ is 0.5 GPa. CHGNet's error is 0.35 GPa on its test set (Deng et al. 2023), so smaller
# labels say little of a teacher.
LARGE_STRESS = 0.003
"""eV/Å³, root mean square, below which stress is not compared: relaxed structures."""

# Any teacher's pressure goes with the density, one way or the other, so pressures of one sign agree
# in direction without following. Hence cosine *and* rank correlation.
STRESS_FOLLOWS, STRESS_STRANGE = 0.5, 0.3
"""Cosine and rank correlation of pressures above which stress follows, and below which it does
not."""

# exp(0.2) = 1.22; without energies and forces nothing else distinguishes a unit from softness.
STRESS_AT_FACTOR = 0.2
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

    if max(np.abs(follows)) < STRESS_STRANGE:
        return [_stress_unrelated(follows)]
    if force_cosine is not None and abs(force_cosine) < STRESS_FOLLOWS:
        return []
    if not (min(follows) > STRESS_FOLLOWS or max(follows) < -STRESS_FOLLOWS):
        return []

    all_pairs = list(zip(teachers, labels, strict=True))
    return [
        *_stress_sign(follows, is_sound=softness is None or is_sized(softness)),
        *_stress_scale(compared, volumes, softness),
        *_stress_order(all_pairs, np.sign(compared.cosine)),
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


def _stress_unrelated(follows: tuple[float, float]) -> Finding:
    return Finding(
        "stress-unrelated",
        "warning",
        "stress",
        f"the teacher's stress does not follow the labels (mean cosine {follows[0]:.2f}, rank "
        f"correlation of pressures {follows[1]:.2f}): are ids shuffled, or is the teacher poor?",
    )


def _stress_sign(follows: tuple[float, float], *, is_sound: bool) -> Iterator[Finding]:
    if max(follows) < 0:
        yield Finding(
            "stress-sign",
            "error" if is_sound else "warning",
            "stress",
            f"the teacher's stress is opposite to the labels (mean cosine {follows[0]:.2f}): one "
            "side has pressure positive, as VASP does, but tension must be; turn its sign",
        )


def _stress_scale(
    compared: Agreement, volumes: Values, softness: float | None
) -> Iterator[Finding]:
    if compared.is_sized:
        return

    factors: dict[str, float | Values] = dict(unit_hypotheses(STRESS_UNITS, "eV/Å³"))
    factors["the teacher's values are virials (stress times volume)"] = volumes
    factors["the labels are virials (stress times volume)"] = 1 / volumes
    words = likeliest_hypotheses(compared, factors)
    found = f"the teacher's stress is {compared.ratio:.3g} times the labels: "

    # Without energies and forces, only stress at the very factor shows a wrong unit.
    if softness is None:
        is_certain = (
            min(compared.distance(factor) for factor in factors.values()) < STRESS_AT_FACTOR
        )
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


def _stress_order(pairs: Sequence[tuple[Values, Values]], sign: float) -> Iterator[Finding]:
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
