"""Requirements on metrics, and which metrics a measurement will give."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kd_plugins.evaluate.evaluation import ERRORS
from kd_plugins.evaluate.settings import EvaluationSettings
from kd_plugins.evaluate.stiffness_data import MODULI
from kd_plugins.names import suggestion

OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
REQUIREMENT = re.compile(r"^\s*([a-z]\w*)\s*(<=|>=|<|>)\s*(\S+)\s*$")
LABEL = {"energy_per_atom": "energy", "energy": "energy", "forces": "forces", "stress": "stress"}
"""Quantity that is compared to the label that it comes from."""


@dataclass(frozen=True)
class Requirement:
    """A limit for a metric, such as ``force_mae<0.05``.

    >>> Requirement.parse("force_mae<0.05").fault({"force_mae": 0.06})
    'force_mae is 0.06; required: < 0.05'
    """

    metric: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a requirement.

        Raises:
            ValueError: for anything but a metric, a comparison and a number.
        """
        match = REQUIREMENT.match(text) if isinstance(text, str) else None
        if match is None or not math.isfinite(limit := _number(match[3])):
            raise ValueError(
                f"requirement {text!r}: expected a metric, one of < <= > >=, and a number, such as "
                "force_mae<0.05"
            )
        return cls(match[1], match[2], limit)

    def fault(self, metrics: Mapping[str, float]) -> str | None:
        """Return why the requirement is not met, or None; a missing metric does not meet it."""
        if self.metric not in metrics:
            return (
                f"{self.metric} was not measured{suggestion(self.metric, metrics)}; required: "
                f"{self.comparison} {self.limit:g}"
            )

        value = metrics[self.metric]
        if OPERATORS[self.comparison](value, self.limit):
            return None
        return f"{self.metric} is {value:.6g}; required: {self.comparison} {self.limit:g}"


def faults(requirements: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    """Return a line for each requirement that is not met.

    Args:
        requirements: such as ``force_mae<0.05``.
        metrics: name to measured value.

    Raises:
        ValueError: for a requirement that cannot be read.
    """
    parsed = [Requirement.parse(text) for text in requirements]
    found = [requirement.fault(metrics) for requirement in parsed]
    return [fault for fault in found if fault is not None]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_metrics(
    where: str,
    names: Collection[str],
    settings: EvaluationSettings,
    teacher: bool,
    labels: Collection[str] | None = None,
    teacher_quantities: Collection[str] | None = None,
) -> None:
    """Refuse an unknown metric, or one that nothing is going to measure, before a measurement.

    Args:
        where: the key that names them, for the message.
        names: of metrics.
        settings: of the measurement.
        teacher: whether there is one.
        labels: quantities with which all structures are labelled; not checked if left out.
        teacher_quantities: quantities that the teacher predicts; not checked if left out.

    Raises:
        ValueError: naming the first one, and what it needs.
    """
    lacking = dict(_metrics(settings, teacher, labels, teacher_quantities))
    for name in names:
        if name not in lacking:
            raise ValueError(f"{where}: unknown metric {name!r}{suggestion(name, lacking)}")
        if lacking[name]:
            measured = sorted(metric for metric, lack in lacking.items() if not lack)
            raise ValueError(
                f"{where}: nothing here measures {name!r}, which needs {lacking[name]}; measured "
                f"are: {', '.join(measured)}"
            )


def _metrics(
    settings: EvaluationSettings,
    teacher: bool,
    labels: Collection[str] | None,
    teacher_quantities: Collection[str] | None,
) -> Iterator[tuple[str, str]]:
    """Yield each metric with what is lacking to measure it; an empty string if nothing is."""
    no_teacher = "" if teacher else "a teacher"

    no_structures = "" if settings.structures else "structures to compare on"
    for quantity, word in ERRORS.items():
        label = LABEL[quantity]
        no_label = no_prediction = ""
        if labels is not None and not {label, quantity} & set(labels):
            no_label = f"labels of {label}"
        if teacher_quantities is not None and not {label, quantity} & set(teacher_quantities):
            no_prediction = f"a teacher with {label}"

        kinds = ["mae", "rmse"] + ([] if quantity == "energy" else ["r2"])
        kinds += ["rmse_percent", "cosine"] if quantity == "forces" else []
        for kind in kinds:
            yield f"{word}_{kind}", no_structures or no_label
            yield f"teacher_{word}_{kind}", no_structures or no_teacher or no_prediction
    for name in ("embedding_mae", "embedding_cosine"):
        yield name, no_structures

    no_dynamics = "" if settings.dynamics else "dynamics"
    for name in ("microseconds_per_atom", "nanoseconds_per_day", "bytes_per_atom"):
        yield name, no_dynamics
    yield "speedup", no_dynamics or no_teacher
    yield "memory_ratio", no_dynamics or no_teacher
    yield "weight_ratio", no_teacher

    no_runs = "" if settings.dynamics and settings.dynamics.steps else "dynamics with steps"
    yield "drift", no_runs
    yield "rdf_distance", no_runs or no_teacher
    few_runs = "" if settings.dynamics and len(settings.dynamics.seeds) > 1 else "several seeds"
    yield "rdf_noise_ratio", no_runs or no_teacher or few_runs

    yield from _crystal_metrics(settings, no_teacher)


def _crystal_metrics(settings: EvaluationSettings, no_teacher: str) -> Iterator[tuple[str, str]]:
    crystals = settings.crystals
    no_crystals = "" if crystals else "crystals"
    yield "unrelaxed_crystals", no_crystals
    for name in ("volume_error_percent", "density_error_percent", "density_error"):
        yield name, no_crystals
        yield f"teacher_{name}", no_crystals or no_teacher

    no_relaxed = "crystals that are relaxed, not rigid" if crystals and crystals.rigid else ""
    yield "rmsd15", no_crystals or no_relaxed
    yield "teacher_rmsd15", no_crystals or no_relaxed or no_teacher

    no_moduli = "" if crystals and crystals.elasticity else "crystals with elasticity"
    no_measured = "" if crystals and crystals.stiffness else "crystals with measured stiffness"
    yield "unstable_crystals", no_moduli
    for name in MODULI:
        yield f"{name}_error", no_moduli or no_measured
        yield f"teacher_{name}_error", no_moduli or no_teacher
