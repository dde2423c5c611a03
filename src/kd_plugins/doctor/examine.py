"""All checks of the doctor over one set of structures, and errors overruled by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from kd_plugins.doctor.energy_faults import EnergyPairs, energy_faults
from kd_plugins.doctor.force_faults import compare_forces, force_faults
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
"""Names of all errors, those of `kd_plugins.doctor.diagnosis` included; each can be overruled."""


def examine(inputs: Sequence[DoctorInput]) -> list[Finding]:
    """Return what is wrong with a sample of structures and their values, errors first.

    >>> examine([])
    []
    """
    found = [*value_faults(inputs), *structure_faults(inputs), *compare_with_labels(inputs)]
    return sorted(found, key=lambda finding: finding.severity != "error")


def compare_with_labels(inputs: Sequence[DoctorInput]) -> list[Finding]:
    """Return what is wrong with a teacher's energies, forces and stress beside the labels.

    A unit or sign is called wrong only if that explains most of the labels' spread, far better than
    the values as they are, and if there is a second piece of evidence: the zero of energies, or
    forces that fit the energies only then. A poor, hardly trained or random teacher gets a warning
    at most. Where too little is known, as of the forces of relaxed crystals, nothing is reported.
    """
    energies, forces = EnergyPairs.collect(inputs), compare_forces(inputs)
    energy_findings, slope = energy_faults(energies, forces)

    # How soft the teacher is: by energies where they follow the labels, else by forces.
    softness = forces.ratio if forces else None
    if slope is not None:
        softness = abs(slope)

    return [
        *energy_findings,
        *force_faults(inputs, forces, slope),
        *stress_faults(inputs, forces.cosine if forces else None, softness),
    ]


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
        findings: result of `examine`; warnings among them are left out.
        allow: result of `check_allow`.

    Returns:
        The errors that remain, and the overruled ones as warnings that say so, to be logged.
    """
    allowed = {name.replace("-", "_") for name in allow}
    errors = [finding for finding in findings if finding.severity == "error"]
    refused = [finding for finding in errors if finding.name not in allowed]
    overruled = [_as_warning(finding) for finding in errors if finding.name in allowed]
    return refused, overruled


def _as_warning(finding: Finding) -> Finding:
    text = f"{finding.text} (overruled by allow: [{finding.name}])"
    return replace(finding, severity="warning", text=text)
