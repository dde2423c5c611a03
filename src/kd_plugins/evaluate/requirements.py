"""Bars that a potential must clear, for a script or a CI to decide by."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
