"""Read the folder of an experiment into typed records; errors name file and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

from kd_plugins.config import ConfigError, read_config
from kd_plugins.files import read_json
from kd_plugins.names import suggestion
from kd_plugins.numbers import shown

T = TypeVar("T")

PLAN, EVALUATION = "experiment.json", "evaluation.json"
MODULI = ("bulk", "shear", "young", "poisson_ratio", "anisotropy")
"""Results of elasticity: three moduli in GPa, two pure numbers."""
LARGEST, SMALLEST = 1e100, 1e-100
"""Bounds of numbers, and of positive numbers: squares and ratios beyond them overflow."""

Potential = Literal["student", "teacher"]
Side = Literal["student", "teacher", "reference"]
Reference = Literal["labels", "teacher"]
ParityQuantity = Literal["energy_per_atom", "forces"]


# --- Records ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """Values over the epochs of a training."""

    epochs: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_columns(epochs=self.epochs, values=self.values)


@dataclass(frozen=True)
class Pairs:
    """Points of a parity plot, reference and student, in eV/Å or eV/atom."""

    reference: tuple[float, ...]
    student: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_columns(reference=self.reference, student=self.student)


@dataclass(frozen=True)
class Cell:
    """Costs of a step in a cell: µs per atom, ns of simulation per day, bytes per atom.

    ``device`` and ``dtype`` are where and in which precision they were measured.
    """

    atoms: int
    microseconds: float
    nanoseconds_per_day: float | None = None
    bytes: float | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        _check_count("atoms", self.atoms)
        _check_positive("microseconds", self.microseconds)
        _check_positive("bytes", self.bytes)
        _check_size("nanoseconds_per_day", self.nanoseconds_per_day)


@dataclass(frozen=True)
class Computing:
    """Device on which a potential was measured, and dtype of its weights if it has any."""

    device: str
    dtype: str | None = None

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.device, self.dtype)))


@dataclass(frozen=True)
class RdfResults:
    """Radial distribution functions of student and teacher, and how far apart they are.

    Args:
        distances: middles of the bins in Å.
        student: relative density.
        teacher: the same; empty without a teacher.
        distance: integral of their absolute difference in Å.
        floor: mean distance between runs of the teacher itself, in Å.
    """

    distances: tuple[float, ...]
    student: tuple[float, ...]
    teacher: tuple[float, ...] = ()
    distance: float | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        _check_columns(distances=self.distances, student=self.student)
        if self.teacher:
            _check_columns(distances=self.distances, teacher=self.teacher)
        _check_size("distance", self.distance)
        _check_size("floor", self.floor)


@dataclass(frozen=True)
class Volume:
    """Relaxed volumes of a crystal and its reference, in Å³.

    Args:
        student: of the student.
        teacher: of the teacher.
        reference: of the file, such as the experiment's.
        density: of the reference, in g/cm³.
        rmsd15: of the student's packing from the reference, in Å.
        rmsd15_of_teacher: of the teacher's packing from the reference, in Å.
        teacher_rmsd15: of the student's packing from the teacher's, in Å.
        failures: student or teacher to the reason why its relaxation failed.
    """

    student: float | None = None
    teacher: float | None = None
    reference: float | None = None
    density: float | None = None
    rmsd15: float | None = None
    rmsd15_of_teacher: float | None = None
    teacher_rmsd15: float | None = None
    failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("student", "teacher", "reference", "density"):
            _check_positive(name, getattr(self, name))
        for name in ("rmsd15", "rmsd15_of_teacher", "teacher_rmsd15"):
            _check_size(name, getattr(self, name))


@dataclass(frozen=True)
class Stiffness:
    """Elastic moduli of a crystal, see `MODULI`, or the reason why it has none."""

    bulk: float | None = None
    shear: float | None = None
    young: float | None = None
    poisson_ratio: float | None = None
    anisotropy: float | None = None
    unstable: str | None = None

    def __post_init__(self) -> None:
        for name in MODULI:
            _check_size(name, getattr(self, name))

    @property
    def moduli(self) -> dict[str, float]:
        """The moduli that there are, by name."""
        values = {name: getattr(self, name) for name in MODULI}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class RunResults:
    """Results of one trained model; everything but its name may be missing.

    Args:
        model: as `kd_plugins.teachers.load_teacher` takes it.
        fingerprint: of its weights.
        weights: how many it has.
        train_seconds: of the training by the clock, beside whatever else the machine did.
        train_cpu_seconds: of all its processes and cores.
        metrics: name to value in ASE's units.
        teacher: the teacher's own errors from labels, costs, drift and distance between two runs,
            by the metrics' names.
        parity: labels or teacher, then quantity, to the points of a parity plot.
        curves: learning curves by name.
        terms: terms of the loss by name.
        speed: student and teacher to growing cells.
        rdf: radial distribution functions.
        volumes: by crystal.
        elasticity: crystal, then student, teacher or reference (an experiment), to moduli.
        left_out: crystals that were not measured, with the reasons.
        provenance: of an evaluation by itself.
        computing: student and teacher to device and dtype; earlier versions did not keep them.
    """

    model: str
    fingerprint: str | None = None
    weights: int | None = None
    train_seconds: float | None = None
    train_cpu_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    teacher: Mapping[str, float] = field(default_factory=dict)
    parity: Mapping[Reference, Mapping[ParityQuantity, Pairs]] = field(default_factory=dict)
    curves: Mapping[str, Series] = field(default_factory=dict)
    terms: Mapping[str, Series] = field(default_factory=dict)
    speed: Mapping[Potential, tuple[Cell, ...]] = field(default_factory=dict)
    rdf: RdfResults | None = None
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    elasticity: Mapping[str, Mapping[Side, Stiffness]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    computing: Mapping[Potential, Computing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text("model", self.model)
        if self.weights is not None:
            _check_count("weights", self.weights)
        _check_positive("train_seconds", self.train_seconds)
        _check_positive("train_cpu_seconds", self.train_cpu_seconds)
        for group in ("metrics", "teacher"):
            for name, value in getattr(self, group).items():
                _check_size(f"{group}.{name}", value)


@dataclass(frozen=True)
class Point:
    """Where an arm is on a sweep: name in the experiment, and axis to the label of its point."""

    arm: str
    at: Mapping[str, str] = field(default_factory=dict)


Published = Mapping[str, Mapping[str, str]]
"""Numbers of a paper: metric to arm to number, in the unit of the page."""


@dataclass(frozen=True)
class Plan:
    """Content of ``experiment.json``: arms trained with the same seeds, one of them the control.

    Args:
        title: of the report.
        host: that trained.
        control: the arm trained without the teacher.
        arms: names of the arms that are compared, folders under ``runs``.
        seeds: of the runs of each arm.
        metrics: for the verdict.
        provenance: origin of the numbers.
        controls: of a sweep, arm to the control at its point.
        points: of a sweep, arm to where it is.
        best_over: an axis of the sweep, over which the best point of each arm is shown.
        published: numbers of a paper.
    """

    title: str
    host: str
    control: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, Point] = field(default_factory=dict)
    best_over: str | None = None
    published: Published = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("title", "host", "control"):
            _check_text(name, getattr(self, name))
        for name in ("arms", "seeds", "metrics"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name}: expected a list with something in it, got []")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: expected each once, got {shown(list(values))}")

        for arm in self.arms:
            # A name with a slash would read files outside the folder.
            if arm in ("", ".", "..") or any(letter in arm for letter in "/\\\0"):
                raise ValueError(f"arms: expected the name of a folder under runs, got {arm!r}")
        # The control of a sweep is an arm at each of its points.
        named = self.controls.values() if self.points else (self.control,)
        for control in named:
            if control not in self.arms:
                raise ValueError(
                    f"control: expected one of the arms {', '.join(self.arms)}, got {control!r}"
                )


@dataclass(frozen=True)
class ExperimentResults:
    """All results of an experiment.

    Args:
        title: of the report.
        arms: names, in the order of the page.
        seeds: of the runs of each arm.
        runs: arm and seed to results, of the runs that are finished.
        host: that trained.
        control: the arm trained without the teacher; None for one model measured alone.
        metrics: for the verdict.
        provenance: origin of the numbers.
        controls: of a sweep, arm to the control at its point.
        points: of a sweep, arm to where it is.
        best_over: an axis of the sweep, over which the best point of each arm is shown.
        published: numbers of a paper.
    """

    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, int], RunResults]
    host: str | None = None
    control: str | None = None
    metrics: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, Point] = field(default_factory=dict)
    best_over: str | None = None
    published: Published = field(default_factory=dict)

    def control_of(self, arm: str) -> str | None:
        """Return the control that an arm is compared with; None for a control, or without one."""
        control = self.controls.get(arm) if self.points else self.control
        return None if control == arm else control

    def point_of(self, arm: str) -> Point:
        """Return where an arm is on the sweep."""
        return self.points.get(arm, Point(arm))

    def of(self, arm: str) -> dict[int, RunResults]:
        """Return the arm's results by seed."""
        return {seed: self.runs[arm, seed] for seed in self.seeds if (arm, seed) in self.runs}

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Return the arm's values of a metric by seed, as stored."""
        runs = self.of(arm).items()
        return {seed: run.metrics[metric] for seed, run in runs if metric in run.metrics}

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Arms and seeds that are not finished."""
        planned = [(arm, seed) for arm in self.arms for seed in self.seeds]
        return [run for run in planned if run not in self.runs]


# --- Reading ------------------------------------------------------------------------------------


def read_results(folder: Path) -> ExperimentResults:
    """Read the folder of an experiment, or of one model measured alone.

    Raises:
        FileNotFoundError: for a folder with neither experiment.json nor evaluation.json.
        ValueError: naming a file and what is wrong in it.
    """
    if (folder / PLAN).exists():
        return _read_experiment(folder)
    if (folder / EVALUATION).exists():
        return _single_model(read_run(folder / EVALUATION))
    raise FileNotFoundError(f"{folder}: expected {PLAN} or {EVALUATION} in it, found neither")


def choose_arms(
    experiments: Sequence[ExperimentResults], patterns: Sequence[str]
) -> list[ExperimentResults]:
    """Keep the arms that match a pattern, as of file names; all without patterns.

    Raises:
        ValueError: for a pattern that no arm matches.
    """
    if not patterns:
        return list(experiments)

    names = [arm for experiment in experiments for arm in experiment.arms]
    for pattern in patterns:
        if not any(fnmatchcase(arm, pattern) for arm in names):
            raise ValueError(f"arms: {pattern!r} matches no arm{suggestion(pattern, names)}")

    chosen = []
    for experiment in experiments:
        arms = tuple(
            arm for arm in experiment.arms if any(fnmatchcase(arm, one) for one in patterns)
        )
        if arms:
            # A control that is not on the page is still what its arms are compared with.
            chosen.append(replace(experiment, arms=arms))
    return chosen


def read_run(path: Path) -> RunResults:
    """Read the results of one model.

    Raises:
        FileNotFoundError: without the file.
        ValueError: naming the file and what is wrong in it.
    """
    remedy = "remove the file, and the command that wrote it makes it anew"
    return _read_file(path, RunResults, remedy)


def read_curves(path: Path) -> Mapping[str, Any]:
    """Check a training's curves, name to ``epochs`` and ``values``, and return them as they are.

    Raises:
        FileNotFoundError: without the file.
        ValueError: naming the file and what is wrong in it.
    """
    _read_file(path, Mapping[str, Series], "the training has written it")
    return read_json(path)


def _read_experiment(folder: Path) -> ExperimentResults:
    plan = _read_file(folder / PLAN, Plan, "compare with the same words writes it anew")
    files = {
        (arm, seed): folder / "runs" / arm / f"seed{seed}" / EVALUATION
        for arm in plan.arms
        for seed in plan.seeds
    }
    return ExperimentResults(
        title=plan.title,
        arms=plan.arms,
        seeds=plan.seeds,
        runs={run: read_run(path) for run, path in files.items() if path.exists()},
        host=plan.host,
        control=plan.control,
        metrics=plan.metrics,
        provenance=plan.provenance,
        controls=plan.controls,
        points=plan.points,
        best_over=plan.best_over,
        published=plan.published,
    )


def _single_model(run: RunResults) -> ExperimentResults:
    origin = {"student": run.model, "student fingerprint": run.fingerprint, **run.provenance}
    return ExperimentResults(
        title=run.model,
        arms=("student",),
        seeds=(0,),
        runs={("student", 0): run},
        provenance={name: value for name, value in origin.items() if value is not None},
    )


def _read_file(path: Path, kind: Any, remedy: str) -> Any:
    raw = read_json(path)
    try:
        return read_config(kind, raw, path.stem)
    except ConfigError as error:
        raise ValueError(f"{path}: {error} ({remedy})") from None


def _check_text(name: str, value: str) -> None:
    if not value.strip():
        raise ValueError(f"{name}: expected a text, got {value!r}")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected a whole number above 0, got {value}")


def _check_size(name: str, value: float | None) -> None:
    if value is not None and not abs(value) <= LARGEST:
        raise ValueError(f"{name}: expected a number up to {LARGEST:g}, got {value:g}")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{name}: expected a number above 0, got {value:g}")


def _check_columns(**columns: tuple[float, ...]) -> None:
    for name, column in columns.items():
        for value in column:
            _check_size(name, value)
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise ValueError(f"expected lists of one length, got {lengths}")
