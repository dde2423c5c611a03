"""An experiment's description: arms that differ in a few settings, seeds, what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_plugins.compare.trainers import TRAINERS
from kd_plugins.config import ConfigError, read_config, reader
from kd_plugins.core.names import suggestion
from kd_plugins.evaluate.settings import Measure

Settings = Mapping[str, Any]


def _mapping(raw: object) -> Settings:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ValueError(f"expected names with values, got {raw!r}")
    return raw


def _arms(raw: object) -> Mapping[str, Settings]:
    arms = {name: _mapping(changes or {}) for name, changes in _mapping(raw).items()}
    for name in arms:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"arm {name!r}: a name has letters, digits, - and _ only")
    return arms


@dataclass(frozen=True)
class Experiment:
    """Arms x seeds under one budget.

    Args:
        title: of the report.
        host: whose trainer it is: ``chgnet`` and ``fairchem`` train from a YAML, ``script`` is a
            Python script that takes a YAML as its only argument, as a hippynn user has it.
        base: the host's YAML, or the script; relative to the experiment's file.
        model: how a trained model is opened, such as ``hippynn folder={run}``.
        arms: name to what this arm changes in ``settings``, by dotted key.
        control: the arm that the others are compared with.
        seeds: of weights and batches; each arm has a run for each.
        measure: what is measured of every model.
        settings: what all arms change in the base, by dotted key; a script gets just these.
        teacher: that everything is compared with, as `load_teacher` takes it.
        metrics: that decide; the others are listed too.
        unjudged: arms that are there for others to learn from, such as a teacher, and not measured.
        provenance: free words for the report, such as licences of teacher and data.

    In strings of ``settings``, ``arms`` and ``model``, ``{run}`` is the folder of this run,
    ``{seed}`` its seed and ``{runs}`` the folder of all, so that
    ``{runs}/teacher/seed{seed}`` is the run of arm ``teacher`` with the same seed. An arm comes
    after those that it learns from. ``teacher`` may have ``{runs}``.

    With fairchem an arm may also have ``includes``, files that are included like the base. In its
    folder a script may leave ``curves.json`` and ``terms.json`` (name to ``epochs`` and
    ``values``), and ``costs.json`` with ``train_seconds`` if they are not those of its call.

    Raises:
        ValueError: for a control or unjudged arm that is none, no seed, or a seed twice.
    """

    title: str
    host: Literal["chgnet", "fairchem", "script"]
    base: str
    model: str
    control: str
    seeds: tuple[int, ...]
    measure: Measure
    arms: Mapping[str, Settings] = reader(_arms)
    settings: Settings = reader(_mapping, default_factory=dict)
    teacher: str | None = None
    metrics: tuple[str, ...] = ("force_rmse", "energy_per_atom_rmse")
    unjudged: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = reader(_mapping, default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.control, *self.unjudged):
            if name not in self.arms:
                raise ValueError(f"no arm {name!r}{suggestion(name, self.arms)}")
        if self.control in self.unjudged:
            raise ValueError(f"unjudged: {self.control!r} is the control, so it is judged")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected one or more different ones, got {list(self.seeds)}")
        clash = set(TRAINERS[self.host].ours) & {key for arm in self.arms.values() for key in arm}
        if clash:
            raise ValueError(f"{sorted(clash)[0]} is set by kd-plugins itself; leave it out")


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's YAML.

    Raises:
        ConfigError: with everything that is wrong.
        FileNotFoundError: for a file, or a base, that is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an experiment's YAML")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML ({error})") from error
    found = read_config(Experiment, raw, path.name)
    base = path.parent / found.base
    if not base.is_file():
        raise FileNotFoundError(f"{path.name}.base: {base}: no such file")
    return read_config(Experiment, {**raw, "base": str(base)}, path.name)


def filled(value: Any, fields: Mapping[str, object]) -> Any:
    """Return a setting with ``{run}``, ``{runs}`` and ``{seed}`` filled in.

    A string that is nothing but one of them becomes what it stands for, such as a number.

    >>> filled({"teacher": "{runs}/big/seed{seed}"}, {"runs": "out", "run": "", "seed": 3})
    {'teacher': 'out/big/seed3'}
    >>> filled({"task.distill.seed": "{seed}"}, {"seed": 3})
    {'task.distill.seed': 3}
    """
    if isinstance(value, Mapping):
        return {key: filled(inner, fields) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, fields) for inner in value]
    if not isinstance(value, str):
        return value
    if value[:1] == "{" and value[1:-1] in fields:
        return fields[value[1:-1]]
    for name, content in fields.items():
        value = value.replace(f"{{{name}}}", str(content))
    return value
