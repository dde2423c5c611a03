"""How each host trains: its command, the settings of a run, its learning curves."""

from __future__ import annotations

import bisect
import copy
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from kd_plugins.config import read_yaml, set_dotted
from kd_plugins.files import write_bytes
from kd_plugins.names import suggestion
from kd_plugins.numbers import shown
from kd_plugins.report.results import read_curves

Settings = Mapping[str, Any]
Curves = Mapping[str, Mapping[str, Any]]
"""``curves`` and ``terms``, each a name to ``epochs`` and ``values``; perhaps ``metrics``, a name
to a number, which joins those of the evaluation."""

FAIRCHEM_ID = "run"
"""Fairchem's name of its folders of checkpoints and logs, by which it finds a stopped run."""
NO_OPTIONS: Settings = MappingProxyType({})
MOST_POINTS = 1000
"""Points of a curve. A long training logs more than a page can show."""


@dataclass(frozen=True)
class Host:
    """How runs of a host are started and read.

    Args:
        command: (base, folder of the run, seed, changes by dotted key, options) to a command line.
        reserved: dotted keys that arms must not change.
        settings: (base, changes by dotted key) to the settings that a run is trained with.
        options: of the host's command line, each to what checks its value.
        curves: folder of the run to its learning curves and loss terms.
        sources: (base, an arm's changes) to the files that its settings come from.
    """

    command: Callable[..., Sequence[str]]
    reserved: tuple[str, ...]
    settings: Callable[[Path, Settings], dict[str, Any]]
    options: Mapping[str, Callable[[object], bool]] = field(default_factory=dict)
    curves: Callable[[Path], Curves] = lambda run: curves_from_files(run)
    sources: Callable[[Path, Settings], Sequence[Path]] = lambda base, _: [base]


# --- Settings and command line of a run, host by host -------------------------------------------


def _script_settings(_: Path, changes: Settings) -> dict[str, Any]:
    return _with_changes({}, changes)


def _script_command(
    base: Path, run: Path, seed: int, changes: Settings, _: Settings = NO_OPTIONS
) -> Sequence[str]:
    settings = _script_settings(base, {**changes, "out": str(run), "seed": seed})
    return [sys.executable, str(base), str(_write_settings(run, settings))]


def _chgnet_settings(base: Path, changes: Settings) -> dict[str, Any]:
    return _with_changes(read_yaml(base), changes)


def _chgnet_command(
    base: Path, run: Path, seed: int, changes: Settings, _: Settings = NO_OPTIONS
) -> Sequence[str]:
    settings = _chgnet_settings(base, {**changes, "out": str(run), "optim.seed": seed})
    return [sys.executable, "-m", "kd_plugins.chgnet", str(_write_settings(run, settings))]


def _fairchem_settings(base: Path, changes: Settings) -> dict[str, Any]:
    """Include the base, and the files of an arm's own ``includes``, as a fairchem YAML does."""
    includes = _included_files(base, changes)
    others = {key: value for key, value in changes.items() if key != "includes"}
    return _with_changes({"includes": [str(path.resolve()) for path in includes]}, others)


def _fairchem_command(
    base: Path, run: Path, seed: int, changes: Settings, options: Settings = NO_OPTIONS
) -> Sequence[str]:
    import torch

    path = _write_settings(run, _fairchem_settings(base, changes))
    words = ["--mode", "train", "--config-yml", str(path), "--run-dir", str(run)]
    words += ["--seed", str(seed), "--timestamp-id", FAIRCHEM_ID]

    # fairchem fails without a GPU unless it is told to use the CPU.
    default = {} if torch.cuda.is_available() else {"cpu": True}
    for name, value in {**default, **options}.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False:
            words += [flag, str(value)]

    return [sys.executable, "-m", "kd_plugins.fairchem", *words]


def _included_files(base: Path, changes: Settings) -> list[Path]:
    return [base, *(Path(name).expanduser() for name in _names("includes", changes))]


def _fairchem_sources(base: Path, changes: Settings) -> Sequence[Path]:
    """Return all files that a fairchem YAML includes, and those that these include.

    fairchem looks for an included file from the current folder, then beside the including one.
    """
    found, waiting = [], _included_files(base, changes)
    while waiting:
        path = Path(os.path.normpath(waiting.pop()))
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file to include")
        if path in found:
            continue

        found.append(path)
        included = map(Path, _names(f"{path}: includes", read_yaml(path)))
        waiting += [one if one.is_file() else path.parent / one for one in included]
    return found


def _names(where: str, settings: Settings) -> list[str]:
    """Return the names of the files that a fairchem YAML includes."""
    names = settings.get("includes") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: expected a list of files to include, got {shown(names)}")
    return names


