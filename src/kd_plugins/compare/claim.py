"""Whose runs a folder holds, and what may be added to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_plugins.compare.experiment import Experiment
from kd_plugins.compare.trainers import TRAINERS
from kd_plugins.config import shown
from kd_plugins.files import check_folder, file_hash, read_json

SETTINGS, TRAINED = "settings.json", "trained.json"
KINDS = {
    "title": str,
    "control": str,
    "seeds": list,
    "metrics": list,
    "host": str,
    "base": str,
    "model": str,
    "settings": dict,
    "measure": dict,
    "arms": dict,
    "sources": dict,
}
"""Of what the settings of an experiment hold as JSON."""
FIXED = ("host", "base", "settings", "measure", "model", "teacher", "options")
"""What runs of one folder have in common."""
OURS = (SETTINGS, "experiment.json", "runs", "teacher", "compare.writer")
NOTES = (".log", ".txt", ".out", ".err", ".yml", ".yaml")
"""Files that may lie in a folder beside an experiment."""


def described(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Return the settings of a folder with those of an experiment; write nothing.

    Raises:
        ValueError: if the folder holds something else, another experiment, an arm with other
            settings, or runs that were trained with a file that was changed since.
    """
    check_folder(out)
    ours, held = _settings(experiment), _held(out)
    if held is None:
        return ours
    for name in FIXED:
        there = held.get(name, {} if name == "options" else None)
        if there != ours[name]:
            raise ValueError(
                f"{out} holds an experiment with another {name}: {shown(there)}; choose another "
                "folder"
            )
    _refuse_changed(out, held["sources"], ours["sources"])
    for name in set(held["arms"]) & set(ours["arms"]):
        if held["arms"][name] != ours["arms"][name]:
            raise ValueError(
                f"{out} holds arm {name!r} with other settings: {shown(held['arms'][name])}; give "
                "the new one another name, or choose another folder"
            )
    both = {name: {**held[name], **ours[name]} for name in ("arms", "sources")}
    return {**ours, **both}


def _held(out: Path) -> Mapping[str, Any] | None:
    path = out / SETTINGS
    if not path.exists():
        _refuse_others(out)
        return None
    held = read_json(path)
    for name, kind in KINDS.items():
        if not isinstance(held.get(name), kind):
            expected = {str: "a text", list: "a list", dict: "a mapping"}[kind]
            raise ValueError(
                f"{path}: {name}: expected {expected}, got {shown(held.get(name))}; put the file "
                "back, or choose another folder"
            )
    return held


def _refuse_others(out: Path) -> None:
    """Raise for a folder that is in use for something else, such as a store."""
    there = sorted(out.iterdir()) if out.is_dir() else []
    others = [
        one.name
        for one in there
        if one.name not in OURS and one.suffix not in NOTES and not one.name.startswith(".")
    ]
    if others:
        raise ValueError(
            f"{out}: holds {others[0]} and no experiment ({SETTINGS}); choose another folder"
        )


def _refuse_changed(out: Path, held: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise for a file whose content is not what runs were trained with."""
    trained = sorted(out.glob(f"runs/*/*/{TRAINED}"))
    changed = [name for name in held if trained and ours.get(name, held[name]) != held[name]]
    if changed:
        raise ValueError(
            f"{changed[0]} was changed after {len(trained)} runs of {out} had been trained with "
            "it; put it back, or choose another folder"
        )


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as JSON has it, and the hashes of all files it comes from."""
    sources = TRAINERS[experiment.host].sources
    arms, base = experiment.arms.values(), Path(experiment.base)
    found = {str(path): file_hash(path) for arm in arms for path in sources(base, arm)}
    return json.loads(json.dumps({**asdict(experiment), "sources": found}))
