"""An experiment's description: arms that differ in a few settings, seeds, what is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from kd_plugins.compare.trainers import TRAINERS, check_options
from kd_plugins.config import LARGEST_WHOLE, read_config, read_yaml, reader, shown
from kd_plugins.evaluate.expected import check_metrics
from kd_plugins.evaluate.settings import Measure, check_seeds
from kd_plugins.names import suggestion

Settings = Mapping[str, Any]


LONGEST_NAME = 100
"""Letters of an arm, which names a folder."""
FIELDS = ("run", "runs", "seed")
BRACES = re.compile(r"\{(\w*)\}")


def _mapping(raw: object) -> Settings:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ValueError(f"expected names with values, got {shown(raw)}")
    for key, value in raw.items():
        _check_plain(key, value)
    return raw


def _check_plain(where: str, value: object) -> None:
    """Refuse what a run's settings could not hold."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(f"{where}.{key}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_plain(f"{where}[{place}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"{where}: expected a whole number up to 2^63, got {shown(value)}")


def _arms(raw: object) -> Mapping[str, Settings]:
    arms = {}
    for name, changes in _mapping(raw).items():
        if not name.replace("_", "").replace("-", "").isalnum() or len(name) > LONGEST_NAME:
            raise ValueError(
                f"arm {name!r}: a name has letters, digits, - and _ only, {LONGEST_NAME} at most"
            )
        try:
            arms[name] = _mapping({} if changes is None else changes)
        except ValueError as error:
            raise ValueError(f"arm {name!r}: {error}") from None
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
        metrics: that decide, see `kd_plugins.evaluate.expected`; the others are listed too.
        unjudged: arms that are there for others to learn from, such as a teacher, and not measured.
        provenance: free words for the report, such as licences of teacher and data.
        options: of the host's command line; fairchem's are ``num_gpus``, ``amp``, ``cpu`` and
            ``print_every``, the others have none.

    In strings of ``settings``, ``arms`` and ``model``, ``{run}`` is the folder of this run,
    ``{seed}`` its seed and ``{runs}`` the folder of all, so that
    ``{runs}/teacher/seed{seed}`` is the run of arm ``teacher`` with the same seed. An arm comes
    after those that it learns from. ``teacher`` may have ``{runs}``.

    With fairchem an arm may also have ``includes``, files that are included like the base. In its
    folder a script may leave ``curves.json`` and ``terms.json`` (name to ``epochs`` and
    ``values``), and ``costs.json`` with ``train_seconds`` and ``train_cpu_seconds`` if they are not
    those of its call.

    Raises:
        ValueError: for a control or unjudged arm that is none, seeds or metrics that are none, come
            twice or cannot be, an option that the host does not have, or a key that it sets itself.
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
    options: Settings = reader(_mapping, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("title", "base", "model"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}: expected a text, got {getattr(self, name)!r}")
        for name in (self.control, *self.unjudged):
            if name not in self.arms:
                raise ValueError(f"no arm {name!r}{suggestion(name, self.arms)}")
        if self.control in self.unjudged:
            raise ValueError(f"unjudged: {self.control!r} is the control, so it is judged")
        check_seeds("seeds", self.seeds)
        for name in ("metrics", "unjudged"):
            given = getattr(self, name)
            if len(set(given)) < len(given) or (name == "metrics" and not given):
                raise ValueError(f"{name}: expected different ones, got {list(given)}")
        check_metrics("metrics", self.metrics, self.measure, self.teacher is not None)
        check_options(self.host, self.options)
        _check_fields("model", self.model, FIELDS)
        _check_fields("teacher", self.teacher or "", ("runs",))
        changed = [*self.settings, *(key for arm in self.arms.values() for key in arm)]
        clash = sorted(set(TRAINERS[self.host].ours) & set(changed))
        if clash:
            raise ValueError(f"{clash[0]} is set by kd-plugins itself; leave it out")
        for where, changes in (("settings", self.settings), *self.arms.items()):
            _check_near(where, changes)
        if not set(self.arms) - {self.control, *self.unjudged}:
            raise ValueError(
                f"arms: expected one beside the control {self.control!r} that is measured, got "
                f"none to compare with it (unjudged: {list(self.unjudged)})"
            )


def _check_near(where: str, value: object) -> None:
    """Refuse a field in braces that is nearly one of ours; others are the host's."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_near(f"{where}: {key}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_near(where, inner)
    elif isinstance(value, str):
        near = [one for one in BRACES.findall(value) if get_close_matches(one, FIELDS)]
        _check_fields(where, "".join(f"{{{one}}}" for one in near), FIELDS)


def _check_fields(where: str, text: str, known: tuple[str, ...]) -> None:
    """Refuse a field in braces that nothing is put in the place of."""
    for name in BRACES.findall(text):
        if name not in known:
            raise ValueError(
                f"{where}: nothing is filled in for {{{name}}}{suggestion(name, known)}"
            )


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's YAML.

    Raises:
        ConfigError: with everything that is wrong.
        FileNotFoundError: for a file, or a base, that is not there.
    """
    path = path.expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected an experiment's YAML")
    raw = read_yaml(path)
    found = read_config(Experiment, raw, path.name)
    base = path.parent / Path(found.base).expanduser()
    if not base.is_file():
        raise FileNotFoundError(f"{path.name}.base: {base}: no such file")
    return replace(found, base=str(base))


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
