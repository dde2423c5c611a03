"""Elastic moduli of test crystals that have been measured, relaxed-ion (Taniguchi 2024, Table 2).

    python recipes/chgnet_organic/elastic.py --out runs/organic \
        --tensors stiffness_tensors_rev.csv --models teacher pretrained recommended-seed0

Each crystal is relaxed tightly, strained by 1 % in six ways and both signs, its atoms relaxed
again. A record a crystal and model; stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import calculator, models
from study import open_study, write_json
from tqdm import tqdm

from kd_plugins.evaluate import ElasticAverages, elastic_tensor, relax

STRAINS = (-0.01, 0.01)
TOLERANCE = 0.01
"""eV/Å, of all relaxations here."""


def moduli(stiffness: np.ndarray) -> dict[str, float] | None:
    """Return the averages in GPa, or None of a tensor that is not positive definite."""
    try:
        found = ElasticAverages.of(stiffness)
    except ValueError:
        return None
    return {
        "K_RH": found.reuss_hill.bulk,
        "G_RH": found.reuss_hill.shear,
        "E_RH": found.reuss_hill.young,
        "nu": found.poisson_ratio,
        "A": found.anisotropy,
    }


def measured(path: Path) -> dict[str, list[np.ndarray]]:
    """Return compound to the stiffness tensors of experiments and of PFP, (6, 6) in GPa."""
    found: dict[str, list[np.ndarray]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            names = [f"C{i}{j}" for i in range(1, 7) for j in range(1, 7)]
            tensor = np.array([float(row[name]) for name in names]).reshape(6, 6)
            found.setdefault(f"{row['Method']} {row['Compound'].strip()}", []).append(tensor)
    return found


def computed(atoms: Any, model: Any) -> dict[str, Any]:
    """Return the tensor of one crystal, and its averages."""
    rest = relax(atoms, model, force_tolerance=TOLERANCE)
    found = elastic_tensor(rest.atoms, model, STRAINS, force_tolerance=TOLERANCE)
    return {
        "stiffness": found.stiffness.tolist(),
        "moduli": moduli(found.stiffness),
        "relaxed": rest.reason,
        "unstable": list(found.unstable),
        "not_relaxed": list(found.not_relaxed),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--tensors", type=Path, required=True, help="measured tensors, CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study, references = open_study(options.out), measured(options.tensors)
    crystals = [one for one in study.crystals(["test"]) if f"Exp {one.structure_id}" in references]
    for crystal in crystals:
        for method in ("Exp", "NNP"):
            tensors = references.get(f"{method} {crystal.structure_id}", [])
            path = study.out / "elastic" / method / f"{crystal.structure_id}.json"
            write_json(path, {"moduli": [moduli(tensor) for tensor in tensors]})
    todo = [(name, crystal) for name in options.models for crystal in crystals]
    for name, crystal in (bar := tqdm(todo, unit=" tensors")):
        bar.set_description(f"{name}: {crystal.structure_id}")
        path = study.out / "elastic" / name / f"{crystal.structure_id}.json"
        if not path.is_file():
            model = calculator(study, name, models(study)[name])
            write_json(path, computed(crystal.atoms, model))


if __name__ == "__main__":
    main()
