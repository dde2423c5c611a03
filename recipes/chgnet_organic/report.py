"""Turn the records of a study into tables.md and figures.

    python recipes/chgnet_organic/report.py --out runs/organic

By itself it makes what there is so far: volumes.png, ratios.png, curves.png and sizes.png.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import figures
import yaml
from study import HERE

PAPER_ARMS = {"pretrained": "13.65", "teacher": "0.52 (PFP)", "paper": "2.03 (0.09), N = 5000"}
"""Paper 004, text and Table 1: mean volume error on 477 COD crystals."""
PAPER = yaml.safe_load((HERE / "paper_table1.yml").read_text())
"""Paper 004, Table 1: (r_HE, r_HF) to volume error and its deviation, in percent."""

Records = dict[str, dict[str, Any]]


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Return mean and standard deviation over seeds.

    >>> spread([1.0, 3.0])
    '2.0 ± 1.4'
    """
    values = list(values)
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def by_arm(names: Iterable[str]) -> dict[str, list[str]]:
    """Return arm to its students, by seed."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        found[name.rpartition("-seed")[0] or name].append(name)
    return dict(found)


def read(folder: Path) -> Records:
    """Return the records of a folder by the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def relaxed(out: Path, name: str = "relaxed") -> dict[str, Records]:
    """Return model to crystal to its relaxation, of the models whose crystals are all done."""
    found = {path.name: read(path) for path in sorted((out / name).glob("*"))}
    most = max((len(one) for one in found.values()), default=0)
    return {name: one for name, one in found.items() if len(one) == most}


def volume_row(name: str, members: list[str], found: dict[str, Records]) -> list[str]:
    """Return one arm's row of the table of relaxations."""
    teacher = found["teacher"]
    errors = [[one["error_percent"] for one in found[member].values()] for member in members]
    apart = [
        [
            abs(100 * (one["volume"] / teacher[crystal]["volume"] - 1))
            for crystal, one in found[m].items()
        ]
        for m in members
    ]
    failed = sum(not one["converged"] for m in members for one in found[m].values())
    steps = [statistics.mean(one["steps"] for one in found[m].values()) for m in members]
    rmsd = [statistics.mean(one["rmsd15"] for one in found[m].values()) for m in members]
    return [
        name,
        str(len(members)),
        spread([statistics.mean(map(abs, one)) for one in errors], 2),
        spread([statistics.mean(one) for one in errors], 2),
        spread([statistics.median(map(abs, one)) for one in errors], 2),
        spread([statistics.mean(one) for one in apart], 2),
        spread(rmsd, 3),
        spread(steps, 0),
        str(failed),
        PAPER_ARMS.get(name, "–"),
    ]


def _place(arm: str) -> tuple[int]:
    return (ORDER.index(arm) if arm in ORDER else len(ORDER),)


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


ORDER = ("pretrained", "teacher", "pretrained_labels", "paper", "soft", "recommended")
"""Of the rows of a table; other arms come last."""


def volume_table(out: Path, name: str = "relaxed") -> Iterator[str]:
    """Yield the table of relaxed volumes."""
    found = relaxed(out, name)
    if "teacher" not in found:
        return
    arms = sorted(by_arm(found).items(), key=lambda item: (*_place(item[0]), item[0]))
    head = "student|seeds|mean abs dV (%)|mean dV (%)|median abs dV (%)|from the teacher's (%)"
    head += "|RMSD15 (Å)|steps|not converged|paper: dV (%)"
    yield from table(head.split("|"), (volume_row(*arm, found) for arm in arms))


def scan_table(out: Path) -> Iterator[str]:
    """Yield the table of volumes by scans, of every student after its last and its best epoch."""
    found = read(out / "scanned")
    rows = []
    for arm, members in by_arm(found).items():
        records = [{"volumes": found[member]} for member in members]
        means = [spread(scan_means(records, one)) for one in ("teacher", "experiment")]
        rows.append([arm, str(len(members)), *means])
    if rows:
        head = ["student", "seeds", "from the teacher's volume (%)", "from experiment (%)"]
        yield from table(head, rows)


