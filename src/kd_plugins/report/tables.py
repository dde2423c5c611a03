"""Tables of arms: means and spreads over seeds, differences from the control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev

from kd_plugins.report.metrics import TEACHER, metric, rank
from kd_plugins.report.results import ExperimentResults, Potential, RunResults
from kd_plugins.report.statistics import Difference
from kd_plugins.report.sweeps import best_points, swept_arms
from kd_plugins.report.verdicts import difference

Rows = list[list[str]]
Table = tuple[list[str], Rows]
"""Head and rows."""

NOTHING = "–"
"""Cell of what was not measured."""
ERRORS = ("force_rmse", "energy_per_atom_rmse", "volume_error_percent")
OTHERS = ("rdf_distance", "speedup", "drift")
"""What the summary of a model without a control shows: errors first, then others."""
THIN = "\N{NARROW NO-BREAK SPACE}"
NEGLIGIBLE = 1e-12
"""A spread relative to the mean that is rounding alone."""
MARKS_OF_BEST = ("★", "☆")
"""Behind the best mean of a metric, and the second best."""
FEWEST_MARKED = 3
"""Arms from which on the best is marked."""
MOST_DECIMALS = 6
"""Decimals above which a number is shown with an exponent."""

MARKS = {
    **{"\\": r"\\", "&": "&amp;", "<": "&lt;", ">": "&gt;"},
    **{mark: f"\\{mark}" for mark in "|`*[]!~$"},
    **dict.fromkeys("\r\n\t\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "),
}
"""Characters that mean something in Markdown, each with its escaped form."""
ESCAPES = str.maketrans(MARKS)


# --- Tables of an experiment --------------------------------------------------------------------


def arms_table(experiment: ExperimentResults) -> Table:
    """Return an arm a row: the metrics that decide, number of weights, cost of the training.

    The best mean of a metric is marked, and the second best. Numbers of a paper stand in square
    brackets, those of arms that are not trained here in rows of their own. A metric of the paper
    has a column even if it does not decide.
    """
    names = list(dict.fromkeys([*decisive_metrics(experiment), *experiment.published]))
    titles = [_published_title(experiment, name) for name in names]
    head = ["arm", "runs", *titles, "weights", "training (CPU min)"]
    marks = {name: _marks(experiment, name) for name in names}
    rows = [
        [
            arm,
            f"{len(experiment.of(arm))} of {len(experiment.seeds)}",
            *(_marked_cell(experiment, arm, name, marks[name]) for name in names),
            _spread_of_runs(experiment, arm, lambda run: run.weights),
            _spread_of_runs(experiment, arm, _cpu_minutes),
        ]
        for arm in experiment.arms
    ]

    published = dict.fromkeys(arm for name in names for arm in experiment.published.get(name, {}))
    known = {*experiment.arms, *(_name_without(experiment, arm) for arm in experiment.arms)}
    for arm in published:
        if arm not in known:
            cells = [_marked_cell(experiment, arm, name, {}) for name in names]
            rows.append([arm, NOTHING, *cells, NOTHING, NOTHING])
    return head, rows


def best_points_table(experiment: ExperimentResults) -> Table | None:
    """Return each arm's best point on the axis ``best_over``; None without such an axis.

    The best is that of the first metric that decides.
    """
    axis = experiment.best_over
    if axis is None:
        return None

    name = experiment.metrics[0]
    head = ["arm", _published_title(experiment, name), axis]
    rows = []
    for one in best_points(swept_arms(experiment, name), name, axis):
        arm = _joined(one.arm, one.at, axis)
        cell = format_spread(one.values)
        rows.append([arm, _with_published(experiment, arm, name, cell), one.at.get(axis, NOTHING)])
    return head, rows


def differences_table(experiment: ExperimentResults) -> Table:
    """Return an arm a row, without the control: its differences from the control in percent."""
    head = ["arm", *(metric(name).label for name in experiment.metrics)]
    rows = [
        [
            arm,
            *(format_difference(difference(experiment, arm, name)) for name in experiment.metrics),
        ]
        for arm in experiment.arms
        if experiment.control_of(arm) is not None
    ]
    return head, rows


def measurements_table(experiment: ExperimentResults) -> Table:
    """Return a metric a row and an arm a column, with everything that was measured.

    A last column holds what was measured of the teacher, if anything was.
    """
    names = dict.fromkeys(name for run in experiment.runs.values() for name in run.metrics)
    head = ["", *experiment.arms]
    rows = [
        [metric(name).title, *(mean_and_spread(experiment, arm, name) for arm in experiment.arms)]
        for name in names
    ]
    teacher = [_teacher_cell(experiment, name) for name in names]

    computing = {arm: _computing(experiment.of(arm).values(), "student") for arm in experiment.arms}
    if set(computing.values()) != {NOTHING}:
        rows.append(["device and precision", *computing.values()])
        teacher.append(_computing(experiment.runs.values(), "teacher"))
    if set(teacher) <= {NOTHING}:
        return head, rows
    with_teacher = [[*row, cell] for row, cell in zip(rows, teacher, strict=True)]
    return [*head, "the teacher"], with_teacher


def decisive_metrics(experiment: ExperimentResults) -> list[str]:
    """Return the metrics that decide; without a control, `ERRORS` and `OTHERS` that are there.

    Errors are those from the labels, or else from the teacher.
    """
    if experiment.metrics:
        return list(experiment.metrics)

    measured = {name for run in experiment.runs.values() for name in run.metrics}
    errors = [
        next((name for name in (error, TEACHER + error) if name in measured), "")
        for error in ERRORS
    ]
    return [name for name in (*errors, *OTHERS) if name in measured]


def mean_and_spread(experiment: ExperimentResults, arm: str, name: str) -> str:
    """Return an arm's mean ± standard deviation of a metric, in the unit of the page."""
    factor = metric(name).factor
    return format_spread([factor * value for value in experiment.values(arm, name).values()])


