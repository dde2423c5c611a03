"""Tables of arms: means and spreads over seeds, differences from the control."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from kd_plugins.report.metrics import TEACHER, metric
from kd_plugins.report.results import ExperimentResults, RunResults
from kd_plugins.report.statistics import Difference
from kd_plugins.report.verdicts import difference

Rows = list[list[str]]

NOTHING = "–"
ALONE = ("rdf_distance", "speedup", "drift")
"""What is told of a model measured alone, besides errors."""
THIN = "\N{NARROW NO-BREAK SPACE}"


MARKS = {
    **{"\\": r"\\", "&": "&amp;", "<": "&lt;", ">": "&gt;"},
    **{mark: f"\\{mark}" for mark in "|`*[]!~$"},
    **dict.fromkeys("\r\n\t\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "),
}
"""What means something in Markdown, and how a cell has it."""
ESCAPES = str.maketrans(MARKS)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in Markdown, in whose cells nothing is markup or HTML.

    Raises:
        ValueError: for a row that is not as long as the head.

    >>> print(markdown(["arm", "RMSE"], [["a|b", "1.2"]]))
    | arm | RMSE |
    |---|---|
    | a\|b | 1.2 |
    """
    wrong = [row for row in rows if len(row) != len(head)]
    if wrong:
        raise ValueError(f"expected {len(head)} cells a row as in the head, got {wrong[0]}")
    lines = [head, *rows]
    cells = [[cell.translate(ESCAPES) for cell in line] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([text[0], "|" + "---|" * len(head), *text[1:]])


def format_number(value: float) -> str:
    """Return a number with three significant digits.

    >>> format_number(1234.5), format_number(0.012345), format_number(-2e-7), format_number(0)
    ('1234', '0.0123', '−2e-07', '0')
    """
    size = abs(value)
    if size == 0:
        return "0"
    text = f"{size:.3g}"
    if 100 <= size < 1e10:
        text = f"{size:,.0f}".replace(",", THIN if size >= 1e4 else "")
    return f"−{text}" if value < 0 else text


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation, to two digits of the deviation.

    >>> spread([45.0, 46.0, 44.0]), spread([45.0]), spread([])
    ('45.0 ± 1.0', '45', '–')
    """
    if not values:
        return NOTHING
    deviation = stdev(values) if len(values) > 1 else 0.0
    mean = fmean(values)
    if deviation <= 1e-12 * abs(mean):
        return format_number(mean)
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    if decimals > 6:
        return f"{format_number(mean)} ± {format_number(deviation)}"
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}".replace("-", "−")


def interval(found: Difference | None) -> str:
    """Return a difference with its interval: ``−9.3 % (−14.0 to −4.1)``."""
    if found is None:
        return NOTHING
    mean = f"{found.percent:+.1f} %"
    if found.interval is None:
        text = f"{mean} ({found.pairs} seed{'s' * (found.pairs > 1)})"
    else:
        text = f"{mean} ({found.interval[0]:+.1f} to {found.interval[1]:+.1f})"
    return text.replace("-", "−")


def arms(experiment: ExperimentResults) -> tuple[list[str], Rows]:
    """Return head and rows: an arm a row, the metrics that decide, weights, the training's cost."""
    names = decisive(experiment)
    head = ["arm", "runs", *(metric(name).title for name in names), "weights", "training (CPU min)"]
    rows = [
        [
            arm,
            f"{len(experiment.of(arm))} of {len(experiment.seeds)}",
            *(mean_and_spread(experiment, arm, name) for name in names),
            _of_runs(experiment, arm, lambda run: run.weights),
            _of_runs(experiment, arm, _minutes),
        ]
        for arm in experiment.arms
    ]
    return head, rows


def differences(experiment: ExperimentResults) -> tuple[list[str], Rows]:
    """Return head and rows: an arm a row, its differences from the control in percent."""
    head = ["arm", *(metric(name).label for name in experiment.metrics)]
    others = [arm for arm in experiment.arms if arm != experiment.control]
    return head, [
        [arm, *(interval(difference(experiment, arm, name)) for name in experiment.metrics)]
        for arm in others
    ]


def measurements(experiment: ExperimentResults) -> tuple[list[str], Rows]:
    """Return head and rows: a metric a row, an arm a column, with everything that was measured.

    The last column has what was measured of the teacher itself, if anything was.
    """
    found = dict.fromkeys(name for run in experiment.runs.values() for name in run.metrics)
    rows = [
        [metric(name).title, *(mean_and_spread(experiment, arm, name) for arm in experiment.arms)]
        for name in found
    ]
    teacher = [_of_the_teacher(experiment, name) for name in found]
    if set(teacher) <= {NOTHING}:
        return ["", *experiment.arms], rows
    return ["", *experiment.arms, "the teacher"], [
        [*row, cell] for row, cell in zip(rows, teacher, strict=True)
    ]


def _of_the_teacher(experiment: ExperimentResults, name: str) -> str:
    """Return what was measured of it, beside whichever arm; the same number counts once."""
    values = {run.teacher[name] for run in experiment.runs.values() if name in run.teacher}
    return spread([metric(name).factor * value for value in sorted(values)])


def decisive(experiment: ExperimentResults) -> list[str]:
    """Return the metrics that decide; of a model measured alone, errors and `ALONE`.

    Errors are those from the labels, or else from the teacher.
    """
    errors = [
        next((name for name in (bare, TEACHER + bare) if _has(experiment, name)), "")
        for bare in ("force_rmse", "energy_per_atom_rmse", "volume_error_percent")
    ]
    alone = [name for name in (*errors, *ALONE) if _has(experiment, name)]
    return list(experiment.metrics) or alone


def mean_and_spread(experiment: ExperimentResults, arm: str, name: str) -> str:
    """Return an arm's mean ± standard deviation of a metric, in the unit that is shown."""
    factor = metric(name).factor
    return spread([factor * value for value in experiment.values(arm, name).values()])


def _has(experiment: ExperimentResults, name: str) -> bool:
    return any(name in run.metrics for run in experiment.runs.values())


def _minutes(run: RunResults) -> float | None:
    return None if run.train_cpu_seconds is None else run.train_cpu_seconds / 60


def _of_runs(
    experiment: ExperimentResults, arm: str, value: Callable[[RunResults], float | None]
) -> str:
    values = [value(run) for run in experiment.of(arm).values()]
    return spread([float(found) for found in values if found is not None])
