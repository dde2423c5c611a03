"""Convert the ANI-Al release (aluminium, Matin et al. 2025) to extended xyz, in eV and eV/Å.

    python recipes/hippynn_metals/ani_al.py ani-al/data/*.h5 --energy-unit Hartree \
        --forces-are forces --out runs/ani_al

A group of the release's HDF5 files holds cells of the same atoms: ``species`` (N,), ``coordinates``
(M, N, 3) and ``cell`` (M, 3, 3) in Å, ``energy`` (M,) and ``force`` (M, N, 3). Neither files nor
paper say the unit of energies and whether ``force`` holds forces or the energy's gradient, so the
command line must. The release has no test set: one is drawn, and the rest is for training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers
from tqdm import tqdm

from kd_plugins.files import whole_file
from kd_plugins.sampling import nested_subset
from kd_plugins.structures import LabelledStructure
from kd_plugins.structures.export import to_extxyz

KEYS = ("species", "coordinates", "cell", "energy", "force")
UNITS = {"Hartree": units.Hartree, "eV": units.eV}
SIGNS = {"forces": 1.0, "gradient": -1.0}


def read_groups(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path in the file and the arrays of each group that holds any."""
    try:
        import h5py
    except ImportError as error:
        raise SystemExit(f"{path}: h5py reads it and is not installed; pip install h5py") from error

    with h5py.File(path, "r") as file:
        waiting = [file]
        while waiting:
            group = waiting.pop()
            inner = [group[key] for key in sorted(group, reverse=True)]
            waiting += [one for one in inner if isinstance(one, h5py.Group)]
            arrays = {key: group[key][()] for key in group if isinstance(group[key], h5py.Dataset)}
            if arrays:
                yield group.name, arrays


def to_structures(
    name: str, arrays: Mapping[str, Any], energy_unit: str, forces_are: str
) -> Iterator[LabelledStructure]:
    """Yield the structures of one group, named ``group:index``.

    Raises:
        SystemExit: for an array that is missing, or does not fit the others.
    """
    numbers = check_arrays(name, arrays)
    energies = np.asarray(arrays["energy"], dtype=np.float64) * UNITS[energy_unit]
    forces = np.asarray(arrays["force"], dtype=np.float64) * UNITS[energy_unit] * SIGNS[forces_are]
    geometries = zip(arrays["coordinates"], arrays["cell"], strict=True)
    for index, (positions, cell) in enumerate(geometries):
        atoms = Atoms(numbers, positions=positions, cell=cell, pbc=True)
        labels = {"energy": energies[index, ...], "forces": forces[index]}
        yield LabelledStructure(f"{name}:{index}", atoms, labels)


def check_arrays(name: str, arrays: Mapping[str, Any]) -> list[int]:
    """Return a group's atomic numbers if all its arrays are there and fit together."""
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise SystemExit(
            f"group {name}: expected {', '.join(KEYS)}, got {', '.join(arrays)}; "
            f"rename or add {', '.join(missing)}"
        )

    numbers = [atomic_number(one) for one in np.asarray(arrays["species"]).tolist()]
    cells, atoms = len(arrays["coordinates"]), len(numbers)
    shapes = {"coordinates": (cells, atoms, 3), "cell": (cells, 3, 3)}
    shapes |= {"energy": (cells,), "force": (cells, atoms, 3)}
    for key, shape in shapes.items():
        if (got := np.shape(arrays[key])) != shape:
            raise SystemExit(
                f"group {name}: {key} has shape {got}, expected {shape} for {cells} cells of "
                f"{atoms} atoms; mend the file or leave it out"
            )
    return numbers


def atomic_number(species: int | str | bytes) -> int:
    """Return the number of an element given by number or symbol.

    >>> atomic_number(b"Al"), atomic_number(13)
    (13, 13)
    """
    symbol = species.decode() if isinstance(species, bytes) else species
    return atomic_numbers[symbol] if isinstance(symbol, str) else int(symbol)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="of the release, .h5")
    parser.add_argument("--energy-unit", required=True, choices=UNITS, help="of force, it per Å")
    parser.add_argument("--forces-are", required=True, choices=SIGNS, help="what force holds")
    parser.add_argument("--test", type=int, default=600, help="structures of the test set (600)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the test set (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of train and test.extxyz")
    options = parser.parse_args()

    structures = {}
    for path in tqdm(options.files, unit=" files"):
        for group, arrays in read_groups(path):
            name = f"{path.stem}{group}"
            for one in to_structures(name, arrays, options.energy_unit, options.forces_are):
                structures[one.structure_id] = one

    chosen = set(nested_subset(structures, options.test, options.seed))
    for split in ("train", "test"):
        names = [name for name in structures if (name in chosen) == (split == "test")]
        with whole_file(options.out / f"{split}.extxyz") as file:
            for one in map(structures.__getitem__, names):
                file.write(to_extxyz(one.structure_id, one.atoms, one.labels))
        print(f"{options.out / split}.extxyz holds {len(names)} structures")


if __name__ == "__main__":
    main()
