"""The energy-scale doctor: finds wrong teacher targets before they cost a training run."""

from __future__ import annotations

from collections.abc import Sequence

from kd_plugins.core.cases import Case, Finding
from kd_plugins.core.energies import Energies
from kd_plugins.core.energy_faults import energy_faults
from kd_plugins.core.force_faults import force_agreement, force_faults
from kd_plugins.core.stress_faults import stress_faults
from kd_plugins.core.structure_faults import structure_faults
from kd_plugins.core.value_faults import value_faults


def examine(cases: Sequence[Case]) -> list[Finding]:
    """Return what is wrong with a sample of structures and their values, errors first.

    A unit or a sign is called wrong only if that explains the labels, most of their spread and far
    better than the values as they are; a poor or even random teacher gets a warning at most. Where
    there is too little to tell, such as forces of relaxed crystals, nothing is said.

    >>> examine([])
    []
    """
    energies, forces = Energies.of(cases), force_agreement(cases)
    force_cosine = forces.cosine if forces else None
    of_energies = energy_faults(energies, force_cosine)
    trusted = energies.cases and all(finding.severity != "error" for finding in of_energies)
    found = [
        *value_faults(cases),
        *structure_faults(cases),
        *of_energies,
        *force_faults(cases, forces, energies.slope if trusted else None),
        *stress_faults(cases, force_cosine),
    ]
    return sorted(found, key=lambda finding: finding.severity != "error")
