"""Aluminium for the quickstart: strained, rattled and molten cells, and a liquid to start from.

    python recipes/quickstart/structures.py --out runs/quickstart/data

Writes train.extxyz, test.extxyz and liquid.extxyz. ASE's effective medium theory, which is fast,
melts the metal; it gives no labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from ase.md.langevin import Langevin
from tqdm import tqdm

CONSTANT = 4.04
"""CHGNet's lattice constant of fcc aluminium, Å."""
HOT, MELTING = 2500.0, 1000.0
"""Temperatures of melting and of the last liquid, K."""
BETWEEN = 20
"""Steps of 2 fs between two structures."""
NEAREST = 2.1
"""Smallest distance of two atoms, Å; 2.86 in the crystal."""


def strained(generator: np.random.Generator) -> Atoms:
    """Return a crystal with another cell and rattled atoms."""
    atoms = bulk("Al", "fcc", a=CONSTANT, cubic=True) * (2, 2, 2)
    strain = np.eye(3) + generator.uniform(-0.06, 0.06, (3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += generator.normal(scale=generator.uniform(0.02, 0.2), size=(len(atoms), 3))
    return atoms


def is_whole(atoms: Atoms) -> bool:
    """Return whether no two atoms are nearer than in structures that CHGNet was trained on."""
    distances = atoms.get_all_distances(mic=True)
    return bool(distances[distances > 0].min() > NEAREST)


def molten(count: int, seed: int) -> list[Atoms]:
    """Return structures of a metal that melts and then cools down to a liquid."""
    atoms = bulk("Al", "fcc", a=1.03 * CONSTANT, cubic=True) * (2, 2, 2)
    atoms.calc = EMT()
    generator = np.random.default_rng(seed)
    run = Langevin(atoms, 2 * units.fs, temperature_K=HOT, friction=0.05, rng=generator)
    run.run(10 * BETWEEN)

    structures = []
    for temperature in tqdm(np.linspace(HOT, MELTING, count), "melting"):
        run.set_temperature(temperature_K=temperature)
        run.run(BETWEEN)
        positions = atoms.get_positions(wrap=True)
        structures.append(Atoms(atoms.symbols, positions, cell=atoms.cell, pbc=True))
    return structures


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--count", type=int, default=240, help="structures (240)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    generator = np.random.default_rng(options.seed)
    count = options.count // 2
    *melt, liquid = molten(count + 1, options.seed)
    structures = [strained(generator) for _ in range(options.count - count)] + melt
    structures = [atoms for atoms in structures if is_whole(atoms)]
    for index, atoms in enumerate(structures):
        atoms.info["structure_id"] = f"al/{index}"

    order = generator.permutation(len(structures))
    test = max(4, len(structures) // 6)
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "test.extxyz", [structures[i] for i in sorted(order[:test])])
    write(options.out / "train.extxyz", [structures[i] for i in sorted(order[test:])])
    write(options.out / "liquid.extxyz", liquid)


if __name__ == "__main__":
    main()
