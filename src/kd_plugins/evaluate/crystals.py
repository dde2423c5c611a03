"""Crystals of an evaluation: which files hold them, and what is measured of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from kd_plugins.evaluate.elasticity import ElasticAverages, elastic_tensor
from kd_plugins.evaluate.relaxation import relax
from kd_plugins.evaluate.settings import CrystalSettings
from kd_plugins.evaluate.similarity import rmsd15
from kd_plugins.evaluate.volumes import scanned_volume
from kd_plugins.sampling.guards import Guards
from kd_plugins.sampling.molecules import find_molecules
from kd_plugins.structures.readers import LabelledStructure, check_file, read_structures


@dataclass(frozen=True)
class Crystals:
    """The crystals of some files.

    Args:
        structures: those that are measured.
        left_out: file, or structure, to the reason why it is not.
    """

    structures: Sequence[LabelledStructure]
    left_out: Mapping[str, str]


def read_crystals(settings: CrystalSettings) -> Crystals:
    """Return the crystals of all files, read once as long as no file changes.

    With ``bad: leave_out`` these are left out, each by name and with the reason: what cannot be
    read, disordered sites, atoms closer than 0.6 times the sum of their covalent radii (disorder
    without occupancies), and what is not periodic in three directions.

    Raises:
        FileNotFoundError: for a file that is not there, in any case.
        ValueError: for two crystals of one name; with ``bad: refuse``, for one that cannot be read
            or is not periodic; if none is left.
    """
    names = settings.files
    for name in names:
        check_file(Path(name))
    states = [(name, Path(name).stat()) for name in names]
    files = tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)
    return _read_crystals(files, settings.bad == "leave_out")


@lru_cache(maxsize=4)
def _read_crystals(files: tuple[tuple[str, int, int], ...], may_leave_out: bool) -> Crystals:
    structures: dict[str, LabelledStructure] = {}
    left_out: dict[str, str] = {}

    for name, *_ in files:
        try:
            found = list(read_structures([name]))
        except ValueError as error:
            if not may_leave_out:
                raise
            left_out[Path(name).stem] = str(error)
            continue

        for one in found:
            if one.structure_id in structures:
                raise ValueError(
                    f"crystals: two structures are called {one.structure_id!r}, so one would stand "
                    "for the other; give each a structure_id of its own, or leave one out"
                )
            reason = _fault(one, may_leave_out)
            if reason is None:
                structures[one.structure_id] = one
            elif may_leave_out:
                left_out[one.structure_id] = reason
            else:
                raise ValueError(f"crystals: {one.structure_id} {reason}")

    if not structures:
        first, reason = next(iter(left_out.items()))
        raise ValueError(
            f"crystals: all {len(left_out)} are left out, so none is measured; {first}: {reason}"
        )
    return Crystals(tuple(structures.values()), left_out)


def _fault(one: LabelledStructure, check_contacts: bool) -> str | None:
    """Return why a crystal cannot be measured; None if it can."""
    if not (one.atoms.pbc.all() and one.atoms.cell.rank == 3):
        return "is not periodic in three directions, so it has no volume to relax"
    if not check_contacts:
        return None
    rejection = Guards(min_distance=None, max_force=np.inf).reject(one.atoms)
    return None if rejection is None else rejection.reason


def measure_crystal(atoms: Atoms, calculator: Any, settings: CrystalSettings) -> dict[str, Any]:
    """Return a crystal's part of an evaluation, see `kd_plugins.evaluate.measurements.CrystalPart`.

    Args:
        atoms: the crystal of the file.
        calculator: of the potential.
        settings: what is measured of it.
    """
    start = {"reference": abs(float(atoms.get_volume()))}
    if settings.rigid:
        return {**start, **_scan(atoms, calculator)}

    relaxed = relax(atoms, calculator, settings.force_tolerance, settings.max_steps)
    has_volume = bool(np.isfinite(relaxed.volume))
    crystal: dict[str, Any] = {
        **start,
        "volume": relaxed.volume if has_volume else None,
        "reason": relaxed.reason,
        # Without a volume not even the start could be computed, which is no relaxed structure.
        "cell": relaxed.atoms.cell.array.tolist() if has_volume else None,
        "positions": relaxed.atoms.positions.tolist() if has_volume else None,
        "rmsd15": packing_distance(atoms, relaxed.atoms) if has_volume else None,
    }
    if settings.elasticity:
        crystal["elasticity"] = _elasticity(relaxed.atoms, calculator)
    return crystal


def packing_distance(reference: Atoms, relaxed: Atoms) -> float | None:
    """Return RMSD15 in Å, or None for a crystal without molecules, such as a metal."""
    try:
        molecules = find_molecules(reference)
    except ValueError:
        return None
    return rmsd15(reference, relaxed, molecules)


def relaxed_atoms(start: Atoms, part: Mapping[str, Any]) -> Atoms | None:
    """Return the relaxed crystal of a part; None where the part does not hold it.

    Args:
        start: the crystal of the file.
        part: as `measure_crystal` returns it.
    """
    if part.get("positions") is None or part.get("cell") is None:
        return None
    relaxed = start.copy()
    relaxed.set_cell(part["cell"])
    relaxed.set_positions(part["positions"], apply_constraint=False)
    return relaxed


def _scan(atoms: Atoms, calculator: Any) -> dict[str, Any]:
    """Return the volume of least energy of rigid molecules; a failure is a reason."""
    # A calculator raises exceptions of any kind, as in a relaxation.
    try:
        minimum = scanned_volume(atoms, calculator)
    except Exception as error:
        return {"volume": None, "reason": f"{type(error).__name__}: {error}"}
    found = "converged" if minimum.where == "inside" else f"least energy {minimum.where} the scan"
    return {"volume": minimum.volume, "reason": found}


def _elasticity(atoms: Atoms, calculator: Any) -> Mapping[str, Any]:
    """Return the moduli of a relaxed crystal, or the reason why it has none."""
    try:
        tensor = elastic_tensor(atoms, calculator)
        averages = ElasticAverages.of(tensor.stiffness)
    except ValueError as error:
        return {"unstable": str(error)}
    return {
        **asdict(averages.reuss_hill),
        "poisson_ratio": averages.poisson_ratio,
        "anisotropy": averages.anisotropy,
        "stiffness": tensor.stiffness.tolist(),
    }
