"""All checks of the doctor over one set of structures, and the check before any host trains.

Errors can be overruled by name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from kd_plugins.doctor.agreement import advise, measure_deviations
from kd_plugins.doctor.data_faults import structure_faults, value_faults
from kd_plugins.doctor.energy_faults import EnergyPairs, energy_faults
from kd_plugins.doctor.inputs import DoctorInput, Finding
from kd_plugins.doctor.vector_faults import compare_forces, force_faults, stress_faults
from kd_plugins.names import suggestion

logger = logging.getLogger(__name__)

WRONG_TARGETS = "the teacher's targets cannot be right:"
"""First line of the error in every host."""

# Small data sets are common in first trials, and that a check was left out helps nobody there.
_NEVER_LOGGED = "energy-too-few"

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


# ----------------------------------------------------------------------------------------------
# Before a host trains


@dataclass(frozen=True)
class PreflightPart:
    """A sample of structures to examine, and which findings end the run.

    Args:
        inputs: the sample, with two sets of values for each structure.
        quantities: only errors of these end the run, because the loss compares them; None for all
            errors, those of structures included.
        heading: first line of the error.
        subject: what is compared, for the log.
        found_by_host: further errors, which only this host can find.
        ignored: codes of findings that this host has already accepted.
        log_level: of findings that do not end the run.
        is_measured: whether to log how far the teacher is from the labels, and advice; for parts
            that hold these, not a student's predictions.
    """

    inputs: Sequence[DoctorInput]
    quantities: Collection[str] | None = None
    heading: str = WRONG_TARGETS
    subject: str = "teacher and labels"
    found_by_host: Sequence[Finding] = ()
    ignored: Collection[str] = ()
    log_level: int = logging.WARNING
    is_measured: bool = False


def preflight(
    parts: Iterable[PreflightPart], allow: Sequence[str], error: type[Exception] = ValueError
) -> None:
    """Refuse labels and targets that are certainly wrong, all at once; log all else.

    A unit, a sign or an order is certain only with evidence, see `examine`: a poor teacher passes.
    The values are those that the host has already read; nothing is read here.

    Args:
        parts: samples to examine.
        allow: names of errors that are logged and do not end the run, from `check_allow`.
        error: type of the host's own error.

    Raises:
        Exception: an ``error`` with every finding that ends the run, under the heading of its
            part.
    """
    parts = list(parts)
    lines = [line for part in parts for line in _examine_part(part, allow)]
    if lines:
        raise error("\n  ".join(lines))

    for part in parts:
        if part.is_measured:
            _log_deviations(part)


def _log_deviations(part: PreflightPart) -> None:
    """Log how far the teacher is from the labels, of how much these vary, and advice."""
    deviations = measure_deviations(part.inputs)
    if deviations:
        texts = "; ".join(deviation.text for deviation in deviations)
        logger.info(f"{part.subject} are apart by, of how much the labels vary: {texts}")
    for text in advise(deviations):
        logger.warning(f"{part.subject}: {text}")


def evenly_spaced(number: int, size: int) -> list[int]:
    """Return places from the first to the last of a data set, at most so many.

    Integers only: float32 cannot count the structures of the largest data sets.

    >>> evenly_spaced(3, 100)
    [0, 49, 99]
    >>> evenly_spaced(3, 2)
    [0, 1]
    """
    n_chosen = min(number, size)
    return [index * (size - 1) // max(n_chosen - 1, 1) for index in range(n_chosen)]


def _examine_part(part: PreflightPart, allow: Sequence[str]) -> list[str]:
    """Return the lines of an error, heading first; none if nothing ends the run."""
    found = [one for one in examine(part.inputs) if one.code not in part.ignored]
    concern = [one for one in found if _ends_run(one, part.quantities)]
    refused, overruled = split_allowed([*concern, *part.found_by_host], allow)

    for finding in found:
        if finding not in concern and finding.code != _NEVER_LOGGED:
            logger.log(part.log_level, f"{part.subject}: {finding.text}")
    for finding in overruled:
        logger.warning(f"{part.subject}: {finding.text}")

    return [part.heading, *(finding.message for finding in refused)] if refused else []


def _ends_run(finding: Finding, quantities: Collection[str] | None) -> bool:
    is_compared = quantities is None or finding.quantity in quantities
    return finding.severity == "error" and is_compared
