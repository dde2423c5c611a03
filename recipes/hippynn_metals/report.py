"""Turn the records of a study into tables.md: errors, and differences of pairs with intervals.

    python recipes/hippynn_metals/report.py --out runs/mo

A student is compared with a control of its size, share of structures and seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from study import open_study

CONTROLS = {
    "student": ("control_10", "control_30"),
    "student_20": ("control_10", "control_30"),
    "student_early": ("control_10", "control_30"),
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


def records(out: Path) -> dict[Group, dict[str, dict[int, Any]]]:
    """Return (size, share) to method to seed to record."""
    found: dict[Group, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted((out / "runs").glob("*/record.json")):
        one = json.loads(path.read_text())
        found[one["size"], one["share"]][one["method"]][one["seed"]] = one
    return found


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


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def error_rows(group: Group, methods: dict[str, dict[int, Any]]) -> Iterator[list[str]]:
    """Yield one row a method: mean and standard deviation over seeds."""
    for method, by_seed in methods.items():
        row = [method, group[0], f"{group[1]:g}", str(len(by_seed))]
        for split in ("train", "valid", "test"):
            for name, (factor, _) in ERRORS.items():
                values = [factor * one["errors"][split][name] for one in by_seed.values()]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                row.append(f"{statistics.mean(values):.1f}{spread}")
        yield row


def pair_rows(group: Group, methods: dict[str, dict[int, Any]]) -> Iterator[list[str]]:
    """Yield one row a student and control: relative difference of test errors, paired by seed."""
    for method, controls in CONTROLS.items():
        for control in controls:
            seeds = sorted(set(methods.get(method, {})) & set(methods.get(control, {})))
            if not seeds:
                continue
            row = [method, control, group[0], f"{group[1]:g}", str(len(seeds))]
            for name in ERRORS:
                ours, theirs = (
                    np.array([methods[one][seed]["errors"]["test"][name] for seed in seeds])
                    for one in (method, control)
                )
                mean, low, high = interval((100 * (ours / theirs - 1)).tolist())
                verdict = "" if low <= 0 <= high else (" better" if high < 0 else " worse")
                row.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){verdict}")
            yield row


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    out = open_study(parser.parse_args().out).out
    found = sorted(records(out).items())
    units = [f"{name} ({unit})" for name, (_, unit) in ERRORS.items()]
    head = ["method", "size", "share", "seeds"]
    head += [f"{split} {unit}" for split in ("train", "valid", "test") for unit in units]
    lines = ["## Errors", ""]
    lines += table(head, (row for group, one in found for row in error_rows(group, one)))
    lines += ["## Paired differences on test structures, percent (95 % interval)", ""]
    head = ["method", "against", "size", "share", "seeds", *ERRORS]
    lines += table(head, (row for group, one in found for row in pair_rows(group, one)))
    (out / "tables.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
