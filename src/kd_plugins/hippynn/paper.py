"""Loss weights of paper 003 (Matin et al., Digital Discovery 2025, DOI 10.1039/d5dd00085h), A.1.

They are for total energies in eV, forces in eV/Å and atomic energies in eV.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kd_plugins.core.schedules import Piecewise, Schedule

CONTROL: Mapping[str, float | Schedule] = MappingProxyType(
    {"energy": 1.0, "forces": 10.0, "l2": 1e-6, "hierarchicality": 0.01}
)
"""Teachers, and students that have none. Their weight of forces is a third of `STUDENT`'s, so a
fair control has ``{**CONTROL, "forces": 30.0}`` as well."""

STUDENT: Mapping[str, float | Schedule] = MappingProxyType(
    {"energy": 1.0, "forces": 30.0, "atomic_energies": 100.0, "l2": 1e-6, "hierarchicality": 0.01}
)
"""Students."""

_EPOCHS = (0, 199, 249, 299, 349, 399)
BORN_AGAIN: Mapping[str, float | Schedule] = MappingProxyType(
    {
        "energy": Piecewise(_EPOCHS, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        "forces": Piecewise(_EPOCHS, (75.0, 63.0, 51.0, 39.0, 27.0, 15.0)),
        "atomic_energies": Piecewise(_EPOCHS, (200.0, 160.0, 120.0, 80.0, 40.0, 0.0)),
        "l2": 1e-6,
        "hierarchicality": 0.01,
    }
)
"""Students of their teacher's size, Table 1. The paper counts epochs from 1, hippynn from 0."""