def _name_without(experiment: ExperimentResults, arm: str) -> str:
    """Return an arm's name without the label of the axis ``best_over``."""
    point = experiment.point_of(arm)
    return _joined(point.arm, point.at, experiment.best_over)


def _joined(arm: str, at: Mapping[str, str], axis: str | None) -> str:
    return "-".join([arm, *(label for other, label in at.items() if other != axis)])


def _published_title(experiment: ExperimentResults, name: str) -> str:
    title = metric(name).title
    return f"{title} [published]" if experiment.published.get(name) else title


def _with_published(experiment: ExperimentResults, arm: str, name: str, cell: str) -> str:
    number = experiment.published.get(name, {}).get(arm)
    return cell if number is None else f"{cell} [{number}]"


def _marks(experiment: ExperimentResults, name: str) -> dict[str, str]:
    """Return the arms with the best mean and the second best, each with its mark."""
    means = {
        arm: fmean(values.values())
        for arm in experiment.arms
        if (values := experiment.values(arm, name))
    }
    if len(means) < FEWEST_MARKED:
        return {}
    ranked = sorted(means, key=lambda arm: rank(name, means[arm]))
    return dict(zip(ranked, MARKS_OF_BEST, strict=False))


def _marked_cell(
    experiment: ExperimentResults, arm: str, name: str, marks: Mapping[str, str]
) -> str:
    cell = mean_and_spread(experiment, arm, name)
    cell = f"{cell} {marks[arm]}" if arm in marks else cell
    return _with_published(experiment, arm, name, cell)


def _teacher_cell(experiment: ExperimentResults, name: str) -> str:
    """Return a metric of the teacher.

    Runs that share one measurement of the teacher repeat its number, which then counts once.
    """
    values = {run.teacher[name] for run in experiment.runs.values() if name in run.teacher}
    return format_spread([metric(name).factor * value for value in sorted(values)])


def _computing(runs: Iterable[RunResults], side: Potential) -> str:
    """Return the devices and precisions of runs, one unless they were measured apart."""
    found = {str(run.computing[side]) for run in runs if side in run.computing}
    return "; ".join(sorted(found)) or NOTHING


def _spread_of_runs(
    experiment: ExperimentResults, arm: str, value_of: Callable[[RunResults], float | None]
) -> str:
    values = [value_of(run) for run in experiment.of(arm).values()]
    return format_spread([float(value) for value in values if value is not None])


def _cpu_minutes(run: RunResults) -> float | None:
    return None if run.train_cpu_seconds is None else run.train_cpu_seconds / 60


# --- Numbers as text ----------------------------------------------------------------------------


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
        # Three digits would become 1.23e+03 here.
        text = f"{size:,.0f}".replace(",", THIN if size >= 1e4 else "")
    return f"−{text}" if value < 0 else text


def format_spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation, to two digits of the deviation.

    >>> format_spread([45.0, 46.0, 44.0]), format_spread([45.0]), format_spread([])
    ('45.0 ± 1.0', '45', '–')
    """
    if not values:
        return NOTHING

    mean = fmean(values)
    deviation = stdev(values) if len(values) > 1 else 0.0
    if deviation <= NEGLIGIBLE * abs(mean):
        return format_number(mean)

    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    if decimals > MOST_DECIMALS:
        return f"{format_number(mean)} ± {format_number(deviation)}"
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}".replace("-", "−")


def format_difference(found: Difference | None) -> str:
    """Return a difference with its interval: ``−9.3 % (−14.0 to −4.1)``."""
    if found is None:
        return NOTHING

    mean = f"{found.percent:+.1f} %"
    if found.interval is None:
        text = f"{mean} ({found.pairs} seed{'s' * (found.pairs > 1)})"
    else:
        text = f"{mean} ({found.interval[0]:+.1f} to {found.interval[1]:+.1f})"
    return text.replace("-", "−")


# --- Markdown -----------------------------------------------------------------------------------


def format_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in Markdown, in whose cells nothing is markup or HTML.

    Raises:
        ValueError: for a row that is not as long as the head.

    >>> print(format_markdown(["arm", "RMSE"], [["a|b", "1.2"]]))
    | arm | RMSE |
    |---|---|
    | a\|b | 1.2 |
    """
    wrong = [row for row in rows if len(row) != len(head)]
    if wrong:
        raise ValueError(f"expected {len(head)} cells a row as in the head, got {wrong[0]}")

    escaped = [[cell.translate(ESCAPES) for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    rule = "|" + "---|" * len(head)
    return "\n".join([lines[0], rule, *lines[1:]])
