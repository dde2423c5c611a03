"""Where costs were measured: device and precision, and words where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kd_plugins.report.results import Cell, ExperimentResults

COSTS = ("microseconds_per_atom", "bytes_per_atom", "nanoseconds_per_day")
"""Metrics that depend on the place."""


@dataclass(frozen=True)
class Place:
    """Devices and precisions, one each unless the seeds of an arm were measured apart.

    Args:
        devices: as torch names them, without the number of the first GPU.
        dtypes: of weights, such as ``float32``; none where they are not known.
    """

    devices: frozenset[str]
    dtypes: frozenset[str]

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Place:
        """Return the place of cells; those of version 0.1.0 do not name it."""
        known = list(cells)
        devices = {one.device.replace(":0", "") for one in known if one.device}
        return cls(frozenset(devices), frozenset(one.dtype for one in known if one.dtype))

    def __str__(self) -> str:
        return ", ".join(" and ".join(sorted(one)) for one in (self.devices, self.dtypes) if one)


def places(experiment: ExperimentResults) -> dict[str, Place]:
    """Return each arm, and ``teacher``, with the place where its costs were measured."""
    found = {
        arm: Place.of(
            cell for run in experiment.of(arm).values() for cell in run.speed.get("student", ())
        )
        for arm in experiment.arms
    }
    runs = experiment.runs.values()
    found["teacher"] = Place.of(cell for run in runs for cell in run.speed.get("teacher", ()))
    return {name: place for name, place in found.items() if place.devices or place.dtypes}


def differ(found: Iterable[Place]) -> bool:
    """Return whether devices or precisions differ, as far as they are known.

    >>> cpu, gpu = (Place(frozenset({name}), frozenset()) for name in ("cpu", "cuda"))
    >>> differ([cpu, gpu]), differ([cpu, Place(frozenset({"cpu"}), frozenset({"float32"}))])
    (True, False)
    """
    devices, dtypes = frozenset(), frozenset()
    for one in found:
        devices, dtypes = devices | one.devices, dtypes | one.dtypes
    return len(devices) > 1 or len(dtypes) > 1


def caption(found: Mapping[str, Place]) -> str:
    """Return what a figure with costs says of their places; empty if they do not differ."""
    if not differ(found.values()):
        return ""
    names: dict[str, list[str]] = {}
    for name, place in found.items():
        names.setdefault(str(place), []).append(name)
    words = "; ".join(f"{', '.join(several)} on {place}" for place, several in names.items())
    return f" Measured on different devices or in different precisions: {words}."


def difference_in_words(found: Mapping[str, Place], one: str, other: str) -> str:
    """Return where the costs of two were measured; empty unless both are known and differ."""
    if one not in found or other not in found or not differ([found[one], found[other]]):
        return ""
    return f"costs of {one} are of {found[one]}, those of {other} of {found[other]}"
