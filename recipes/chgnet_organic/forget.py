"""What a student forgets: inorganic crystals of MPtrj, before and after.

    python recipes/chgnet_organic/forget.py --runs runs/organic_compare --out runs/organic \
        --mptrj ../shared/data/mptrj/mptrj_random_1k.extxyz.xz

Of inorganic frames with at most 16 atoms some are drawn. Energies are compared with the pretrained
student's, forces with DFT's. A record a model; stopped, the same command goes on. The table has
mean, median and the crystals that broke, which a mean hides: one of forty can be off by 40 eV/Å.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from study import open_study, write_json
from tqdm import tqdm

from kd_plugins.sampling import nested_subset, of_kind
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.teachers import load_teacher

COUNT, LARGEST = 40, 16


def small_inorganic(path: Path) -> list[LabelledStructure]:
    """Return all small inorganic crystals of a file."""
    found = of_kind(read_structures([path]), "inorganic")
    return [one for one in found if 1 < len(one.atoms) <= LARGEST]


def frames(path: Path) -> list[LabelledStructure]:
    """Return those that a student is tested on."""
    small = small_inorganic(path)
    chosen = set(nested_subset([frame.structure_id for frame in small], COUNT, seed=0))
    return [frame for frame in small if frame.structure_id in chosen]


def predictions(name: str, potential: str, crystals: list[LabelledStructure]) -> dict[str, Any]:
    """Return energies an atom and errors of the forces of one model."""
    teacher = load_teacher(potential)
    found = [teacher.predict([one.atoms], ["energy", "forces"])[0] for one in tqdm(crystals, name)]
    pairs = list(zip(found, crystals, strict=True))
    return {
        "ids": [one.structure_id for one in crystals],
        "energy_per_atom": [float(one["energy"]) / len(frame.atoms) for one, frame in pairs],
        "force_mae": [
            float(np.abs(np.asarray(one["forces"]) - frame.labels["forces"]).mean())
            for one, frame in pairs
        ],
    }


def spread(values: list[float]) -> str:
    """Return mean and standard deviation over the seeds.

    >>> spread([1.0, 3.0])
    '2.0 ± 1.4'
    """
    mean = f"{fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.1f}"


def broken(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return the crystals whose forces are more than twice and 30 meV/Å worse than untrained."""
    errors = zip(before["ids"], after["force_mae"], before["force_mae"], strict=True)
    return [name for name, now, then in errors if now > 2 * then and now > then + 0.03]


def table(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, an arm a row."""
    head = "model|seeds|energy moved by (meV/atom)|force MAE (meV/Å): mean|median|broken"
    yield f"| {head.replace('|', ' | ')} |"
    yield f"|{'---|' * 6}"
    before = records["pretrained"]
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for name, record in records.items():
        arms.setdefault(name.rpartition("-seed")[0] or name, []).append(record)

    for arm, seeds in arms.items():
        moved = [
            1000 * np.mean(np.abs(np.subtract(one["energy_per_atom"], before["energy_per_atom"])))
            for one in seeds
        ]
        errors = [1000 * np.array(one["force_mae"]) for one in seeds]
        names = [broken(one, before) for one in seeds]
        which = ", ".join(sorted({name for of_seed in names for name in of_seed}))
        cells = [arm, str(len(seeds)), spread([float(one) for one in moved])]
        cells += [spread([float(kind(one)) for one in errors]) for kind in (fmean, median)]
        cells.append(
            f"{spread([float(len(one)) for one in names])} {which and f'({which})'}".strip()
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--mptrj", type=Path, required=True, help="frames with DFT forces")
    parser.add_argument("--runs", type=Path, help="folder of a comparison, with its students")
    options = parser.parse_args()
    torch.set_num_threads(1)

    study, crystals = open_study(options.out), frames(options.mptrj)
    models = {"pretrained": study.settings.labels, "teacher": study.settings.teacher}
    students = sorted(options.runs.glob("runs/*/seed*/last.pth.tar")) if options.runs else []
    models |= {f"{p.parts[-3]}-{p.parts[-2]}": f"chgnet model={p}" for p in students}

    records = {}
    for name, potential in models.items():
        path = study.out / "forgetting" / f"{name}.json"
        if not path.is_file():
            write_json(path, predictions(name, potential, crystals))
        records[name] = json.loads(path.read_text())
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
