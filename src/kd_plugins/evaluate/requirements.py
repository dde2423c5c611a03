"""Requirements on metrics, and which metrics a measurement will give."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kd_plugins.evaluate.evaluation import ERRORS
from kd_plugins.evaluate.settings import Measure
from kd_plugins.names import suggestion

OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
WORDS = re.compile(r"^\s*([a-z]\w*)\s*(<=|>=|<|>)\s*(\S+)\s*$")


@dataclass(frozen=True)
class Requirement:
    """A bar, such as ``force_mae<0.05``.

    >>> Requirement.parse("force_mae<0.05").fault({"force_mae": 0.06})
    'force_mae is 0.06; required: < 0.05'
    """

    metric: str
    comparison: str
    bar: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a bar.

        Raises:
            ValueError: if it is none.
        """
        found = WORDS.match(text) if isinstance(text, str) else None
        if found is None or not math.isfinite(bar := _number(found[3])):
            raise ValueError(
                f"requirement {text!r}: expected a metric, one of < <= > >=, and a number, such as "
                "force_mae<0.05"
            )
        return cls(found[1], found[2], bar)

    def fault(self, metrics: Mapping[str, float]) -> str | None:
        """Return why the bar is not cleared, if it is not; one that was not measured is not."""
        if self.metric not in metrics:
            return (
                f"{self.metric} was not measured{suggestion(self.metric, metrics)}; required: "
                f"{self.comparison} {self.bar:g}"
            )
        value = metrics[self.metric]
        if OPERATORS[self.comparison](value, self.bar):
            return None
        return f"{self.metric} is {value:.6g}; required: {self.comparison} {self.bar:g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def faults(requirements: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    """Return a line for each bar that is not cleared.

    Args:
        requirements: such as ``force_mae<0.05``.
        metrics: name to what was measured.

    Raises:
        ValueError: for a requirement that cannot be read.
    """
    read = [Requirement.parse(text) for text in requirements]
    return [fault for one in read if (fault := one.fault(metrics)) is not None]


QUANTITY = {"energy_per_atom": "energy", "forces": "forces", "stress": "stress"}


def check_metrics(
    where: str,
    names: Collection[str],
    settings: Measure,
    teacher: bool,
    labels: Collection[str] | None = None,
    gives: Collection[str] | None = None,
) -> None:
    """Refuse a metric that there is none of, or that nothing is going to measure.

    Args:
        where: the key that names them, for the message.
        names: of metrics.
        settings: what is going to be measured.
        teacher: whether there is one.
        labels: quantities that all structures are labelled with; any if left out.
        gives: quantities that the teacher gives; any if left out.

    Raises:
        ValueError: naming the first one, and what it needs.
    """
    needs = dict(_missing_inputs(settings, teacher, labels, gives))
    for name in names:
        if name not in needs:
            raise ValueError(f"{where}: unknown metric {name!r}{suggestion(name, needs)}")
        if needs[name]:
            measured = sorted(one for one, lacking in needs.items() if not lacking)
            raise ValueError(
                f"{where}: nothing here measures {name!r}, which needs {needs[name]}; measured "
                f"are: {', '.join(measured)}"
            )


def _missing_inputs(
    settings: Measure,
    teacher: bool,
    labels: Collection[str] | None,
    gives: Collection[str] | None,
) -> Iterator[tuple[str, str]]:
    """Yield each metric and what it lacks; nothing of one that will be measured."""
    structures = "" if settings.structures else "structures to compare on"
    for quantity, start in ERRORS.items():
        bare = QUANTITY[quantity]
        named = "" if labels is None or {bare, quantity} & set(labels) else f"labels of {bare}"
        given = "" if gives is None or {bare, quantity} & set(gives) else f"a teacher with {bare}"
        ends = ("mae", "rmse", "cosine") if quantity == "forces" else ("mae", "rmse")
        for end in ends:
            yield f"{start}_{end}", structures or named
            yield f"teacher_{start}_{end}", structures or _without_teacher(teacher) or given
    for name in ("embedding_mae", "embedding_cosine"):
        yield name, structures
    dynamics = "" if settings.dynamics else "dynamics"
    for name in ("microseconds_per_atom", "nanoseconds_per_day", "bytes_per_atom"):
        yield name, dynamics
    yield "speedup", dynamics or _without_teacher(teacher)
    steps = "" if settings.dynamics and settings.dynamics.steps else "dynamics with steps"
    yield "drift", steps
    yield "rdf_distance", steps or _without_teacher(teacher)
    crystals = "" if settings.crystals else "crystals"
    yield "unrelaxed_crystals", crystals
    yield "volume_error_percent", crystals
    yield "teacher_volume_error_percent", crystals or _without_teacher(teacher)


def _without_teacher(there: bool) -> str:
    return "" if there else "a teacher"
