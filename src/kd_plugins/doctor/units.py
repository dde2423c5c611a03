"""Units that values are mistakenly given in, and which of them explains a wrong size."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kd_plugins.doctor.agreement import Agreement
from kd_plugins.doctor.inputs import Values

# CODATA 2018, as eV and Å.
_BOHR = 0.529177210903
_HARTREE = 27.211386245988
_KCAL = 1 / 23.060547830619
_KJ = 1 / 96.485332123310
_GPA = 1 / 160.2176634

ENERGY_UNITS: Mapping[str, float] = MappingProxyType(
    {"kcal/mol": _KCAL, "kJ/mol": _KJ, "Hartree": _HARTREE, "Rydberg": _HARTREE / 2}
)
"""Name to eV."""

FORCE_UNITS: Mapping[str, float] = MappingProxyType(
    {
        "kcal/mol/Å": _KCAL,
        "kJ/mol/Å": _KJ,
        "kJ/mol/nm": _KJ / 10,
        "Hartree/Bohr": _HARTREE / _BOHR,
        "Hartree/Å": _HARTREE,
        "Rydberg/Bohr": _HARTREE / 2 / _BOHR,
        "eV/Bohr": 1 / _BOHR,
    }
)
"""Name to eV/Å."""

STRESS_UNITS: Mapping[str, float] = MappingProxyType(
    {"GPa": _GPA, "kBar": _GPA / 10, "Hartree/Bohr³": _HARTREE / _BOHR**3}
)
"""Name to eV/Å³."""

# exp(0.65) = 1.9. The forces of real teachers are softer or harder than the labels: those of CHGNet
# on molybdenum by 30 % (tests/doctor/test_units.py); a unit's factor must be found all the
# same.
NEAR = 0.65
"""How far a ratio may be from a unit's factor, in natural logarithms, for that to explain it."""

# Teachers in kcal/mol/Å and labels in Rydberg/Bohr or Hartree/Å give ratios of 23.1, 25.7 and 27.2,
# within 0.17 of each other: softness may have chosen between these, so all are named. Hartree/Bohr
# (51.4) is 0.64 away and is not.
ALIKE = 0.3
"""How much farther than the best another unit may be, in natural logarithms, and still be named."""


def unit_hypotheses(units: Mapping[str, float], ours: str) -> dict[str, float]:
    """Return words to the factor, teacher to label, that would be found if they were true.

    Args:
        units: name to its size in our unit.
        ours: our unit, for the words.
    """
    teacher = {f"the teacher's values are in {unit}": 1 / size for unit, size in units.items()}
    labels = {f"the labels are in {unit}": size for unit, size in units.items()}
    return {f"{what}, not {ours}": factor for what, factor in {**teacher, **labels}.items()}


def likeliest_hypotheses(
    compared: Agreement, factors: Mapping[str, float | Values], softness: float = 1.0
) -> str | None:
    """Return in words what explains the ratios best, and nearly as well; None if nothing does.

    Args:
        compared: two sets of vectors.
        factors: words to the factor, teacher to label, that would then be found; one number, or
            one for each compared structure.
        softness: by how much the teacher is already known to be soft or hard.
    """
    distances = {words: compared.distance(softness * value) for words, value in factors.items()}
    best = min(distances.values())
    if best > NEAR:
        return None

    nearest = sorted(distances, key=distances.__getitem__)[:3]
    return "; or ".join(words for words in nearest if distances[words] < best + ALIKE)
