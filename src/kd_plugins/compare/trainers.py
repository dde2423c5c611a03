"""The hosts' own commands for training, one a run."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml

from kd_plugins.compare.curves import Curves, from_files, from_tensorboard
from kd_plugins.config import read_yaml, shown
from kd_plugins.files import write_bytes
from kd_plugins.names import suggestion

Settings = Mapping[str, Any]
FAIRCHEM_ID = "run"
"""What fairchem calls its folders of checkpoints and logs; a run that was stopped has them."""
NO_OPTIONS: Settings = MappingProxyType({})


@dataclass(frozen=True)
class Trainer:
    """How a host trains.

    Args:
        command: (base, folder of the run, seed, changes by dotted key, options) to a command line.
        ours: dotted keys that arms must not change.
        settings: (base, changes by dotted key) to the settings that a run is trained with.
        options: of the host's command line, each to what checks its value.
        curves: folder of the run to its learning curves and loss terms.
        sources: (base, an arm's changes) to the files that its settings come from.
    """

    command: Callable[..., Sequence[str]]
    ours: tuple[str, ...]
    settings: Callable[[Path, Settings], dict[str, Any]]
    options: Mapping[str, Callable[[object], bool]] = field(default_factory=dict)
    curves: Callable[[Path], Curves] = from_files
    sources: Callable[[Path, Settings], Sequence[Path]] = lambda base, _: [base]


def _script_settings(_: Path, changes: Settings) -> dict[str, Any]:
    return _changed({}, changes)


def _script(
    base: Path, run: Path, seed: int, changes: Settings, _: Settings = NO_OPTIONS
) -> Sequence[str]:
    path = _written(run, _script_settings(base, {**changes, "out": str(run), "seed": seed}))
    return [sys.executable, str(base), str(path)]


def _chgnet_settings(base: Path, changes: Settings) -> dict[str, Any]:
    return _changed(read_yaml(base), changes)


def _chgnet(
    base: Path, run: Path, seed: int, changes: Settings, _: Settings = NO_OPTIONS
) -> Sequence[str]:
    path = _written(run, _chgnet_settings(base, {**changes, "out": str(run), "optim.seed": seed}))
    return [sys.executable, "-m", "kd_plugins.chgnet", str(path)]


def _changed(settings: dict[str, Any], changes: Settings) -> dict[str, Any]:
    """Return settings after changes by dotted key; those that were given are changed, too."""
    for key, value in changes.items():
        put(settings, key, copy.deepcopy(value))
    return settings


def _written(run: Path, settings: dict[str, Any]) -> Path:
    """Write the settings of a run into its folder."""
    text = yaml.safe_dump(settings, sort_keys=False)
    return write_bytes(run / "settings.yml", text.encode())


def _fairchem_settings(base: Path, changes: Settings) -> dict[str, Any]:
    """Include the base, and the files of an arm's own ``includes``, as fairchem's YAML does."""
    includes = _includes(base, changes)
    others = {key: value for key, value in changes.items() if key != "includes"}
    return _changed({"includes": [str(one.resolve()) for one in includes]}, others)


def _fairchem(
    base: Path, run: Path, seed: int, changes: Settings, options: Settings = NO_OPTIONS
) -> Sequence[str]:
    path = _written(run, _fairchem_settings(base, changes))
    words = ["--mode", "train", "--config-yml", str(path), "--run-dir", str(run)]
    words += ["--seed", str(seed), "--timestamp-id", FAIRCHEM_ID]
    cpu = {} if torch.cuda.is_available() else {"cpu": True}
    for name, value in {**cpu, **options}.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [] if value is False else [flag, str(value)]
    return [sys.executable, "-m", "kd_plugins.fairchem", *words]


def _includes(base: Path, changes: Settings) -> list[Path]:
    return [base, *(Path(one).expanduser() for one in _names("includes", changes))]


def _names(where: str, settings: Settings) -> list[str]:
    """Return the files that a fairchem YAML includes."""
    names = settings.get("includes") or []
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"{where}: expected a list of files to include, got {shown(names)}")
    return names


def _fairchem_sources(base: Path, changes: Settings) -> Sequence[Path]:
    """Return what is included, and what that includes: as it says, or beside it."""
    found, waiting = [], _includes(base, changes)
    while waiting:
        path = Path(os.path.normpath(waiting.pop()))
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file to include")
        if path not in found:
            found.append(path)
            inner = map(Path, _names(f"{path}: includes", read_yaml(path)))
            waiting += [one if one.is_file() else path.parent / one for one in inner]
    return found


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= 1024


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


TRAINERS: Mapping[str, Trainer] = {
    "script": Trainer(_script, ("out", "seed"), _script_settings),
    "chgnet": Trainer(_chgnet, ("out", "optim.seed"), _chgnet_settings),
    "fairchem": Trainer(
        _fairchem,
        (),
        _fairchem_settings,
        {"num_gpus": _is_count, "amp": _is_switch, "cpu": _is_switch, "print_every": _is_count},
        from_tensorboard,
        _fairchem_sources,
    ),
}


def check_options(host: str, options: Settings) -> None:
    """Refuse an option that the host's command line does not have, or a value that it cannot be.

    Raises:
        ValueError: naming it.

    >>> check_options("fairchem", {"num_gpu": 2})
    Traceback (most recent call last):
    ValueError: options: fairchem takes no 'num_gpu'; did you mean 'num_gpus'?
    """
    known = TRAINERS[host].options
    for name, value in options.items():
        if not known:
            raise ValueError(
                f"options: {host} takes none, got {name!r}; what its YAML holds goes into settings"
            )
        if name not in known:
            raise ValueError(f"options: {host} takes no {name!r}{suggestion(name, known)}")
        if not known[name](value):
            kind = "true or false" if known[name] is _is_switch else "a whole number of 1 or more"
            raise ValueError(f"options.{name}: expected {kind}, got {shown(value)}")


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key.

    Raises:
        ValueError: if something on its way holds nothing, or the key is no dotted one.

    >>> settings = {"loss": {"energy": 1}}
    >>> put(settings, "loss.forces", 30)
    >>> settings
    {'loss': {'energy': 1, 'forces': 30}}
    """
    first, dot, rest = key.partition(".")
    if not first or (dot and not rest):
        raise ValueError(f"{key!r}: expected names with dots between them, such as loss.energy")
    if not dot:
        settings[first] = value
        return
    inner = settings.setdefault(first, {})
    if not isinstance(inner, dict):
        raise ValueError(f"{key}: {first} is {shown(inner)}, which has nothing in it")
    put(inner, rest, value)
