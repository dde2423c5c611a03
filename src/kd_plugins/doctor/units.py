"""Units that energies, forces and stresses are mistakenly given in, as factors to ours."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_BOHR = 0.529177210903
_HARTREE = 27.211386245988
_KCAL = 1 / 23.060547830619
_KJ = 1 / 96.485332123310
_GPA = 1 / 160.2176634

ENERGY_UNITS: Mapping[str, float] = MappingProxyType(
    {"kcal/mol": _KCAL, "kJ/mol": _KJ, "Hartree": _HARTREE, "Rydberg": _HARTREE / 2}
)
"""Name to eV (CODATA 2018)."""

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
