"""The energy-scale doctor: finds wrong teacher targets before they cost a training run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from kd_plugins.doctor.energies import Energies
from kd_plugins.doctor.energy_faults import energy_faults
from kd_plugins.doctor.force_faults import force_agreement, force_faults
from kd_plugins.doctor.inputs import DoctorInput, Finding
from kd_plugins.doctor.stress_faults import stress_faults
from kd_plugins.doctor.structure_faults import structure_faults
from kd_plugins.doctor.value_faults import value_faults
from kd_plugins.names import suggestion

ERRORS = frozenset(
    {
        "damaged",
        "duplicate_contradiction",
        "energy_per_atom",
        "energy_sign",
        "energy_unit",
        "energy_unrelated",
        "forces_not_derived",
        "forces_order",
        "forces_sign",
        "forces_unit",
        "id_twice",
        "ids_disjoint",
        "ids_shuffled",
        "missing",
        "not_finite",
        "other_teacher",
        "shape",
        "shuffled",
        "stress_not_derived",
        "stress_order",
        "stress_sign",
        "stress_unit",
        "structure_edited",
        "sum",
        "too_close",
        "zeros",
    }
)
"""Names of all errors, `kd_plugins.doctor.diagnosis`'s too, each of which can be overruled."""


def examine(cases: Sequence[DoctorInput]) -> list[Finding]:
    """Return what is wrong with a sample of structures and their values, errors first.

    A unit or a sign is called wrong only if that explains the labels, most of their spread and far
    better than the values as they are, and if something else speaks for it: the zero of energies,
    or forces and energies that belong to one teacher only then. A poor, hardly trained or even
    random teacher gets a warning at most. Where there is too little to tell, such as forces of
    relaxed crystals, nothing is said.

    >>> examine([])
    []
    """
    energies, forces = Energies.of(cases), force_agreement(cases)
    force_cosine = forces.cosine if forces else None
    of_energies, slope = energy_faults(energies, forces)
    softness = abs(slope) if slope is not None else forces.ratio if forces else None
    found = [
        *value_faults(cases),
        *structure_faults(cases),
        *of_energies,
        *force_faults(cases, forces, slope),
        *stress_faults(cases, force_cosine, softness),
    ]
    return sorted(found, key=lambda finding: finding.severity != "error")


def check_allow(allow: object, own: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of errors to overrule, as ``allow`` of a host or command gives them.

    Args:
        allow: a list of names; ``energy-unit`` counts as ``energy_unit``.
        own: names of errors that only the caller has, beside the doctor's.

    Raises:
        ValueError: for anything but a list, and for a name that no error has.

    >>> check_allow(["energy-unit"])
    ('energy_unit',)
    >>> check_allow(["same_validation"], own=["same_validation"])
    ('same_validation',)
    """
    if isinstance(allow, str) or not isinstance(allow, Iterable):
        raise ValueError(f"allow: expected a list of names, such as [energy_unit], got {allow!r}")
    names = [str(name).replace("-", "_") for name in allow]
    known = {*ERRORS, *own}
    for name in names:
        if name not in known:
            raise ValueError(f"allow: no error is called {name!r}{suggestion(name, known)}")
    return tuple(dict.fromkeys(names))


def split_allowed(
    findings: Iterable[Finding], allow: Iterable[str]
) -> tuple[list[Finding], list[Finding]]:
    """Divide errors into those that stop a run and those that the user overruled by name.

    Args:
        findings: of `examine`; warnings among them are left out.
        allow: what `check_allow` returns.

    Returns:
        The errors that remain, and the overruled ones as warnings that say so, to be logged.
    """
    allowed = {name.replace("-", "_") for name in allow}
    errors = [finding for finding in findings if finding.severity == "error"]
    refused = [finding for finding in errors if finding.name not in allowed]
    overruled = [_overruled(finding) for finding in errors if finding.name in allowed]
    return refused, overruled


def _overruled(finding: Finding) -> Finding:
    text = f"{finding.text} (overruled by allow: [{finding.name}])"
    return replace(finding, severity="warning", text=text)
