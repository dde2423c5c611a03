"""Read the ANI-Al release (aluminium, Matin et al. 2025): HDF5 files of groups of arrays.

A group holds cells of the same atoms: ``species`` (N,), ``coordinates`` (M, N, 3) and ``cell``
(M, 3, 3) in Å, ``energy`` (M,) and ``force`` (M, N, 3). The files do not say their units, nor
does the paper, so that the study has to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers

from kd_plugins.structures import LabelledStructure

KEYS = ("species", "coordinates", "cell", "energy", "force")
UNITS = {"Hartree": units.Hartree, "eV": units.eV}
SIGNS = {"forces": 1.0, "gradient": -1.0}


@dataclass(frozen=True)
class Convention:
    """What the files leave open, ``ani_al`` of a study.

    Args:
        energy_unit: of ``energy``; ``force`` is in the same per Å.
        forces_are: what ``force`` holds: forces, or the energy's gradient, their opposite.
    """

    energy_unit: Literal["Hartree", "eV"]
    forces_are: Literal["forces", "gradient"]


def read_ani_al(folder: Path, convention: Convention | None) -> Iterator[LabelledStructure]:
    """Yield the structures of a folder's .h5 files, in eV and eV/Å, named ``file/group:index``.

    Raises:
        SystemExit: without a convention, a file, h5py, or an array in the shape that it must have.
    """
    if convention is None:
        raise SystemExit(
            f"{folder} is a folder of .h5 files, and they do not say their units; expected in the "
            "study's YAML ani_al: {energy_unit: Hartree or eV, forces_are: forces or gradient}, "
            "got nothing; add it in a new study"
        )
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        raise SystemExit(f"{folder}: expected .h5 files, got none; put the release's there")
    for path in paths:
        for name, arrays in groups(path):
            yield from to_frames(f"{path.stem}{name}", arrays, convention)


def groups(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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


def to_frames(
    name: str, arrays: Mapping[str, Any], convention: Convention
) -> Iterator[LabelledStructure]:
    """Yield the structures of one group."""
    numbers = checked(name, arrays)
    factor = UNITS[convention.energy_unit]
    energies = np.asarray(arrays["energy"], dtype=np.float64) * factor
    forces = np.asarray(arrays["force"], dtype=np.float64) * factor * SIGNS[convention.forces_are]
    for index, (positions, cell) in enumerate(
        zip(arrays["coordinates"], arrays["cell"], strict=True)
    ):
        atoms = Atoms(numbers, positions=positions, cell=cell, pbc=True)
        labels = {"energy": energies[index, ...], "forces": forces[index]}
        yield LabelledStructure(f"{name}:{index}", atoms, labels)


def checked(name: str, arrays: Mapping[str, Any]) -> list[int]:
    """Return a group's atomic numbers if all its arrays are there and fit together."""
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise SystemExit(
            f"group {name}: expected {', '.join(KEYS)}, got {', '.join(arrays)}; "
            f"rename or add {', '.join(missing)}"
        )
    numbers = [atomic_number(one) for one in np.asarray(arrays["species"]).tolist()]
    cells, atoms = len(arrays["coordinates"]), len(numbers)
    whole = {"coordinates": (cells, atoms, 3), "cell": (cells, 3, 3)}
    whole |= {"energy": (cells,), "force": (cells, atoms, 3)}
    for key, shape in whole.items():
        if (got := np.shape(arrays[key])) != shape:
            raise SystemExit(
                f"group {name}: {key} has shape {got}, expected {shape} for {cells} cells of "
                f"{atoms} atoms; mend the file or leave it out of the folder"
            )
    return numbers


def atomic_number(species: int | str | bytes) -> int:
    """Return the number of an element given by number or symbol.

    >>> atomic_number(b"Al"), atomic_number(13)
    (13, 13)
    """
    symbol = species.decode() if isinstance(species, bytes) else species
    return atomic_numbers[symbol] if isinstance(symbol, str) else int(symbol)
