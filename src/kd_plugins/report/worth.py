"""What the best student is worth: its errors, speed, size and g(r) beside its teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from kd_plugins.report.metrics import TEACHER, metric, rank
from kd_plugins.report.places import difference_in_words, places
from kd_plugins.report.results import ExperimentResults
from kd_plugins.report.statistics import FEWEST_PAIRS, mean_interval
from kd_plugins.report.tables import THIN, decisive_metrics, format_number

PERCENT, FORCE, ENERGY = (
    f"{TEACHER}{name}" for name in ("force_rmse_percent", "force_rmse", "energy_per_atom_rmse")
)
"""Errors from the teacher."""
OF_TEACHER = (
    *(PERCENT, FORCE, f"{TEACHER}force_r2", ENERGY, f"{TEACHER}energy_per_atom_r2"),
    *("speedup", "weight_ratio", "memory_ratio", "rdf_noise_ratio"),
)
"""Metrics that set a student beside its teacher."""
AS_CLOSE = 1.5
"""A student's g(r) counts as close to its teacher's if the interval of its distance from it ends
below so many times the distance between two runs of the teacher."""
AS_MANY = 0.01
"""Relative difference of two numbers that are called equal."""


@dataclass(frozen=True)
class Estimate:
    """A metric's mean over training seeds.

    Args:
        mean: as stored, in ASE's units.
        interval: Student's t, 95 %; None for too few seeds.
        seeds: how many.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True)
class Worth:
    """The best student beside its teacher.

    Args:
        arm: its name.
        sentence: the numbers in words.
        numbers: metric to estimate, of the metric that chose the arm and of `OF_TEACHER`.
    """

    arm: str
    sentence: str
    numbers: Mapping[str, Estimate]


def worth_of_best(experiment: ExperimentResults) -> Worth | None:
    """Return what the best arm is worth; None where nothing was measured beside a teacher.

    The best arm has the best mean of the first metric that decides. The teacher itself, and arms
    without that metric, are no candidates.
    """
    arm = _best_arm(experiment)
    if arm is None:
        return None

    first = decisive_metrics(experiment)[0]
    numbers = {
        name: _estimate(list(values.values()))
        for name in dict.fromkeys((first, *OF_TEACHER))
        if (values := experiment.values(arm, name))
    }
    if not numbers.keys() & set(OF_TEACHER):
        return None

    parts = [_first_metric(experiment, first, numbers), *_parts(numbers)]
    parts.append(difference_in_words(places(experiment), arm, "teacher"))
    sentence = f"{_beginning(experiment, arm, numbers)}: {'; '.join(filter(None, parts))}."
    return Worth(arm, sentence, numbers)


def _best_arm(experiment: ExperimentResults) -> str | None:
    names = decisive_metrics(experiment)
    if not names:
        return None

    teacher = experiment.provenance.get("teacher fingerprint")
    means = {
        arm: fmean(values.values())
        for arm in experiment.arms
        if (values := experiment.values(arm, names[0]))
        and all(
            teacher is None or run.fingerprint != teacher for run in experiment.of(arm).values()
        )
    }
    return min(means, key=lambda arm: rank(names[0], means[arm]), default=None)


def _estimate(values: list[float]) -> Estimate:
    enough = len(values) >= FEWEST_PAIRS
    return Estimate(fmean(values), mean_interval(values) if enough else None, len(values))


# --- Words --------------------------------------------------------------------------------------


def _beginning(experiment: ExperimentResults, arm: str, numbers: Mapping[str, Estimate]) -> str:
    words = str(experiment.provenance.get("teacher") or "").split()
    # Of `chgnet model=...` the name; words of a user's own as they are.
    name = " ".join(["", *(words[:1] if any("=" in word for word in words) else words)])
    who = f"best student {arm}" if experiment.control is not None else arm

    n_seeds = max(estimate.seeds for estimate in numbers.values())
    seeds = f"{n_seeds} seed{'s' * (n_seeds > 1)}"
    seeds += ", in brackets 95 %" if n_seeds >= FEWEST_PAIRS else ", too few for intervals"
    beside = f"{who} beside its teacher{name}"
    return f"{beside} ({seeds})" if experiment.control is not None else beside


