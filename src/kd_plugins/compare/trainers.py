"""The hosts' own commands for training, one a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from kd_plugins.compare.curves import Curves, from_files, from_tensorboard

Settings = Mapping[str, Any]
FAIRCHEM_ID = "run"
"""What fairchem calls its folders of checkpoints and logs; a run that was stopped has them."""


@dataclass(frozen=True)
class Trainer:
    """How a host trains.

    Args:
        command: (base, folder of the run, seed, changes by dotted key) to a command line.
        ours: dotted keys that arms must not change.
        curves: folder of the run to its learning curves and loss terms.
        sources: (base, an arm's changes) to the files that its settings come from.
    """

    command: Callable[[Path, Path, int, Settings], Sequence[str]]
    ours: tuple[str, ...]
    curves: Callable[[Path], Curves] = from_files
    sources: Callable[[Path, Settings], Sequence[Path]] = lambda base, _: [base]


def _script(base: Path, run: Path, seed: int, changes: Settings) -> Sequence[str]:
    path = _written(run, {}, {**changes, "out": str(run), "seed": seed})
    return [sys.executable, str(base), str(path)]


def _chgnet(base: Path, run: Path, seed: int, changes: Settings) -> Sequence[str]:
    settings = yaml.safe_load(base.read_text())
    path = _written(run, settings, {**changes, "out": str(run), "optim.seed": seed})
    return [sys.executable, "-m", "kd_plugins.chgnet", str(path)]


def _written(run: Path, settings: dict[str, Any], changes: Settings) -> Path:
    """Write changed settings into a run's folder."""
    for key, value in changes.items():
        put(settings, key, value)
    path = run / "settings.yml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def _fairchem(base: Path, run: Path, seed: int, changes: Settings) -> Sequence[str]:
    """Include the base, and the files of an arm's own ``includes``, as fairchem's YAML does."""
    includes = _includes(base, changes)
    others = {key: value for key, value in changes.items() if key != "includes"}
    path = _written(run, {"includes": [str(one.resolve()) for one in includes]}, others)
    words = ["--mode", "train", "--config-yml", str(path), "--run-dir", str(run)]
    words += ["--seed", str(seed), "--timestamp-id", FAIRCHEM_ID]
    words += [] if torch.cuda.is_available() else ["--cpu"]
    return [sys.executable, "-m", "kd_plugins.fairchem", *words]


def _includes(base: Path, changes: Settings) -> list[Path]:
    return [base, *map(Path, changes.get("includes", ()))]


def _fairchem_sources(base: Path, changes: Settings) -> Sequence[Path]:
    """Return what is included, and what that includes: as it says, or beside it."""
    found, waiting = [], _includes(base, changes)
    while waiting:
        path = Path(os.path.normpath(waiting.pop()))
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file to include")
        if path not in found:
            found.append(path)
            inner = map(Path, (yaml.safe_load(path.read_text()) or {}).get("includes", ()))
            waiting += [one if one.is_file() else path.parent / one for one in inner]
    return found


TRAINERS: Mapping[str, Trainer] = {
    "script": Trainer(_script, ("out", "seed")),
    "chgnet": Trainer(_chgnet, ("out", "optim.seed")),
    "fairchem": Trainer(_fairchem, (), from_tensorboard, _fairchem_sources),
}


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key.

    Raises:
        ValueError: if something on its way holds nothing.

    >>> settings = {"loss": {"energy": 1}}
    >>> put(settings, "loss.forces", 30)
    >>> settings
    {'loss': {'energy': 1, 'forces': 30}}
    """
    first, dot, rest = key.partition(".")
    if not dot:
        settings[first] = value
        return
    inner = settings.setdefault(first, {})
    if not isinstance(inner, dict):
        raise ValueError(f"{key}: {first} is {inner!r}, which has nothing in it")
    put(inner, rest, value)
