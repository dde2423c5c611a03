"""The one check before any host trains: the doctor on a sample of labels and teacher targets."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kd_plugins.doctor.examine import examine, split_allowed
from kd_plugins.doctor.inputs import DoctorInput, Finding

logger = logging.getLogger(__name__)

WRONG_TARGETS = "the teacher's targets cannot be right:"
"""First line of the error in every host."""

# Small data sets are common in first trials, and that a check was left out helps nobody there.
_NEVER_LOGGED = "energy-too-few"


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
    """

    inputs: Sequence[DoctorInput]
    quantities: Collection[str] | None = None
    heading: str = WRONG_TARGETS
    subject: str = "teacher and labels"
    found_by_host: Sequence[Finding] = ()
    ignored: Collection[str] = ()
    log_level: int = logging.WARNING


def preflight(
    parts: Iterable[PreflightPart], allow: Sequence[str], error: type[Exception] = ValueError
) -> None:
    """Refuse labels and targets that are certainly wrong, all at once; log all else.

    A unit, a sign or an order is certain only with evidence, see `kd_plugins.doctor.examine`: a
    poor teacher passes. The values are those that the host has already read; nothing is read here.

    Args:
        parts: samples to examine.
        allow: names of errors that are logged and do not end the run, from `check_allow`.
        error: type of the host's own error.

    Raises:
        Exception: an ``error`` with every finding that ends the run, under the heading of its
            part.
    """
    lines = [line for part in parts for line in _examine_part(part, allow)]
    if lines:
        raise error("\n  ".join(lines))


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
