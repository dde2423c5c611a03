"""Stream the Materials Project trajectories of CHGNet (MPtrj): one JSON of many gigabytes.

Source: Deng et al. 2023, doi:10.1038/s42256-023-00716-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ijson
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

from kd_plugins.structures.limits import MATERIAL_BYTES, BoundedJson, max_bytes, open_binary

FIELDS = frozenset(
    {
        "structure",
        "corrected_total_energy",
        "uncorrected_total_energy",
        "energy_per_atom",
        "ef_per_atom",
        "e_per_atom_relaxed",
        "ef_per_atom_relaxed",
        "force",
        "stress",
        "magmom",
        "bandgap",
        "mp_id",
    }
)
"""Keys of a frame of MPtrj, by which its JSON is recognized."""

ENERGY_TOLERANCE = 1e-4
"""eV per atom by which the two corrected energies of a frame may differ."""

KILOBAR = 0.1 * units.GPa
"""VASP's unit of stress, in eV/Å³."""


def is_mptrj(path: Path) -> bool:
    """Return whether a JSON file begins as MPtrj does: material, frame, a field of a frame."""
    depth = 0
    with open_binary(path) as file:
        bounded = BoundedJson(file, max_bytes(MATERIAL_BYTES), "its beginning")
        for event, value in ijson.basic_parse(bounded):
            depth += (event == "start_map") - (event == "end_map")

            # The first key at this depth decides; before it, anything but objects is another JSON.
            if depth == 3 and event == "map_key":
                return value in FIELDS
            if event not in ("start_map", "map_key", "end_map"):
                return False
    return False


def read_mptrj(path: Path) -> Iterator[Atoms]:
    """Yield the frames with their labels, holding one material's frames at a time.

    ``energy`` is the MP2020-corrected total energy, which is what CHGNet trains on; ``magmoms``
    are signed and only there where the file has them. ``info`` holds ``frame_id`` and ``mp_id``.

    Args:
        path: of the JSON, plain or compressed.

    Raises:
        ValueError: naming the frame, for a disordered site, a field that is missing or has another
            shape, or corrected energies that contradict each other; for a material that would fill
            the memory.
    """
    for material, frames in iterate_materials(path):
        for frame_id, frame in frames.items():
            yield _to_atoms(material, frame_id, frame)


def iterate_materials(
    path: Path, count: Callable[[int], object] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each material's id with its frames as they are in the file, one material at a time.

    Args:
        path: of the JSON, plain or compressed.
        count: called with the number of bytes that were read, for a progress bar.

    Raises:
        ValueError: for a material that is no mapping or would fill the memory, and for no JSON.
    """
    with open_binary(path) as file:
        counted = file if count is None else _CountedFile(file, count)
        bounded = BoundedJson(counted, max_bytes(MATERIAL_BYTES), "one material")
        for material, frames in ijson.kvitems(bounded, "", use_float=True, buf_size=1 << 20):
            bounded.start_record()
            if not isinstance(frames, Mapping):
                raise ValueError(f"material {material!r}: expected its frames, got {frames!r:.40}")
            yield material, frames


class _CountedFile:
    """A file of bytes that reports how many were read."""

    def __init__(self, file: IO[bytes], count: Callable[[int], object]) -> None:
        self._file, self._count = file, count

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        chunk = self._file.read(size)
        self._count(len(chunk))
        return chunk


def frame_elements(frame_id: str, frame: Any) -> list[str]:
    """Return the element of each site of a frame.

    Raises:
        ValueError: naming the frame, for a disordered site or a field that is missing.
    """
    try:
        sites = frame["structure"]["sites"]
        elements = [_parse_element(index, site["species"]) for index, site in enumerate(sites)]
    except KeyError as error:
        raise ValueError(f"frame {frame_id!r}: {error} is missing") from error
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"frame {frame_id!r}: {error}") from error

    unknown = [element for element in elements if element not in atomic_numbers]
    if unknown or not elements:
        got = repr(unknown[0]) if unknown else "no site"
        raise ValueError(f"frame {frame_id!r}: expected sites of elements, got {got}")
    return elements


def energy_per_atom(frame_id: str, frame: Mapping[str, Any], n_atoms: int) -> float | None:
    """Return the corrected energy of a frame in eV/atom, None where it has none.

    Raises:
        ValueError: naming the frame, for corrected energies that contradict each other.
    """
    try:
        energy = _corrected_energy(frame, n_atoms)
        return None if energy is None else float(energy) / n_atoms
    except (TypeError, ValueError) as error:
        raise ValueError(f"frame {frame_id!r}: {error}") from error


def _to_atoms(material: str, frame_id: str, frame: Mapping[str, Any]) -> Atoms:
    try:
        if not isinstance(frame, Mapping):
            raise TypeError(f"expected an object, got {frame!r:.40}")
        atoms = _parse_structure(frame["structure"])
        atoms.calc = SinglePointCalculator(atoms, **_parse_labels(frame, len(atoms)))
    except KeyError as error:
        raise ValueError(f"frame {frame_id!r}: {error} is missing, or no element") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"frame {frame_id!r}: {error}") from error

    atoms.info = {"frame_id": frame_id, "mp_id": material}
    return atoms


def _parse_structure(content: Mapping[str, Any]) -> Atoms:
    """Return a structure from pymatgen's JSON."""
    lattice, sites = content["lattice"], content["sites"]
    fractional = np.array([site["abc"] for site in sites], dtype=float)
    return Atoms(
        [_parse_element(index, site["species"]) for index, site in enumerate(sites)],
        scaled_positions=fractional.reshape(-1, 3),
        cell=lattice["matrix"],
        pbc=lattice.get("pbc", True),
    )


def _parse_element(index: int, species: list[Mapping[str, Any]]) -> str:
    if len(species) != 1 or species[0]["occu"] != 1:
        raise ValueError(
            f"site {index} is disordered ({species}); expected one element of occupancy 1, so "
            "take the frame out of the file"
        )
    return species[0]["element"]


def _parse_labels(frame: Mapping[str, Any], n_atoms: int) -> dict[str, Any]:
    """Return the labels that are there, in ASE's units and signs."""
    labels: dict[str, Any] = {"energy": _corrected_energy(frame, n_atoms)}
    for name, field in (("forces", "force"), ("magmoms", "magmom"), ("stress", "stress")):
        value = frame.get(field)
        labels[name] = None if value is None else np.array(value, dtype=float)

    # VASP's stress is in kBar and positive under compression; ASE's is positive under tension.
    if labels["stress"] is not None:
        labels["stress"] = -KILOBAR * full_3x3_to_voigt_6_stress(labels["stress"])
    return {name: value for name, value in labels.items() if value is not None}


def _corrected_energy(frame: Mapping[str, Any], n_atoms: int) -> float | None:
    """Return the corrected total energy in eV, from either of the fields that have it.

    A frame may have the energy per atom, the total, or both, which must then agree.
    """
    per_atom, total = frame.get("energy_per_atom"), frame.get("corrected_total_energy")
    if per_atom is None:
        return total

    if total is not None and abs(total - per_atom * n_atoms) > ENERGY_TOLERANCE * n_atoms:
        raise ValueError(
            f"corrected_total_energy is {total} eV, but energy_per_atom times {n_atoms} atoms is "
            f"{per_atom * n_atoms} eV; expected the same"
        )

    return per_atom * n_atoms
