"""The hosts' own commands for training, one a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trainer:
    """How a host trains.

    Args:
        command: (base, folder of the run, seed, changes by dotted key) to a command line.
        ours: dotted keys that arms must not change.
    """

    command: Callable[[Path, Path, int, Settings], Sequence[str]]
    ours: tuple[str, ...]


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
    words = ["--mode", "train", "--config-yml", str(base), "--run-dir", str(run)]
    words += ["--seed", str(seed), "--timestamp-id", "run", "--cpu"]
    words += [f"--{key}={yaml.safe_dump(value).splitlines()[0]}" for key, value in changes.items()]
    return [sys.executable, "-m", "kd_plugins.fairchem", *words]


TRAINERS: Mapping[str, Trainer] = {
    "script": Trainer(_script, ("out", "seed")),
    "chgnet": Trainer(_chgnet, ("out", "optim.seed")),
    "fairchem": Trainer(_fairchem, ()),
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
