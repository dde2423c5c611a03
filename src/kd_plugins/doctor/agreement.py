"""Will a teacher help? Its errors beside how much the labels vary, its slope, and advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kd_plugins.doctor.energy_faults import AS_THEY_ARE, EnergyPairs
from kd_plugins.doctor.inputs import DoctorInput, Values, collect_pairs
from kd_plugins.doctor.units import STRESS_UNITS, rms
from kd_plugins.doctor.vector_faults import LARGE_FORCE

_SHOWN = {
    "forces": (1e3, "meV/Å"),
    "energy": (1e3, "meV/atom"),
    "stress": (1 / STRESS_UNITS["GPa"], "GPa"),
}
"""Quantity to the factor and unit in which it is shown."""

# HIPNNs with 5 DFT labels and a teacher's energies and forces on synthetic cells: CHGNet helped
# for copper, 13 % of the labels' forces off with a slope of 0.99 (force error -77 %), and harmed
# for silicon, 32 % off with 0.82 (+24 to +81 %). For molybdenum it is 32 % off with 0.81.
POOR = 0.2
"""Part of the labels' rms force that a teacher may be off; more is a poor teacher's."""
SOFT = 0.9
"""Slope of a teacher's forces on the labels; less is a soft teacher's."""

FEWEST = 2
"""Structures with both values, below which a quantity is left out."""


@dataclass(frozen=True)
class LabelAgreement:
    """How far a teacher is from the labels in one quantity, beside how much the labels vary.

    Args:
        quantity: ``energy``, ``forces`` or ``stress``.
        n_structures: structures with both values.
        rmse: root mean square of teacher minus label: of energies in eV/atom, less what an offset
            of each element explains; of force components in eV/Å, of Voigt components in eV/Å³.
        spread: of the labels in the same unit: root mean square of forces, standard deviation of
            energies (after the fit to the elements) and of stress.
        slope: of the teacher's values on the labels by least squares, through the origin for
            forces and about the means for energies and stress; NaN if the labels do not vary.
        slope_error: standard error of the slope over structures, which are independent while the
            atoms of one structure are not.
    """

    quantity: str
    n_structures: int
    rmse: float
    spread: float
    slope: float
    slope_error: float

    @property
    def share(self) -> float:
        """The error as a part of the labels' spread; inf if they do not vary."""
        return self.rmse / self.spread if self.spread > 0 else np.inf

    @property
    def r_squared(self) -> float:
        """The part of the labels' variance that the teacher predicts; negative if it adds to it."""
        return 1 - self.share**2

    @property
    def text(self) -> str:
        """All numbers on one line.

        >>> LabelAgreement("forces", 60, 0.118, 0.879, 0.99, 0.004).text
        'forces 118 of 879 meV/Å (13 %, R² 0.982, slope 0.990 ± 0.004, 60 structures)'
        """
        factor, unit = _SHOWN[self.quantity]
        numbers = f"{_digits(self.rmse * factor)} of {_digits(self.spread * factor)} {unit}"
        if not self.spread > 0:
            return f"{self.quantity} {numbers} ({self.n_structures} structures)"
        percent = f"{100 * self.share:.{0 if self.share > 0.1 else 1}f} %"
        return (
            f"{self.quantity} {numbers} ({percent}, R² {self.r_squared:.3f}, slope "
            f"{self.slope:.3f} ± {self.slope_error:.3f}, {self.n_structures} structures)"
        )


def measure_deviations(inputs: Sequence[DoctorInput]) -> tuple[LabelAgreement, ...]:
    """Return how far a teacher is from the labels, for each quantity that both have.

    Values that are missing or not finite are left out with their structure. Atoms on which both
    forces are exactly 0 are left out: they are fixed, and no loss compares them.
    """
    found = _forces(inputs), _energies(inputs), _stresses(inputs)
    return tuple(one for one in found if one is not None)


def advise(deviations: Sequence[LabelAgreement]) -> Iterator[str]:
    """Yield what speaks against a teacher; nothing where too little is known.

    Labels with forces that are small everywhere, as those of relaxed structures are, say nothing.
    """
    forces = _telling_forces(deviations)
    if forces is None:
        return

    is_soft = forces.slope < SOFT and forces.slope + 2 * forces.slope_error < 1
    if is_soft:
        yield (
            f"a soft teacher: its forces are {forces.slope:.2f} times the labels (below {SOFT}), "
            "and a student learns that; a trial with a slope of 0.82 harmed. Keep labels in the "
            "training, weigh the teacher little, or take another teacher"
        )
    if forces.share > POOR:
        yield (
            f"a poor teacher: its forces are off by {100 * forces.share:.0f} % of the labels' "
            f"(above {100 * POOR:.0f} %); in trials 13 % helped and 32 % harmed. Compare with a "
            "student of the labels alone before you trust it"
        )


def recommend(deviations: Sequence[LabelAgreement]) -> Iterator[str]:
    """Yield what speaks for a teacher that `advise` has nothing against."""
    forces = _telling_forces(deviations)
    if forces is not None and not list(advise(deviations)):
        yield (
            f"a good teacher: its forces are off by {100 * forces.share:.0f} % of the labels' "
            f"(not above {100 * POOR:.0f} %), with a slope of {forces.slope:.2f}. On copper with 5 "
            "labels, such a teacher's targets took 77 % of the force error away; with many labels "
            "there is less to gain"
        )