def _with_changes(settings: dict[str, Any], changes: Settings) -> dict[str, Any]:
    """Apply changes by dotted key to settings, in place, and return them."""
    for key, value in changes.items():
        set_dotted(settings, key, copy.deepcopy(value))
    return settings


def _write_settings(run: Path, settings: dict[str, Any]) -> Path:
    """Write the settings of a run into its folder; return the file."""
    text = yaml.safe_dump(settings, sort_keys=False)
    return write_bytes(run / "settings.yml", text.encode())


# --- Learning curves ----------------------------------------------------------------------------


def curves_from_files(run: Path) -> Curves:
    """Read ``curves.json`` and ``terms.json`` of a run, as far as they are there.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    files = {name: run / f"{name}.json" for name in ("curves", "terms")}
    return {name: read_curves(path) for name, path in files.items() if path.exists()}


PROJECTED = {
    "embedding_mae": "projected_embedding_mae",
    "embedding_cosine": "projected_embedding_cosine",
}
"""What fairchem's trainer logs of embeddings after the projection, and its names in an evaluation,
whose own embeddings are compared without one."""


def curves_from_tensorboard(run: Path) -> Curves:
    """Read what fairchem has logged.

    Curves are the mean absolute errors of training and all of validation; terms are ``loss`` and
    ``kd_*`` of training; metrics, under the names in `PROJECTED`, are the last validation's.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    logs = sorted({path.parent for path in run.glob("logs/tensorboard/**/*tfevents*")})
    if not logs:
        return {}

    # A size of 0 keeps all events; tensorboard keeps a random sample otherwise.
    events = EventAccumulator(str(logs[0]), size_guidance={"scalars": 0}).Reload()
    scalars = {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }

    epochs = scalars.get("train/epoch", {})
    curves, terms, metrics = {}, {}, {}
    for name, values in scalars.items():
        split, _, metric = name.partition("/")
        if split == "val" and metric in PROJECTED and math.isfinite(values[max(values)]):
            metrics[PROJECTED[metric]] = values[max(values)]
        if split == "val" and metric != "epoch":
            curves[f"valid {metric}"] = _series(values, epochs)
        elif split == "train" and metric.endswith("_mae"):
            curves[f"train {metric}"] = _series(values, epochs)
        elif split == "train" and (metric == "loss" or metric.startswith("kd_")):
            terms[metric] = _series(values, epochs)
    return {"curves": curves, "terms": terms, "metrics": metrics}


def _series(values: Mapping[int, float], epochs: Mapping[int, float]) -> dict[str, list[float]]:
    """Return finite values over epochs, thinned evenly to `MOST_POINTS`, the last one kept.

    Args:
        values: step to value.
        epochs: step to epoch, of some steps.
    """
    known_steps = sorted(epochs)
    steps = sorted(step for step, value in values.items() if math.isfinite(value))
    stride = max(1, math.ceil(len(steps) / MOST_POINTS))
    kept = steps[::-1][::stride][::-1]  # counted from the end, so that the last step is kept
    return {
        "epochs": [_epoch_of(step, known_steps, epochs) for step in kept],
        "values": [values[step] for step in kept],
    }


def _epoch_of(step: int, known_steps: Sequence[int], epochs: Mapping[int, float]) -> float:
    """Return the epoch of the nearest known step before; the step itself if there is none.

    >>> epochs = {2: 0.5, 6: 1.5, 8: 2.0}
    >>> _epoch_of(7, [2, 6, 8], epochs), _epoch_of(1, [2, 6, 8], epochs), _epoch_of(7, [], {})
    (1.5, 1, 7)
    """
    place = bisect.bisect_right(known_steps, step)
    return epochs[known_steps[place - 1]] if place else step


# --- The table of hosts -------------------------------------------------------------------------


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= 1024


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


HOSTS: Mapping[str, Host] = {
    "script": Host(_script_command, ("out", "seed"), _script_settings),
    "chgnet": Host(_chgnet_command, ("out", "optim.seed"), _chgnet_settings),
    "fairchem": Host(
        _fairchem_command,
        (),
        _fairchem_settings,
        {"num_gpus": _is_count, "amp": _is_switch, "cpu": _is_switch, "print_every": _is_count},
        curves_from_tensorboard,
        _fairchem_sources,
    ),
}


def check_options(host: str, options: Settings) -> None:
    """Refuse an option that the host's command line does not have, or a wrong value of one.

    Raises:
        ValueError: naming it.

    >>> check_options("fairchem", {"num_gpu": 2})
    Traceback (most recent call last):
    ValueError: options: fairchem takes no 'num_gpu'; did you mean 'num_gpus'?
    """
    known = HOSTS[host].options
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
