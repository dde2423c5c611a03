"""Whose measurements a folder holds, of what, and what may be added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_plugins.config import read_config
from kd_plugins.core.files import file_hash, read_json, write_json
from kd_plugins.evaluate.inputs import check_inputs
from kd_plugins.evaluate.settings import Measure

PARTS = {"structures": ("structures", "ids"), "dynamics": ("dynamics",), "crystals": ("crystals",)}
"""What may be measured one after another, and its settings."""


def claimed(folder: Path, fingerprint: str, settings: Measure) -> Measure:
    """Note that a folder is of a potential, and return all that is measured in it.

    Structures, dynamics or crystals that were not measured before are added to those that were.

    Args:
        folder: of the measurements.
        fingerprint: of the potential.
        settings: what is to be measured.

    Raises:
        ValueError: if the folder holds another potential, measurements with other settings, or of
            a file that was changed since; and for what `check_inputs` refuses.
    """
    path = folder / "measured.json"
    held = read_json(path) if path.is_file() else {}
    if held.get("fingerprint", fingerprint) != fingerprint:
        raise _taken(folder, "measurements of another potential")
    ours = json.loads(json.dumps(asdict(settings)))
    joined = _joined(folder, held.get("settings", {}), ours)
    measure = read_config(Measure, joined, str(path))
    check_inputs(measure)
    files = {name: file_hash(Path(name)) for name in measure.files}
    for name, content in held.get("files", {}).items():
        if files[name] != content:
            raise _taken(folder, f"measurements of {name} as it was before it was changed")
    write_json(path, {"fingerprint": fingerprint, "settings": joined, "files": files})
    return measure


def _joined(folder: Path, held: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all parts, of both."""
    joined = dict(ours)
    for part, names in PARTS.items():
        if not held.get(part):
            continue
        if ours[part] and (said := _difference(held, ours, names)):
            raise _taken(folder, f"measurements with other settings, {said}")
        joined |= {name: held[name] for name in names}
    return joined


def _difference(held: Mapping[str, Any], ours: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first setting that differs, with both values.

    >>> _difference({"dynamics": {"steps": 1}}, {"dynamics": {"steps": 2}}, ("dynamics",))
    'dynamics: steps: 1 there, 2 here'
    """
    for name in names:
        one, two = held[name], ours[name]
        if isinstance(one, dict) and one != two:
            return f"{name}: {_difference(one, two, tuple(one))}"
        if one != two:
            return f"{name}: {one!r} there, {two!r} here"
    return ""


def _taken(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder} holds {what}; choose another folder, or remove it")
