"""Write the liquid that every model's dynamics start from.

    python recipes/hippynn_metals/liquid.py --data ../shared/data/metals --out runs/mo

It stands in OUT/liquids/seed<k>.extxyz and is written once.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import ase.io
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.data import chemical_symbols
from study import HERE, Study, open_study

from kd_plugins.evaluate import equilibrated
from kd_plugins.files import write_bytes

MELTING = 500
"""Steps of 1 fs."""


def crystal(study: Study, constant: float, repeat: int) -> Atoms:
    """Return the metal's crystal."""
    lattice = study.settings.lattice
    symbol = chemical_symbols[study.settings.element]
    return bulk(symbol, lattice.structure, a=constant, cubic=True) * ((repeat,) * 3)


def molten(study: Study, seed: int, progress: bool = False) -> Path:
    """Write a liquid of Lennard-Jones spheres, the same for every model, once; return its file.

    What melts a metal at once, 8,000 K for molybdenum, also pushes some of its atoms into each
    other with a model that has seen none so near.
    """
    path = study.out / "liquids" / f"seed{seed}.extxyz"
    if path.is_file():
        return path
    atoms = crystal(study, study.settings.lattice.liquid_constant, 4)
    nearest = atoms.get_distances(0, range(1, len(atoms)), mic=True).min()
    spheres = LennardJones(sigma=nearest / 2 ** (1 / 6), epsilon=0.1, smooth=True)
    hot = 3 * 0.1 / units.kB
    atoms = equilibrated(atoms, spheres, MELTING, temperature=hot, seed=seed, progress=progress)
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return write_bytes(path, text.getvalue().encode())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the metals")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--settings", type=Path, default=HERE / "study.yml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    study = open_study(options.out, options.data, options.settings)
    print(molten(study, options.seed, progress=True))


if __name__ == "__main__":
    main()
