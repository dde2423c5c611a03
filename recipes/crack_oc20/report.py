"""Turn the records of a study into results.json, seeds.csv, table.md and arms.png.

    python recipes/crack_oc20/report.py runs/crack_oc20

run.py calls it at its end; by itself it makes the table of the runs that are finished so far.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Column:
    """One figure of the paper's tables.

    Args:
        metric: its name in fairchem's validation.
        title: its heading.
        scale: from fairchem's unit (eV, Å) to the paper's.
        digits: after the point.
    """

    metric: str
    title: str
    scale: float
    digits: int


COLUMNS = (
    Column("embedding_mae", "embedding MAE", 1.0, 3),
    Column("embedding_cosine", "embedding cosine", 1.0, 3),
    Column("energy_mae", "energy MAE (meV)", 1000.0, 1),
    Column("forces_mae", "force MAE (meV/Å)", 1000.0, 1),
)

PAPER: dict[str, tuple[float | None, ...]] = {
    "teacher": (None, None, 39.8, 5.8),
    "vanilla": (0.217, 0.205, 294.5, 5.9),
    "pretrained": (0.311, 0.271, 263.6, 6.1),
    "n2n": (0.078, 0.839, 252.9, 5.8),
    "hessian": (1.062, 0.073, 363.5, 26.1),
    "crack": (0.282, 0.230, 234.1, 6.1),
    "crack_n2n": (0.082, 0.820, 231.7, 5.8),
    "each": (None, None, None, None),
    "instance": (0.258, 0.210, 241.5, 6.1),
    "instance_n2n": (0.081, 0.828, 235.7, 5.8),
}
"""The paper's Table 1 (O*), its instance rows from Table 3; columns as in `COLUMNS`.

It has no figures of each degree by itself."""

Records = dict[str, list[dict[str, Any]]]


def read_records(folder: Path) -> Records:
    """Return the records of each arm by seed, the arms in the paper's order.

    Raises:
        SystemExit: if there are none.
    """
    records: Records = defaultdict(list)
    for path in sorted((folder / "records").glob("*.json")):
        record = json.loads(path.read_text())
        records[record["arm"]].append(record)
    if not records:
        raise SystemExit(f"{folder}: no records of finished runs")
    for of_arm in records.values():
        of_arm.sort(key=lambda record: record["seed"])
    return {arm: records[arm] for arm in PAPER if arm in records}


def values(records: list[dict[str, Any]], column: Column) -> list[float]:
    """Return a column's figure of each seed; the teacher has none for its embeddings."""
    metrics = [record["metrics"] for record in records]
    return [of[column.metric] * column.scale for of in metrics if column.metric in of]


def spread(figures: list[float]) -> float:
    """Return the sample standard deviation, 0 for one figure."""
    return statistics.stdev(figures) if len(figures) > 1 else 0.0


def summary(records: Records) -> dict[str, Any]:
    """Return mean, standard deviation and number of seeds of every metric of each arm."""
    result: dict[str, Any] = {}
    for arm, of_arm in records.items():
        names = of_arm[0]["metrics"]
        result[arm] = {
            name: {
                "mean": statistics.fmean(record["metrics"][name] for record in of_arm),
                "sd": spread([record["metrics"][name] for record in of_arm]),
                "n": len(of_arm),
            }
            for name in names
        }
    return result


def cell(figures: list[float], digits: int) -> str:
    """Return mean ± standard deviation."""
    if not figures:
        return "–"
    mean = f"{statistics.fmean(figures):.{digits}f}"
    return f"{mean} ± {spread(figures):.{digits}f}" if len(figures) > 1 else mean


def table(records: Records) -> str:
    """Return the Markdown table, ours with the paper's figure in brackets."""
    titles = ["arm", "seeds", "parameters", *(f"{c.title} (paper)" for c in COLUMNS)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm, of_arm in records.items():
        cells = [arm, str(len(of_arm)), f"{of_arm[0]['metrics']['n_parameters']:,}"]
        for column, published in zip(COLUMNS, PAPER[arm], strict=True):
            theirs = "" if published is None else f" ({published:.{column.digits}f})"
            cells.append(cell(values(of_arm, column), column.digits) + theirs)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_seeds(records: Records, path: Path) -> None:
    """Write every metric of every run, in fairchem's units."""
    metrics = sorted({name for runs in records.values() for run in runs for name in run["metrics"]})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "seed", "seconds", *metrics])
        writer.writeheader()
        for run in (run for runs in records.values() for run in runs):
            shared = {key: run[key] for key in ("arm", "seed", "seconds")}
            writer.writerow({**shared, **run["metrics"]})


def plot(records: Records, path: Path) -> None:
    """Draw each figure of each arm: a dot a seed, mean and standard deviation as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(COLUMNS), figsize=(13, 4), sharey=True)
    for axis, column in zip(axes, COLUMNS, strict=True):
        for row, (arm, of_arm) in enumerate(records.items()):
            figures = values(of_arm, column)
            if figures:
                color = "tab:gray" if arm == "teacher" else "tab:blue"
                mean, error = statistics.fmean(figures), spread(figures)
                axis.errorbar(mean, row, xerr=error, fmt="o", color=color, capsize=3)
                axis.plot(figures, [row] * len(figures), "|", color="black", markersize=9)
        axis.set_xlabel(column.title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(records)), list(records))
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(folder: Path) -> str:
    """Write all four files and return the table."""
    records = read_records(folder)
    results = {"arms": summary(records), "runs": [run for runs in records.values() for run in runs]}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_seeds(records, folder / "seeds.csv")
    (folder / "table.md").write_text(table(records))
    plot(records, folder / "arms.png")
    return table(records)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the study's folder (run.py's --out)")
    print(report(parser.parse_args().folder), end="")


if __name__ == "__main__":
    main()
