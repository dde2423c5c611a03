"""Read an experiment's YAML, and check that a folder holds runs of the same one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kd_plugins.compare.hosts import HOSTS, check_options
from kd_plugins.compare.sweeps import Sweep, SweptArm, controls, expand, read_sweep
from kd_plugins.config import read_config, read_yaml, reader
from kd_plugins.evaluate.measurements import complete_settings
from kd_plugins.evaluate.requirements import check_metrics
from kd_plugins.evaluate.settings import EvaluationSettings, check_seeds
from kd_plugins.files import LARGEST_WHOLE, check_folder, file_hash, read_json
from kd_plugins.names import suggestion
from kd_plugins.numbers import shown

Settings = Mapping[str, Any]

LONGEST_NAME = 100
"""Letters of an arm's name, which is the name of a folder."""
FIELDS = ("run", "runs", "seed")
"""Words in braces that are replaced in settings, see `Experiment`."""
BRACES = re.compile(r"\{(\w*)\}")


def _read_mapping(raw: object) -> Settings:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ValueError(f"expected names with values, got {shown(raw)}")
    for key, value in raw.items():
        _check_numbers(key, value)
    return raw


def _check_numbers(where: str, value: object) -> None:
    """Refuse numbers that JSON, which records the settings, cannot store."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(f"{where}.{key}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_numbers(f"{where}[{place}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"{where}: expected a whole number up to 2^63, got {shown(value)}")


def _read_arms(raw: object) -> Mapping[str, Settings]:
    arms = {}
    for name, changes in _read_mapping(raw).items():
        if not name.replace("_", "").replace("-", "").isalnum() or len(name) > LONGEST_NAME:
            raise ValueError(
                f"arm {name!r}: a name has letters, digits, - and _ only, {LONGEST_NAME} at most"
            )
        try:
            arms[name] = _read_mapping({} if changes is None else changes)
        except ValueError as error:
            raise ValueError(f"arm {name!r}: {error}") from None
    return arms


def _read_published(raw: object) -> Mapping[str, Mapping[str, str]]:
    """Read ``published``: metric to arm to a number, or text such as ``2.03 (0.09)``."""
    published = {}
    for name, arms in _read_mapping(raw).items():
        try:
            published[name] = {arm: str(value) for arm, value in _read_mapping(arms).items()}
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return published


@dataclass(frozen=True)
class Experiment:
    """Arms x seeds, trained with one budget and measured alike.

    Args:
        title: of the report.
        host: ``chgnet`` and ``fairchem`` train from a YAML; ``script`` is a Python script that
            takes a YAML as its only argument, as hippynn users write one.
        base: the host's YAML, or the script; relative to the experiment's file.
        model: how a trained model is opened, such as ``hippynn folder={run}``.
        arms: name to the settings that this arm changes, by dotted key.
        control: the arm that the others are compared with.
        seeds: of weights and batches; each arm has a run for each.
        measure: what is measured of every model.
        settings: what all arms change in the base, by dotted key; a script gets just these.
        teacher: potential to compare all models with, as `load_teacher` takes it.
        metrics: for the verdict, see `kd_plugins.evaluate.requirements`; all others are listed.
        unjudged: arms that are trained for other arms, such as a teacher, and not measured.
        provenance: free words for the report, such as licences of teacher and data.
        sweep: axis to its points, see `kd_plugins.compare.sweeps.read_sweep`. Each arm has a run at
            every point of the grid, but for axes whose keys it sets itself, and is compared with
            the control at the same point.
        best_over: an axis; the report has a table of each arm's best point on it.
        published: numbers of a paper for the report's table, metric to arm to number, in the unit
            of the page. A name that is no arm gets a row of its own.
        options: of the host's command line; fairchem's are ``num_gpus``, ``amp``, ``cpu`` and
            ``print_every``, the others have none.

    In strings of ``settings``, ``arms`` and ``model``, ``{run}`` is the folder of this run,
    ``{seed}`` its seed and ``{runs}`` the folder of all, so that
    ``{runs}/teacher/seed{seed}`` is the run of arm ``teacher`` with the same seed. The name of an
    axis is the label of this run's point on it. An arm comes after those that it learns from.
    ``teacher`` may have ``{runs}``.

    With fairchem an arm may also have ``includes``, files that are included like the base. In its
    folder a script may leave ``curves.json`` and ``terms.json`` (name to ``epochs`` and
    ``values``), and ``costs.json`` with ``train_seconds`` and ``train_cpu_seconds`` if they are not
    those of its call.

    Raises:
        ValueError: for a control or unjudged arm that is not among the arms, seeds or metrics that
            are missing, repeated or impossible, an option that the host does not have, or a key
            that the comparison sets itself.
    """

    title: str
    host: Literal["chgnet", "fairchem", "script"]
    base: str
    model: str
    control: str
    seeds: tuple[int, ...]
    measure: EvaluationSettings
    arms: Mapping[str, Settings] = reader(_read_arms)
    settings: Settings = reader(_read_mapping, default_factory=dict)
    teacher: str | None = None
    metrics: tuple[str, ...] = ("force_rmse", "energy_per_atom_rmse")
    unjudged: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = reader(_read_mapping, default_factory=dict)
    sweep: Sweep = reader(read_sweep, default_factory=dict)
    best_over: str | None = None
    published: Mapping[str, Mapping[str, str]] = reader(_read_published, default_factory=dict)
    options: Settings = reader(_read_mapping, default_factory=dict)

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
            values = getattr(self, name)
            if len(set(values)) < len(values) or (name == "metrics" and not values):
                raise ValueError(f"{name}: expected different ones, got {list(values)}")
        check_metrics("metrics", self.metrics, self.measure, self.teacher is not None)
        check_options(self.host, self.options)
        self._check_changes()
        self._check_sweep()

        if not set(self.arms) - {self.control, *self.unjudged}:
            raise ValueError(
                f"arms: expected one beside the control {self.control!r} that is measured, got "
                f"none to compare with it (unjudged: {list(self.unjudged)})"
            )

    @cached_property
    def swept_arms(self) -> dict[str, SweptArm]:
        """Every arm at every point of the sweep, by the name of its folder."""
        return expand(self.arms, self.sweep)

    @cached_property
    def measured_arms(self) -> dict[str, SweptArm]:
        """Those that are measured and compared."""
        swept = self.swept_arms.items()
        return {name: one for name, one in swept if one.arm not in self.unjudged}

    @cached_property
    def controls(self) -> dict[str, str]:
        """Measured arm to the control that it is compared with, both as `swept_arms` names them."""
        return controls(self.measured_arms, self.control)

    def _check_sweep(self) -> None:
        """Refuse a sweep whose arms cannot be told apart, or that changes no arm."""
        swept = self.swept_arms.values()
        for axis in self.sweep:
            if not any(axis in one.point for one in swept):
                raise ValueError(f"sweep: {axis}: every arm sets it itself, so nothing is swept")
        if self.best_over is not None and self.best_over not in self.sweep:
            near = suggestion(self.best_over, self.sweep)
            raise ValueError(f"best_over: no axis {self.best_over!r} of the sweep{near}")

    def _check_changes(self) -> None:
        """Refuse misspelt fields in braces, and keys that the comparison sets itself."""
        _check_fields("model", self.model, (*FIELDS, *self.sweep))
        _check_fields("teacher", self.teacher or "", ("runs",))

        points = [settings for axis in self.sweep.values() for settings in axis.values()]
        changed = [*self.settings, *(key for arm in self.arms.values() for key in arm)]
        changed += [key for settings in points for key in settings]
        clash = sorted(set(HOSTS[self.host].reserved) & set(changed))
        if clash:
            raise ValueError(f"{clash[0]} is set by kd-plugins itself; leave it out")

        known = (*FIELDS, *self.sweep)
        for where, changes in (("settings", self.settings), *self.arms.items()):
            _check_near_fields(where, changes, known)


def _check_near_fields(where: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a word in braces that is nearly one of our fields; others belong to the host."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_near_fields(f"{where}: {key}", inner, known)
    elif isinstance(value, list):
        for inner in value:
            _check_near_fields(where, inner, known)
    elif isinstance(value, str):
        near = [word for word in BRACES.findall(value) if get_close_matches(word, known)]
        _check_fields(where, "".join(f"{{{word}}}" for word in near), known)


def _check_fields(where: str, text: str, known: tuple[str, ...]) -> None:
    """Refuse a field in braces that nothing replaces."""
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


def fill_fields(value: Any, fields: Mapping[str, object]) -> Any:
    """Replace ``{run}``, ``{runs}`` and ``{seed}`` in a setting, however deeply nested.

    A string that is nothing but one field becomes its value, which may be a number.

    >>> fill_fields({"teacher": "{runs}/big/seed{seed}"}, {"runs": "out", "run": "", "seed": 3})
    {'teacher': 'out/big/seed3'}
    >>> fill_fields({"task.distill.seed": "{seed}"}, {"seed": 3})
    {'task.distill.seed': 3}
    """
    if isinstance(value, Mapping):
        return {key: fill_fields(inner, fields) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill_fields(inner, fields) for inner in value]
    if not isinstance(value, str):
        return value

    if value[:1] == "{" and value[1:-1] in fields:
        return fields[value[1:-1]]
    # Not str.format: braces that are no field belong to the host, and stay.
    for name, content in fields.items():
        value = value.replace(f"{{{name}}}", str(content))
    return value


# --- The settings of a folder of runs -----------------------------------------------------------

SETTINGS, TRAINED = "settings.json", "trained.json"
JSON_TYPES = {
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
"""Entries of ``settings.json`` and their types."""
FIXED = ("host", "base", "settings", "measure", "model", "teacher", "options")
"""Entries that all runs of one folder share."""
OWN_FILES = (SETTINGS, "experiment.json", "verdict.json", "runs", "teacher", "compare.writer")
HARMLESS_SUFFIXES = (".log", ".txt", ".out", ".err", ".yml", ".yaml")
"""Files that may lie in a folder before its first run, such as the log of the command."""


def settings_with_folder(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Return an experiment's settings, with the arms that its folder holds already.

    Nothing is written.

    Raises:
        ValueError: if the folder holds something else, another experiment, an arm with other
            settings, or runs that were trained with a file that has changed since.
    """
    check_folder(out)
    new, stored = _settings_of(experiment), _read_settings(out)
    if stored is None:
        return new

    for name in FIXED:
        before = stored.get(name, {} if name == "options" else None)  # 0.1.0 wrote no options
        if name == "measure":
            # Settings that came later have their defaults in runs of before.
            before = complete_settings(before)
        if before != new[name]:
            raise ValueError(
                f"{out} holds an experiment with another {name}: {shown(before)}; choose another "
                "folder"
            )

    _check_sources(out, stored["sources"], new["sources"])
    for name in set(stored["arms"]) & set(new["arms"]):
        if stored["arms"][name] != new["arms"][name]:
            raise ValueError(
                f"{out} holds arm {name!r} with other settings: {shown(stored['arms'][name])}; "
                "give the new one another name, or choose another folder"
            )

    merged = {name: {**stored[name], **new[name]} for name in ("arms", "sources")}
    return {**new, **merged}


