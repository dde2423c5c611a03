"""The Materials Project trajectories of CHGNet (MPtrj): one JSON of many gigabytes, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from kd_plugins.structures.compressed import open_binary
from kd_plugins.structures.limits import MATERIAL, BoundedJson, largest

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
"""What a frame of MPtrj is made of."""

SAME_ENERGY = 1e-4
"""eV per atom by which the two corrected energies of a frame may differ."""


def is_mptrj(path: Path) -> bool:
    """Return whether a JSON file opens as MPtrj does: material, frame, a field of a frame."""
    depth = 0
    with open_binary(path) as file:
        bounded = BoundedJson(file, largest(MATERIAL), "its beginning")
        for event, value in ijson.basic_parse(bounded):
            depth += (event == "start_map") - (event == "end_map")
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
    with open_binary(path) as file:
        bounded = BoundedJson(file, largest(MATERIAL), "one material")
        for material, frames in ijson.kvitems(bounded, "", use_float=True, buf_size=1 << 20):
            bounded.next_record()
            if not isinstance(frames, Mapping):
                raise ValueError(f"material {material!r}: expected its frames, got {frames!r:.40}")
            for frame_id, frame in frames.items():
                yield _atoms(material, frame_id, frame)


def _atoms(material: str, frame_id: str, frame: Mapping[str, Any]) -> Atoms:
    try:
        if not isinstance(frame, Mapping):
            raise TypeError(f"expected an object, got {frame!r:.40}")
        atoms = _structure(frame["structure"])
        atoms.calc = SinglePointCalculator(atoms, **_labels(frame, len(atoms)))
    except KeyError as error:
        raise ValueError(f"frame {frame_id!r}: {error} is missing, or no element") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"frame {frame_id!r}: {error}") from error
    atoms.info = {"frame_id": frame_id, "mp_id": material}
    return atoms


def _structure(content: Mapping[str, Any]) -> Atoms:
    lattice, sites = content["lattice"], content["sites"]
    return Atoms(
        [_element(index, site["species"]) for index, site in enumerate(sites)],
        scaled_positions=np.array([site["abc"] for site in sites], dtype=float).reshape(-1, 3),
        cell=lattice["matrix"],
        pbc=lattice.get("pbc", True),
    )


def _element(index: int, species: list[Mapping[str, Any]]) -> str:
    if len(species) != 1 or species[0]["occu"] != 1:
        raise ValueError(
            f"site {index} is disordered ({species}); expected one element of occupancy 1, so "
            "take the frame out of the file"
        )
    return species[0]["element"]


def _labels(frame: Mapping[str, Any], n_atoms: int) -> dict[str, Any]:
    labels: dict[str, Any] = {"energy": _corrected_energy(frame, n_atoms)}
    for name, field in (("forces", "force"), ("magmoms", "magmom"), ("stress", "stress")):
        value = frame.get(field)
        labels[name] = None if value is None else np.array(value, dtype=float)
    if labels["stress"] is not None:
        labels["stress"] = -0.1 * units.GPa * full_3x3_to_voigt_6_stress(labels["stress"])
    return {name: value for name, value in labels.items() if value is not None}


def _corrected_energy(frame: Mapping[str, Any], n_atoms: int) -> float | None:
    """Return the total energy in eV from the energy per atom, or from the total where it lacks."""
    per_atom, total = frame.get("energy_per_atom"), frame.get("corrected_total_energy")
    if per_atom is None:
        return total
    if total is not None and abs(total - per_atom * n_atoms) > SAME_ENERGY * n_atoms:
        raise ValueError(
            f"corrected_total_energy is {total} eV, but energy_per_atom times {n_atoms} atoms is "
            f"{per_atom * n_atoms} eV; expected the same"
        )
    return per_atom * n_atoms