def _first_metric(experiment: ExperimentResults, name: str, numbers: Mapping[str, Estimate]) -> str:
    """Return the metric that chose the arm, and the teacher's own; empty if it comes anyway."""
    if name in OF_TEACHER:
        return ""

    described = metric(name)
    runs = experiment.runs.values()
    of_teacher = {run.teacher[name] for run in runs if name in run.teacher}
    text = f"{described.label} {_number(numbers[name], described.factor)} {described.unit}".strip()
    if of_teacher:
        itself = format_number(described.factor * fmean(of_teacher))
        text += f" (the teacher's own: {itself})"
    return text


def _parts(numbers: Mapping[str, Estimate]) -> Iterator[str]:
    errors = [*_force_error(numbers), *_energy_error(numbers)]
    if errors:
        yield ", ".join(errors)

    costs = [*_costs(numbers)]
    if costs:
        yield ", ".join(costs)

    if "rdf_noise_ratio" in numbers:
        yield _noise_in_words(numbers["rdf_noise_ratio"])


def _force_error(numbers: Mapping[str, Estimate]) -> Iterator[str]:
    if PERCENT in numbers:
        r_squared = _r_squared(numbers.get(f"{TEACHER}force_r2"))
        yield f"forces off by {_number(numbers[PERCENT])} % of the teacher's rms{r_squared}"
    elif FORCE in numbers:  # of a folder of version 0.1.0
        yield f"forces off by {_number(numbers[FORCE], metric(FORCE).factor)} meV/Å"


def _energy_error(numbers: Mapping[str, Estimate]) -> Iterator[str]:
    if ENERGY in numbers:
        r_squared = _r_squared(numbers.get(f"{TEACHER}energy_per_atom_r2"))
        yield f"energies by {_number(numbers[ENERGY], metric(ENERGY).factor)} meV/atom{r_squared}"


def _r_squared(estimate: Estimate | None) -> str:
    """Return the mean alone, since the interval of the error says the same."""
    return "" if estimate is None else f", R² {_r_squared_digits(estimate.mean)}"


def _r_squared_digits(value: float) -> str:
    """Return R² with two digits of what is not explained.

    >>> _r_squared_digits(0.98532), _r_squared_digits(0.99976), _r_squared_digits(-1.234)
    ('0.985', '0.99976', '−1.23')
    """
    decimals = 2
    while decimals < 6 and 0 < 1 - value < 10 ** (1 - decimals):
        decimals += 1
    return f"{value:.{decimals}f}".replace("-", "−")


def _costs(numbers: Mapping[str, Estimate]) -> Iterator[str]:
    if "speedup" in numbers:
        yield f"a step {_number(numbers['speedup'])} times as fast"
    for name, words in (
        ("weight_ratio", ("as many weights", "fewer weights", "more weights")),
        ("memory_ratio", ("as much memory", "less memory", "more memory")),
    ):
        if name in numbers:
            yield _ratio_in_words(numbers[name].mean, *words)


def _ratio_in_words(ratio: float, equal: str, less: str, more: str) -> str:
    """Return teacher over student in words.

    >>> _ratio_in_words(253.4, "as many", "fewer", "more"), _ratio_in_words(0.5, "=", "<", "more")
    ('253 times fewer', '2 times more')
    """
    if abs(ratio - 1) < AS_MANY:
        return equal
    return f"{format_number(max(ratio, 1 / ratio))} times {less if ratio > 1 else more}"


def _noise_in_words(estimate: Estimate) -> str:
    """Return how far the student's g(r) is from the teacher's, beside the teacher's own noise."""
    times = f"{_number(estimate)} times as far"
    low, high = estimate.interval or (estimate.mean, estimate.mean)
    if low > 1:
        return f"g(r) {times} from the teacher's as two runs of the teacher are from each other"
    if high <= AS_CLOSE:
        return (
            f"g(r) as close to the teacher's as two runs of the teacher are to each other, {times}"
        )
    return (
        f"g(r) not shown to be further from the teacher's than two runs of the teacher are from "
        f"each other, {times}"
    )


def _number(estimate: Estimate, factor: float = 1.0) -> str:
    """Return mean and interval: ``12.3 (11.8 to 12.8)``."""
    mean = format_number(factor * estimate.mean)
    if estimate.interval is not None and estimate.interval[0] < estimate.interval[1]:
        # Student's t may reach below 0, where no error and no ratio is.
        low, high = (format_number(factor * max(end, 0.0)) for end in estimate.interval)
        mean = f"{mean} ({low} to {high})"
    return mean.replace(THIN, " ")
