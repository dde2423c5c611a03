"""The folder of an experiment into its record; what is wrong is told with the file's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from kd_plugins.files import read_json
from kd_plugins.report import checks
from kd_plugins.report.checks import Raw
from kd_plugins.report.records import (
    MODULI,
    Cell,
    Evaluation,
    Experiment,
    Pairs,
    Rdf,
    Series,
    Stiffness,
    Volume,
)

T = TypeVar("T")

PLAN, EVALUATION = "experiment.json", "evaluation.json"
SIDES = ("student", "teacher")
AGAINST = ("labels", "teacher")
COMPARED = ("energy_per_atom", "forces")
"""Quantities of parity plots."""


def read_experiment(folder: Path) -> Experiment:
    """Read the folder of an experiment, or of one model measured alone.

    Raises:
        FileNotFoundError: for a folder with neither experiment.json nor evaluation.json.
        ValueError: for a file that is not as it should be, which is named.
    """
    if (folder / PLAN).exists():
        return _experiment(folder)
    if (folder / EVALUATION).exists():
        run = read_evaluation(folder / EVALUATION)
        origin = {"student": run.model, "student fingerprint": run.fingerprint, **run.provenance}
        known = {name: value for name, value in origin.items() if value is not None}
        return Experiment(run.model, ("student",), (0,), {("student", 0): run}, provenance=known)
    raise FileNotFoundError(f"{folder}: expected {PLAN} or {EVALUATION} in it, found neither")


def read_evaluation(path: Path) -> Evaluation:
    """Read what was measured of one model.

    Raises:
        FileNotFoundError: without the file.
        ValueError: naming the file and what is wrong in it.
    """
    return _checked(
        path, _evaluation, "remove the file, and the command that wrote it makes it anew"
    )


def _experiment(folder: Path) -> Experiment:
    plan = _checked(folder / PLAN, _plan, "compare with the same words writes it anew")
    files = {
        (arm, seed): folder / "runs" / arm / f"seed{seed}" / EVALUATION
        for arm in plan.arms
        for seed in plan.seeds
    }
    runs = {run: read_evaluation(path) for run, path in files.items() if path.exists()}
    return Experiment(
        plan.title,
        plan.arms,
        plan.seeds,
        runs,
        plan.host,
        plan.control,
        plan.metrics,
        plan.provenance,
    )


def read_curves(path: Path) -> Raw:
    """Read what a training has left, name to ``epochs`` and ``values``; return it as it is.

    Raises:
        FileNotFoundError: without the file.
        ValueError: naming the file and what is wrong in it.
    """

    def read(raw: Raw) -> Raw:
        _each(_series, raw, path.stem)
        return raw

    return _checked(path, read, "the training has written it")


def _checked(path: Path, read: Callable[[Raw], T], remedy: str) -> T:
    raw = read_json(path)
    try:
        return read(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error} ({remedy})") from None


def _plan(raw: Raw) -> Experiment:
    checks.known(raw, ("title", "host", "control", "arms", "seeds", "metrics", "provenance"))
    arms = tuple(_arm(arm) for arm in checks.distinct(raw.get("arms"), "arms"))
    control = checks.text(raw.get("control"), "control")
    if control not in arms:
        raise ValueError(f"control: expected one of the arms {', '.join(arms)}, got {control!r}")
    return Experiment(
        title=checks.text(raw.get("title"), "title"),
        arms=arms,
        seeds=tuple(checks.whole(s, "seeds") for s in checks.distinct(raw.get("seeds"), "seeds")),
        runs={},
        host=checks.text(raw.get("host"), "host"),
        control=control,
        metrics=tuple(
            checks.text(m, "metrics") for m in checks.distinct(raw.get("metrics"), "metrics")
        ),
        provenance=checks.mapping(raw.get("provenance"), "provenance"),
    )


def _arm(raw: object) -> str:
    name = checks.text(raw, "arms")
    if name in (".", "..") or any(letter in name for letter in "/\\\0"):
        raise ValueError(f"arms: expected the name of a folder under runs, got {name!r}")
    return name


def _evaluation(raw: Raw) -> Evaluation:
    checks.known(raw, [field.name for field in fields(Evaluation)])
    return Evaluation(
        model=checks.text(raw.get("model"), "model"),
        fingerprint=_maybe(checks.text, raw.get("fingerprint"), "fingerprint"),
        weights=_maybe(checks.count, raw.get("weights"), "weights"),
        train_seconds=_maybe(checks.positive, raw.get("train_seconds"), "train_seconds"),
        train_cpu_seconds=_maybe(
            checks.positive, raw.get("train_cpu_seconds"), "train_cpu_seconds"
        ),
        metrics=_metrics(raw.get("metrics"), "metrics"),
        teacher=_metrics(raw.get("teacher"), "teacher"),
        parity=_each(_parity, checks.among(_given(raw, "parity"), "parity", AGAINST), "parity"),
        curves=_each(_series, raw.get("curves"), "curves"),
        terms=_each(_series, raw.get("terms"), "terms"),
        speed=_each(_cells, checks.among(_given(raw, "speed"), "speed", SIDES), "speed"),
        rdf=_maybe(_rdf, raw.get("rdf"), "rdf"),
        volumes=_each(_volume, raw.get("volumes"), "volumes"),
        elasticity=_each(_elasticity, raw.get("elasticity"), "elasticity"),
        provenance=checks.mapping(raw.get("provenance"), "provenance"),
    )


def _given(raw: Raw, name: str) -> Raw:
    return checks.mapping(raw.get(name), name)


def _parity(raw: object, where: str) -> Mapping[str, Pairs]:
    return _each(_pairs, checks.among(checks.mapping(raw, where), where, COMPARED), where)


def _elasticity(raw: object, where: str) -> Mapping[str, Stiffness]:
    return _each(_stiffness, checks.among(checks.mapping(raw, where), where, SIDES), where)


def _maybe(read: Callable[[object, str], T], raw: object, where: str) -> T | None:
    return None if raw is None else read(raw, where)


def _each(read: Callable[[object, str], T], raw: object, where: str) -> Mapping[str, T]:
    """Read the values of a mapping, but those that are null."""
    items = checks.mapping(raw, where).items()
    return {key: read(value, f"{where}.{key}") for key, value in items if value is not None}


def _metrics(raw: object, where: str) -> Mapping[str, float]:
    return _each(checks.number, raw, where)


def _series(raw: object, where: str) -> Series:
    return Series(*checks.columns(raw, where, ("epochs", "values")))


def _pairs(raw: object, where: str) -> Pairs:
    return Pairs(*checks.columns(raw, where, ("reference", "student")))


def _cells(raw: object, where: str) -> tuple[Cell, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"{where}: expected a list of cells, got {raw!r}")
    return tuple(_cell(checks.mapping(cell, f"{where}[{i}]"), where) for i, cell in enumerate(raw))


def _cell(raw: Raw, where: str) -> Cell:
    checks.known(raw, [field.name for field in fields(Cell)])
    return Cell(
        atoms=checks.count(raw.get("atoms"), f"{where}.atoms"),
        microseconds=checks.positive(raw.get("microseconds"), f"{where}.microseconds"),
        nanoseconds_per_day=_maybe(
            checks.number, raw.get("nanoseconds_per_day"), f"{where}.nanoseconds_per_day"
        ),
        bytes=_maybe(checks.positive, raw.get("bytes"), f"{where}.bytes"),
    )


def _rdf(raw: object, where: str) -> Rdf:
    given = checks.mapping(raw, where)
    names = ("distances", "student", *(("teacher",) if "teacher" in given else ()))
    columns = checks.columns(raw, where, names)
    return Rdf(
        *(columns if len(columns) == 3 else (*columns, ())),
        distance=_maybe(checks.number, given.get("distance"), f"{where}.distance"),
        floor=_maybe(checks.number, given.get("floor"), f"{where}.floor"),
    )


def _volume(raw: object, where: str) -> Volume:
    given = dict(checks.mapping(raw, where))
    checks.known(given, [field.name for field in fields(Volume)])
    failures = _each(checks.text, given.pop("failures", None), f"{where}.failures")
    return Volume(**_each(checks.positive, given, where), failures=failures)


def _stiffness(raw: object, where: str) -> Stiffness:
    given = checks.mapping(raw, where)
    if "unstable" in given:
        return Stiffness({}, checks.text(given["unstable"], f"{where}.unstable"))
    checks.known(given, MODULI)
    return Stiffness(_each(checks.number, given, where))
