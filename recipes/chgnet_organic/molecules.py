"""Write small molecules to pack into crystals, none of which is in a selection or test crystal.

    python recipes/chgnet_organic/molecules.py --out runs/organic_foreign/molecules.extxyz

The molecules are those of the G2 test set (ASE's geometries) with three atoms or more of H, C, N
and O and without unpaired electrons.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ase.build import molecule
from ase.collections import g2

from kd_plugins.files import whole_file
from kd_plugins.structures.export import to_extxyz

ELEMENTS = {"H", "C", "N", "O"}
LEFT_OUT = {
    "C6H6": "benzene, a test crystal",
    "O3": "no molecule of a crystal",
    "CH2_s1A1d": "a carbene",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="an extxyz")
    path = parser.parse_args().out

    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        for name in g2.names:
            atoms = molecule(name)
            is_open_shell = atoms.get_initial_magnetic_moments().any()
            fits = len(atoms) > 2 and ELEMENTS.issuperset(atoms.get_chemical_symbols())
            if fits and not is_open_shell and name not in LEFT_OUT:
                file.write(to_extxyz(name, atoms, {}))
                count += 1
    print(f"{path} holds {count} molecules")


if __name__ == "__main__":
    main()
