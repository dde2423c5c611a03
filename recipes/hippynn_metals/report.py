"""Turn a study's records into tables.md: errors, differences of pairs, molecular dynamics.

    python recipes/hippynn_metals/report.py --out runs/mo

A student is compared with a control of its size, share of structures and seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from dynamics_table import HEAD, LIQUIDS, liquid_rows, measured, model_rows
from scipy import stats
from study import HERE, Study, open_study

from kd_plugins.report.tables import format_markdown

CONTROLS = {
    "student": ("control_10", "control_30"),
    "student_20": ("control_10", "control_30", "student"),
    "student_early": ("control_10", "control_30", "student"),
    "student_bad": ("control_10", "control_30", "student"),
    "student_extra": ("control_10", "control_30", "student"),
    "energies_atomic": ("energies", "energies_forces"),
    "energies_forces": ("energies",),
    "energies_both": ("energies", "energies_forces"),
    "born_again": ("teacher",),
}
"""Method to what it is compared with."""
ERRORS = {"force_rmse": (1000, "meV/Å"), "energy_rmse": (1000, "meV/atom")}
"""Error to factor and unit."""

Group = tuple[str, float]
Methods = dict[str, dict[int, Any]]
"""Method to seed to record."""


def records(study: Study) -> dict[Group, Methods]:
    """Return the records by (size, share), in the order of study.yml and methods.yml.

    Raises:
        SystemExit: if there is none.
    """
    paths = sorted((study.out / "runs").glob("*/record.json"))
    if not paths:
        raise SystemExit(f"{study.out}/runs: expected finished runs, got none; run train.py first")
    sizes = list(vars(study.settings.sizes))
    order = list(yaml.safe_load((HERE / "methods.yml").read_text()))
    held = [json.loads(path.read_text()) for path in paths]
    held.sort(key=lambda one: (order.index(one["method"]), one["seed"]))
    held.sort(key=lambda one: (sizes.index(one["size"]), one["share"]))
    found: dict[Group, Methods] = {}
    for one in held:
        methods = found.setdefault((one["size"], one["share"]), {})
        methods.setdefault(one["method"], {})[one["seed"]] = one
    return found


def paired(methods: Methods, method: str, control: str, error: str) -> list[float]:
    """Return the relative differences of a test error in percent, of the seeds that both have."""
    ours, theirs = methods.get(method, {}), methods.get(control, {})
    return [
        100 * (ours[seed]["errors"]["test"][error] / theirs[seed]["errors"]["test"][error] - 1)
        for seed in sorted(ours.keys() & theirs.keys())
    ]


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and a 95 % interval by Student's t.

    >>> [round(x, 2) for x in interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, float("-inf"), float("inf")
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - half, mean + half


def error_rows(group: Group, methods: Methods) -> Iterator[list[str]]:
    """Yield one row a method: mean and standard deviation over seeds."""
    for method, by_seed in methods.items():
        row = [method, group[0], f"{group[1]:g}", str(len(by_seed))]
        for split in ("train", "valid", "test"):
            for name, (factor, _) in ERRORS.items():
                values = [factor * one["errors"][split][name] for one in by_seed.values()]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                row.append(f"{statistics.mean(values):.1f}{spread}")
        yield row


def pair_rows(group: Group, methods: Methods) -> Iterator[list[str]]:
    """Yield one row a student and control: relative difference of test errors, paired by seed."""
    for method in methods:
        for control in CONTROLS.get(method, ()):
            found = {error: paired(methods, method, control, error) for error in ERRORS}
            seeds = len(found["force_rmse"])
            if seeds:
                row = [method, control, group[0], f"{group[1]:g}", str(seeds)]
                yield [*row, *map(verdict, found.values())]


def verdict(differences: Sequence[float]) -> str:
    """Return the interval in words.

    >>> verdict([-2.0, -3.0, -4.0])
    '-3.0 (-5.5 to -0.5) better'
    """
    mean, low, high = interval(differences)
    if len(differences) == 1:
        return f"{mean:+.1f} (one seed)"
    word = "" if low <= 0 <= high else (" better" if high < 0 else " worse")
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){word}"


def sections(study: Study) -> Iterator[str]:
    """Yield the lines of tables.md."""
    found = records(study).items()
    units = [f"{name} ({unit})" for name, (_, unit) in ERRORS.items()]
    head = ["method", "size", "share", "seeds"]
    columns = [f"{split} {unit}" for split in ("train", "valid", "test") for unit in units]
    yield from ("## Errors", "")
    rows = [row for group, one in found for row in error_rows(group, one)]
    yield from (format_markdown([*head, *columns], rows), "")
    yield from ("## Paired differences on test structures, percent (95 % interval)", "")
    head = ["method", "against", "size", "share", "seeds", *ERRORS]
    rows = [row for group, one in found for row in pair_rows(group, one)]
    yield from (format_markdown(head, rows), "")
    models = measured(study)
    if models:
        yield from ("## Molecular dynamics", "")
        yield from (format_markdown(HEAD, list(model_rows(models))), "")
        yield from ("## Liquids", "", format_markdown(LIQUIDS, list(liquid_rows(models))), "")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    study = open_study(parser.parse_args().out)
    lines = "\n".join(sections(study))
    (study.out / "tables.md").write_text(lines)
    print(lines)


if __name__ == "__main__":
    main()
