"""An experiment as its folder tells it: arms, training seeds, and one evaluation of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MODULI = ("bulk", "shear", "young", "poisson_ratio", "anisotropy")
"""What elasticity tells: three moduli in GPa, two pure numbers."""


@dataclass(frozen=True)
class Series:
    """Values over the epochs of a training."""

    epochs: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Pairs:
    """Reference and student, number by number, in eV/Å or eV/atom."""

    reference: tuple[float, ...]
    student: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """What a step costs in a cell of so many atoms: µs and bytes an atom, ns a day."""

    atoms: int
    microseconds: float
    nanoseconds_per_day: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Rdf:
    """Two radial distribution functions, how far apart they are, and the noise of that, in Å.

    Args:
        teacher: empty where there is none.
    """

    distances: tuple[float, ...]
    student: tuple[float, ...]
    teacher: tuple[float, ...]
    distance: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Volume:
    """Relaxed volumes of a crystal and the one of the experiment, in Å³.

    Args:
        failures: student or teacher to the reason for which its relaxation is no good.
    """

    student: float | None = None
    teacher: float | None = None
    reference: float | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stiffness:
    """Elastic constants by the names of `MODULI`, or the reason why the crystal has none."""

    moduli: Mapping[str, float]
    unstable: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one trained model; everything but its name may be missing.

    Args:
        train_seconds: of the training by the clock, on whatever else the machine did meanwhile.
        train_cpu_seconds: of its processes on all cores together.
        teacher: the teacher's own costs and drift, by the metrics' names.
    """

    model: str
    fingerprint: str | None = None
    weights: int | None = None
    train_seconds: float | None = None
    train_cpu_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    teacher: Mapping[str, float] = field(default_factory=dict)
    parity: Mapping[str, Mapping[str, Pairs]] = field(default_factory=dict)
    curves: Mapping[str, Series] = field(default_factory=dict)
    terms: Mapping[str, Series] = field(default_factory=dict)
    speed: Mapping[str, tuple[Cell, ...]] = field(default_factory=dict)
    rdf: Rdf | None = None
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    elasticity: Mapping[str, Mapping[str, Stiffness]] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Arms trained with the same seeds, one of them the control.

    Args:
        control: the arm trained without the teacher; None for one model measured alone.
        metrics: names of the metrics that decide.
        runs: arm and seed to evaluation, of those that were run.
    """

    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, int], Evaluation]
    host: str | None = None
    control: str | None = None
    metrics: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    def of(self, arm: str) -> dict[int, Evaluation]:
        """Return the arm's evaluations by seed."""
        return {seed: self.runs[arm, seed] for seed in self.seeds if (arm, seed) in self.runs}

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Return the arm's values of a metric by seed, as stored."""
        found = self.of(arm).items()
        return {seed: run.metrics[metric] for seed, run in found if metric in run.metrics}

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Arms and seeds that were not run yet."""
        planned = [(arm, seed) for arm in self.arms for seed in self.seeds]
        return [run for run in planned if run not in self.runs]