def scan_means(records: list[dict[str, Any]], reference: str) -> list[float]:
    """Return each student's mean absolute volume error by scans, in percent."""
    return [
        statistics.mean(abs(one[reference]) for one in record["volumes"].values())
        for record in records
    ]


def sweep(out: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return arm to its records, by seed."""
    found = read(out / name)
    return {arm: [found[member] for member in members] for arm, members in by_arm(found).items()}


def ratio_table(out: Path) -> Iterator[str]:
    """Yield Table 1: hard ratios."""
    head = "r_HE|r_HF|seeds|from the teacher's volume (%)|from experiment (%)"
    head += "|soft energy MAE (meV/atom)|hard energy MAE (meV/atom)|paper: dV (%)"
    rows = []
    for arm, records in sweep(out, "ratios").items():
        hard = records[0]["hard"]
        key = "hard" if arm == "hard" else f"{hard.get('energy', 0)} {hard.get('forces', 0)}"
        last = [record["errors"][-1] for record in records]
        rows.append(
            [
                *(["1, soft 0", "1, soft 0"] if arm == "hard" else key.split()),
                str(len(records)),
                spread(scan_means(records, "teacher")),
                spread(scan_means(records, "experiment")),
                spread([1000 * one["val_soft_e"] for one in last]),
                spread([1000 * one["val_hard_e"] for one in last]),
                PAPER.get(key, "–"),
            ]
        )
    if rows:
        yield from table(head.split("|"), sorted(rows, key=_by_ratios))


def _by_ratios(row: list[str]) -> tuple[float, float]:
    """Return what sorts a row of Table 1; hard targets alone come last."""
    return (float("inf"), 0.0) if "soft" in row[0] else (float(row[0]), float(row[1]))


def size_table(out: Path) -> Iterator[str]:
    """Yield N_train at fixed epochs and at fixed steps."""
    rows = []
    for arm, records in sweep(out, "sizes").items():
        kind, budget, _ = arm.split("_")
        loss = {"ef": "energy, forces", "efs": "energy, forces, 0.1 stress"}[kind]
        steps = f"{records[0]['steps_taken']:,}"
        errors = spread(scan_means(records, "teacher"))
        what = "100 epochs" if budget == "epochs" else "2,400 steps"
        rows.append([loss, what, f"{records[0]['structures']}", steps, f"{len(records)}", errors])
    if rows:
        head = [
            "soft targets",
            "budget",
            "N_train",
            "steps",
            "seeds",
            "from the teacher's volume (%)",
        ]
        yield from table(head, sorted(rows, key=lambda row: (row[0], row[1], int(row[2]))))


def forgetting_table(out: Path) -> Iterator[str]:
    """Yield what inorganic crystals become: means, medians, and which broke."""
    found = read(out / "forgetting")
    if "pretrained" not in found:
        return
    before = found["pretrained"]
    rows = []
    for arm, members in by_arm(found).items():
        moved = [
            statistics.mean(
                1000 * abs(a - b)
                for a, b in zip(found[m]["energy_per_atom"], before["energy_per_atom"], strict=True)
            )
            for m in members
        ]
        means = [1000 * statistics.mean(found[m]["force_mae"]) for m in members]
        medians = [1000 * statistics.median(found[m]["force_mae"]) for m in members]
        names = [broken(found[m], before) for m in members]
        which = ", ".join(sorted({name for of_seed in names for name in of_seed}))
        numbers = spread([float(len(one)) for one in names])
        row = [arm, str(len(members)), spread(moved), spread(means), spread(medians)]
        rows.append([*row, f"{numbers} {f'({which})' if which else ''}".rstrip()])
    head = (
        "model|seeds|energy moved by (meV/atom)|force MAE against DFT (meV/Å): mean|median|broken"
    )
    yield from table(head.split("|"), rows)


def broken(after: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return the crystals whose forces are more than twice and 30 meV/Å worse than untrained."""
    ids = before.get("ids") or [str(place) for place in range(len(before["force_mae"]))]
    errors = zip(ids, after["force_mae"], before["force_mae"], strict=True)
    return [name for name, now, then in errors if now > 2 * then and now > then + 0.03]


def error_table(out: Path, runs: Path | None) -> Iterator[str]:
    """Yield the errors on the selection crystals against the teacher, untrained ones first."""
    found: dict[str, list[list[float]]] = {"untrained": []}
    for path in sorted((out / "students").glob("*/record.json")):
        record = json.loads(path.read_text())
        found["untrained"].append(_errors(record.get("untrained", {})))
        found.setdefault(record["arm"], []).append(_errors(record["errors"][-1]))
    for path in [] if runs is None else sorted((runs / "runs").glob("*/seed*/curves.json")):
        curves = json.loads(path.read_text())
        names = [f"valid soft {name}" for name in ("energy", "forces", "stress")]
        ends = [
            [curves[name]["values"][place] if name in curves else math.nan for name in names]
            for place in (0, -1)
        ]
        found["untrained"].append(ends[0])
        found.setdefault(path.parts[-3], []).append(ends[1])

    rows = [
        [
            arm,
            str(len(seeds)),
            *(
                spread([factor * one[column] for one in seeds], 2)
                for column, factor in enumerate((1000, 1000, 1))
            ),
        ]
        for arm, of_arm in found.items()
        if (seeds := [one for one in of_arm if not all(map(math.isnan, one))])
    ]
    if len(rows) > 1:
        head = "student|runs|energy MAE (meV/atom)|force MAE (meV/Å)|stress MAE (GPa)"
        yield from table(head.split("|"), rows)


def _errors(found: dict[str, float]) -> list[float]:
    return [found.get(f"val_soft_{letter}", math.nan) for letter in "efs"]


def elastic_table(out: Path) -> Iterator[str]:
    """Yield the moduli of the crystals that have been measured."""
    rows = []
    for folder in sorted((out / "elastic").glob("*")):
        for crystal, record in read(folder).items():
            held = record["moduli"] if isinstance(record["moduli"], list) else [record["moduli"]]
            values = [one for one in held if one is not None]
            names = ("K_RH", "G_RH", "E_RH", "nu", "A")
            row = [spread([one[name] for one in values], 2) if values else "–" for name in names]
            note = ", ".join(record.get("unstable", [])) or (
                "" if values else "not positive definite"
            )
            rows.append([crystal, folder.name, *row, note])
    if rows:
        head = ["crystal", "from", "K_RH (GPa)", "G_RH", "E_RH", "nu", "A", "unstable along"]
        yield from table(head, sorted(rows))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--runs", type=Path, help="folder of a comparison, with its students")
    options = parser.parse_args()
    out = options.out
    parts: dict[str, Callable[[Path], Iterator[str]]] = {
        "Errors on the selection crystals": partial(error_table, runs=options.runs),
        "Relaxed volumes": volume_table,
        "Relaxed volumes, 0.005 eV/Å": partial(volume_table, name="relaxed_0.005"),
        "Volumes by scans": scan_table,
        "Hard ratios": ratio_table,
        "N_train": size_table,
        "Elastic moduli": elastic_table,
        "Forgetting": forgetting_table,
    }
    lines = []
    for title, part in parts.items():
        found = list(part(out))
        lines += [f"## {title}", "", *found] if found else []
    (out / "tables.md").write_text("\n".join(lines))
    print("\n".join(lines))
    figures.draw(out, relaxed(out), sweep(out, "ratios"), sweep(out, "sizes"))


if __name__ == "__main__":
    main()
