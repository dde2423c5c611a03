"""What a student forgets: inorganic crystals of MPtrj, before and after.

    python recipes/chgnet_organic/forget.py --out runs/organic \
        --mptrj ../shared/data/mptrj/mptrj_random_1k.extxyz.xz

Of inorganic frames with at most 16 atoms some are drawn. Energies are compared with the pretrained
student's, forces with DFT's. A record a model; stopped, the same command goes on. ``--runs`` adds
the students of a ``kd-plugins compare``. report.py makes the table: mean, median, and the crystals
that broke, which a mean hides: one of forty can be off by 40 eV/Å.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import calculator, models
from study import Study, open_study, write_json
from tqdm import tqdm

from kd_plugins.sampling import nested_subset, of_kind
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.teachers import CalculatorTeacher

COUNT, LARGEST = 40, 16


def small_inorganic(path: Path) -> list[LabelledStructure]:
    """Return all small inorganic crystals of a file."""
    return [
        one
        for one in of_kind(read_structures([path]), "inorganic")
        if 1 < len(one.atoms) <= LARGEST
    ]


def frames(path: Path) -> list[LabelledStructure]:
    """Return those that a student is tested on."""
    small = small_inorganic(path)
    chosen = set(nested_subset([frame.structure_id for frame in small], COUNT, seed=0))
    return [frame for frame in small if frame.structure_id in chosen]


def predictions(
    study: Study, name: str, checkpoint: Path | None, crystals: list[LabelledStructure]
) -> dict[str, Any]:
    """Return energies an atom and errors of the forces of one model."""
    teacher = CalculatorTeacher(calculator(study, name, checkpoint))
    found = [teacher.predict([one.atoms], ["energy", "forces"])[0] for one in tqdm(crystals, name)]
    sizes = [len(frame.atoms) for frame in crystals]
    return {
        "ids": [one.structure_id for one in crystals],
        "energy_per_atom": [float(one["energy"]) / n for one, n in zip(found, sizes, strict=True)],
        "force_mae": [
            float(np.abs(one["forces"] - frame.labels["forces"]).mean())
            for one, frame in zip(found, crystals, strict=True)
        ],
    }


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
    for name, checkpoint in models(study, options.runs).items():
        path = study.out / "forgetting" / f"{name}.json"
        if not path.is_file():
            write_json(path, predictions(study, name, checkpoint, crystals))


if __name__ == "__main__":
    main()
