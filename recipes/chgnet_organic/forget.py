"""What a student forgets: inorganic crystals of MPtrj, before and after.

    python recipes/chgnet_organic/forget.py --out runs/organic \
        --mptrj ../shared/data/mptrj/mptrj_random_1k.extxyz.xz

Of inorganic frames with at most 16 atoms some are drawn. Energies are compared with the pretrained
student's, forces with DFT's. A record a model; stopped, the same command goes on.
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


def frames(path: Path) -> list[LabelledStructure]:
    """Return some small inorganic crystals."""
    small = [
        f for f in of_kind(read_structures([path]), "inorganic") if 1 < len(f.atoms) <= LARGEST
    ]
    chosen = set(nested_subset([frame.structure_id for frame in small], COUNT, seed=0))
    return [frame for frame in small if frame.structure_id in chosen]


def predictions(study: Study, name: str, crystals: list[LabelledStructure]) -> dict[str, Any]:
    """Return energies an atom and forces of one model."""
    teacher = CalculatorTeacher(calculator(study, name, models(study)[name]))
    found = [teacher.predict([one.atoms], ["energy", "forces"])[0] for one in tqdm(crystals, name)]
    sizes = [len(frame.atoms) for frame in crystals]
    return {
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    study, crystals = open_study(options.out), frames(options.mptrj)
    for name in models(study):
        path = study.out / "forgetting" / f"{name}.json"
        if not path.is_file():
            write_json(path, predictions(study, name, crystals))


if __name__ == "__main__":
    main()
