"""Molecular dynamics of trained models: time and memory per atom, energy drift, the liquid.

    python recipes/hippynn_metals/dynamics.py --out runs/mo --models teacher-large-1-seed0 \
        student-tiny-1-seed0 control_30-tiny-1-seed0

A record a model; stopped, the same command goes on, and further velocity seeds are added. Compare
times of one call only. Liquids of one model with other velocities show how far apart two radial
distribution functions are by chance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase import units
from hippynn.interfaces.ase_interface import calculator_from_model
from liquid import crystal, molten
from study import Study, open_study, write_json
from tqdm import tqdm

from kd_plugins.evaluate import autograd_bytes, equilibrated, nve, rdf
from kd_plugins.hippynn.folder import load_model

SKIN = 0.5
"""Å; hippynn's default of 1 gives a solid three times the pairs that it needs."""
REPEATS = (3, 5, 8)
"""Cubic cells along each edge, for time and memory."""
EQUILIBRATION, STEPS = 500, 2000
"""Of 1 fs: at the liquid's temperature and at constant energy."""


def calculator(folder: Path) -> Any:
    """Return a run's model as an ASE calculator."""
    made = calculator_from_model(load_model(folder), en_unit=units.eV, skin=SKIN)
    made.to(torch.float32)
    return made


def costs(study: Study, folder: Path, repeat: int) -> dict[str, Any]:
    """Return time and memory per atom and the drift at 300 K."""
    atoms = crystal(study, study.settings.lattice.constant, repeat)
    run = nve(atoms, calculator(folder), 40, temperature=600, seed=0, progress=False)
    return {
        "atoms": len(atoms),
        "microseconds": run.microseconds_per_atom,
        "bytes": autograd_bytes(atoms, calculator(folder)) / len(atoms),
        "drift": run.drift,
    }


def liquid(study: Study, folder: Path, seed: int) -> dict[str, Any]:
    """Return the radial distribution function of the liquid at its temperature, and its drift."""
    model, atoms = calculator(folder), ase.io.read(molten(study, seed))
    temperature = study.settings.lattice.temperature
    atoms = equilibrated(
        atoms,
        model,
        EQUILIBRATION,
        temperature=temperature,
        seed=seed,
        friction=0.02,
        progress=False,
    )
    run = nve(atoms, model, STEPS, temperature=None, seed=seed, progress=False)
    found = rdf(run.frames, cutoff=6.0, bins=60)
    return {
        "velocity_seed": seed,
        "distances": found.distances.tolist(),
        "values": found.values.tolist(),
        "temperature": float(run.temperatures.mean()),
        "drift": run.drift,
    }


def measure(study: Study, name: str, repeats: Sequence[int], seeds: Sequence[int]) -> None:
    """Add to a model's record what it lacks."""
    path, folder = study.out / "dynamics" / f"{name}.json", study.out / "runs" / name
    if not (folder / "record.json").is_file():
        raise SystemExit(f"{folder} holds no finished run; run train.py first")
    record = json.loads(path.read_text()) if path.is_file() else {"liquids": []}
    if repeats and "costs" not in record:
        record["costs"] = [costs(study, folder, repeat) for repeat in repeats]
        write_json(path, record)
    for seed in sorted(set(seeds) - {one["velocity_seed"] for one in record["liquids"]}):
        record["liquids"].append(liquid(study, folder, seed))
        write_json(path, record)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--models", nargs="+", required=True, help="folders of OUT/runs")
    parser.add_argument("--repeats", type=int, nargs="+", default=REPEATS)
    parser.add_argument("--velocity-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-liquid", action="store_true", help="time and memory only")
    parser.add_argument("--no-costs", action="store_true", help="liquids only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.out)
    seeds = [] if options.no_liquid else options.velocity_seeds
    repeats = [] if options.no_costs else options.repeats
    for name in (bar := tqdm(options.models, unit=" models")):
        bar.set_description(name)
        measure(study, name, repeats, seeds)


if __name__ == "__main__":
    main()
