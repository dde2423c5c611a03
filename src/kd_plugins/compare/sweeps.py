"""Sweeps: every arm at every point of a grid of settings, but for the settings of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kd_plugins.numbers import shown

Settings = Mapping[str, Any]
Sweep = Mapping[str, Mapping[str, Settings]]
"""Axis to the label of a point to the settings that it changes, by dotted key."""

LABEL = re.compile(r"[A-Za-z0-9_.+-]+")
"""Labels are part of the name of a folder."""
LONGEST_AXIS = 1000
"""Points of one axis."""


@dataclass(frozen=True)
class SweptArm:
    """One arm at one point.

    Args:
        arm: its name in the experiment.
        changes: its settings and those of the point, by dotted key.
        point: axis to label; empty for an arm that no axis changes.
    """

    arm: str
    changes: Settings
    point: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of its folder: ``student-0.5-1`` for the labels 0.5 and 1.

        >>> SweptArm("student", {}, {"weight": "0.5", "size": "tiny"}).name
        'student-0.5-tiny'
        """
        return "-".join([self.arm, *self.point.values()])


def read_sweep(raw: object) -> Sweep:
    """Read ``sweep``: a key with a list of values, or a name with labels and their settings.

    Raises:
        ValueError: naming the axis and what is wrong.

    >>> read_sweep({"loss.weight": [1, 10]})
    {'loss.weight': {'1': {'loss.weight': 1}, '10': {'loss.weight': 10}}}
    >>> read_sweep({"size": {"tiny": {"model.width": 12}}})
    {'size': {'tiny': {'model.width': 12}}}
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected names with values, got {shown(raw)}")

    sweep = {}
    for axis, points in raw.items():
        if not isinstance(axis, str) or not axis:
            raise ValueError(f"expected the name of a setting, got {shown(axis)}")
        if not isinstance(points, (list, Mapping)) or not 1 <= len(points) <= LONGEST_AXIS:
            raise ValueError(
                f"{axis}: expected a list of values, or labels with settings, got {shown(points)}"
            )
        is_list = isinstance(points, list)
        sweep[axis] = _listed(axis, points) if is_list else _labelled(axis, points)
    return sweep


def _listed(axis: str, values: list[Any]) -> dict[str, Settings]:
    points: dict[str, Settings] = {}
    for value in values:
        label = str(value).lower() if value is None or isinstance(value, bool) else str(value)
        if isinstance(value, (list, Mapping)) or not LABEL.fullmatch(label):
            raise ValueError(
                f"{axis}: {shown(value)} is no name of a folder; give it a label: {{label: "
                f"{{{axis}: {shown(value)}}}}}"
            )
        if label in points:
            raise ValueError(f"{axis}: {label} stands there twice")
        points[label] = {axis: value}
    return points


def _labelled(axis: str, points: Mapping[Any, Any]) -> dict[str, Settings]:
    labelled = {}
    for label, changes in points.items():
        if not LABEL.fullmatch(str(label)):
            raise ValueError(f"{axis}: {shown(label)}: a label has letters, digits and . _ + -")
        if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
            raise ValueError(
                f"{axis}.{label}: expected settings by dotted key, got {shown(changes)}"
            )
        if str(label) in labelled:
            raise ValueError(f"{axis}: {label} stands there twice")
        labelled[str(label)] = changes
    return labelled


def expand(arms: Mapping[str, Settings], sweep: Sweep) -> dict[str, SweptArm]:
    """Return every arm at every point, by its name.

    An arm that sets a key of an axis itself is not swept over that axis.

    Raises:
        ValueError: for two of one name.

    >>> arms = {"student": {}, "teacher": {"width": 128}}
    >>> list(expand(arms, read_sweep({"width": [12, 24]})))
    ['student-12', 'student-24', 'teacher']
    """
    expanded: dict[str, SweptArm] = {}
    for name, changes in arms.items():
        for one in _points_of(name, changes, sweep):
            if one.name in expanded:
                raise ValueError(
                    f"sweep: two arms are called {one.name!r}; rename an arm or a label"
                )
            expanded[one.name] = one
    return expanded


def _points_of(name: str, changes: Settings, sweep: Sweep) -> Iterator[SweptArm]:
    axes = [axis for axis, points in sweep.items() if not _is_set(changes, points)]
    for labels in itertools.product(*(sweep[axis] for axis in axes)):
        point = dict(zip(axes, labels, strict=True))
        swept: dict[str, Any] = {}
        for axis, label in point.items():
            swept |= sweep[axis][label]
        yield SweptArm(name, {**changes, **swept}, point)


def _is_set(changes: Settings, points: Mapping[str, Settings]) -> bool:
    """Return whether an arm sets a key of the points, a part of it, or what contains it."""
    keys = {key for settings in points.values() for key in settings}
    return any(
        f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
        for one in changes
        for other in keys
    )


def controls(expanded: Mapping[str, SweptArm], control: str) -> dict[str, str]:
    """Return the control of each arm that has one: the control at the arm's own point.

    A control that is not swept is the control of all.
    """
    candidates = {name: one for name, one in expanded.items() if one.arm == control}
    found = {}
    for name, one in expanded.items():
        if one.arm == control:
            continue
        matching = [
            other
            for other, candidate in candidates.items()
            if candidate.point.items() <= one.point.items()
        ]
        if matching:
            # Several cannot match: they have the same axes, and one point of each.
            found[name] = matching[0]
    return found