def _settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as JSON stores it, with the hashes of all files it comes from."""
    sources = HOSTS[experiment.host].sources
    arms, base = experiment.swept_arms, Path(experiment.base)
    changes = {name: one.changes for name, one in arms.items()}
    # All points of a sweep come from the same few files.
    paths = dict.fromkeys(path for arm in changes.values() for path in sources(base, arm))
    hashes = {str(path): file_hash(path) for path in paths}
    # Through JSON and back, so that tuples compare equal to the lists of a stored file.
    return json.loads(json.dumps({**asdict(experiment), "arms": changes, "sources": hashes}))


def _read_settings(out: Path) -> Mapping[str, Any] | None:
    """Return the settings that a folder holds; None for a folder without runs."""
    path = out / SETTINGS
    if not path.exists():
        _check_unused(out)
        return None

    stored = read_json(path)
    for name, kind in JSON_TYPES.items():
        if not isinstance(stored.get(name), kind):
            expected = {str: "a text", list: "a list", dict: "a mapping"}[kind]
            raise ValueError(
                f"{path}: {name}: expected {expected}, got {shown(stored.get(name))}; put the file "
                "back, or choose another folder"
            )
    return stored


def _check_unused(out: Path) -> None:
    """Refuse a folder that is in use for something else, such as a store."""
    files = sorted(out.iterdir()) if out.is_dir() else []
    foreign = [
        file.name
        for file in files
        if file.name not in OWN_FILES
        and file.suffix not in HARMLESS_SUFFIXES
        and not file.name.startswith(".")
    ]
    if foreign:
        raise ValueError(
            f"{out}: holds {foreign[0]} and no experiment ({SETTINGS}); choose another folder"
        )


def _check_sources(out: Path, stored: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Refuse a file that has changed since runs were trained with it."""
    trained = sorted(out.glob(f"runs/*/*/{TRAINED}"))
    changed = [name for name in stored if trained and new.get(name, stored[name]) != stored[name]]
    if changed:
        raise ValueError(
            f"{changed[0]} was changed after {len(trained)} runs of {out} had been trained with "
            "it; put it back, or choose another folder"
        )