def _telling_forces(deviations: Sequence[LabelAgreement]) -> LabelAgreement | None:
    forces = [one for one in deviations if one.quantity == "forces"]
    return forces[0] if forces and forces[0].spread >= LARGE_FORCE else None


def advise_on_atomic_energies(teacher: float | None, student: float | None) -> str:
    """Return whether a student can learn a teacher's atomic energies, and their weight.

    A partition of the energy that depends on atoms which the student's model does not reach cannot
    be represented, and the term is then a drag: with CHGNet (24 Å) and HIPNNs of one interaction
    (5.5 Å), weights w_A (Matin et al. 2025) of 0.1 to 1 changed nothing, 10 cost 3 % and 100 cost
    51 % of the force error.

    Args:
        teacher: its receptive field in Å, the cutoff times the layers; None if it is not known.
        student: the same of the student.

    >>> advise_on_atomic_energies(5.5, 5.5)
    'atomic energies: the student reaches as far (5.5 Å) as its teacher (5.5 Å): w_A 1 at most'
    """
    start, measured = "atomic energies:", "in trials 0.1 to 1 changed nothing and 100 cost 51 %"
    if teacher is None:
        return (
            f"{start} how far the teacher reaches (cutoff times layers) is not known; w_A 1 at "
            f"most, and 0 if it is farther than the student ({measured})"
        )
    if student is None:
        return (
            f"{start} the teacher's depend on atoms up to {teacher:g} Å away (cutoff times "
            f"layers); w_A 1 at most, and 0 for a student that reaches less far ({measured}): "
            "--student-cutoff and --student-layers say which"
        )
    if teacher > student:
        return (
            f"{start} the teacher's depend on atoms up to {teacher:g} Å away (cutoff times "
            f"layers), the student's on {student:g} Å: it cannot represent them. Leave them out, "
            f"w_A 0; {measured}"
        )
    return (
        f"{start} the student reaches as far ({student:g} Å) as its teacher ({teacher:g} Å): w_A 1 "
        "at most"
    )


def _digits(value: float) -> str:
    """Return a number with three digits or more.

    >>> _digits(1567.8), _digits(24.31)
    ('1,568', '24.3')
    """
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _forces(inputs: Sequence[DoctorInput]) -> LabelAgreement | None:
    _, teachers, labels = collect_pairs(inputs, "forces")
    is_free = [
        (teacher != 0).any(axis=1) | (label != 0).any(axis=1)
        for teacher, label in zip(teachers, labels, strict=True)
    ]
    kept = [
        (teacher[rows], label[rows])
        for teacher, label, rows in zip(teachers, labels, is_free, strict=True)
        if rows.any()
    ]
    errors = [teacher - label for teacher, label in kept]
    return _compare("forces", kept, errors)


def _energies(inputs: Sequence[DoctorInput]) -> LabelAgreement | None:
    energies = EnergyPairs.collect(inputs)
    if not energies.inputs:
        return None

    # One number a structure, as an array like those of forces and stress.
    teachers, labels = (side[:, None] for side in energies.spreads(AS_THEY_ARE))
    return _compare("energy", list(zip(teachers, labels, strict=True)), list(teachers - labels))


def _stresses(inputs: Sequence[DoctorInput]) -> LabelAgreement | None:
    periodic = [item for item in inputs if item.structure.pbc.all()]
    _, teachers, labels = collect_pairs(periodic, "stress")
    if not labels:
        return None

    # A pressure that is off everywhere is an error; what the labels share is no spread.
    errors = [teacher - label for teacher, label in zip(teachers, labels, strict=True)]
    means = np.mean(teachers, axis=0), np.mean(labels, axis=0)
    pairs = [(one - means[0], two - means[1]) for one, two in zip(teachers, labels, strict=True)]
    return _compare("stress", pairs, errors)


def _compare(
    quantity: str, pairs: Sequence[tuple[Values, Values]], errors: Sequence[Values]
) -> LabelAgreement | None:
    """Return the numbers of teacher and label of each structure, both without what is no spread."""
    if len(pairs) < FEWEST:
        return None

    labels = np.concatenate([np.ravel(label) for _, label in pairs])
    rmse = rms(np.concatenate([np.ravel(error) for error in errors]))
    squared = float(np.square(labels).sum())
    if not squared > 0:
        return LabelAgreement(quantity, len(pairs), rmse, 0.0, np.nan, np.nan)

    slope = sum(float(np.vdot(teacher, label)) for teacher, label in pairs) / squared

    # Each structure's share of the normal equation's residual: a standard error that is robust to
    # whatever correlates its atoms.
    left = [float(np.vdot(teacher - slope * label, label)) for teacher, label in pairs]
    n = len(pairs)
    error = np.sqrt(n / (n - 1) * np.square(left).sum()) / squared
    return LabelAgreement(quantity, n, rmse, rms(labels), slope, float(error))
