"""Errors of relaxed crystals, from experiments and from the teacher: volume, packing, stiffness."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import kg

from kd_plugins.evaluate.crystals import packing_distance, relaxed_atoms
from kd_plugins.evaluate.stiffness_data import (
    averaged_moduli,
    matching_compounds,
    mean_moduli,
    read_stiffness,
)
from kd_plugins.evaluate.volumes import volume_error_percent

logger = logging.getLogger(__name__)

Parts = Mapping[str, Mapping[str, Any]]
"""Crystal to its part of a measurement."""
Numbers = Mapping[str, float]

GRAMS_PER_CM3 = 1e27 / kg
"""One u/Å³ in g/cm³."""


# --- Volumes, densities, packing ----------------------------------------------------------------


def compare_volumes(
    student: Parts, teacher: Parts | None, starts: Mapping[str, Atoms]
) -> dict[str, dict[str, Any]]:
    """Return each crystal's volumes in Å³, RMSD15 in Å, and why a relaxation failed if one did.

    Args:
        student: its crystals.
        teacher: its crystals, if there is one.
        starts: the crystals of the files.
    """
    compared = {}
    for name, part in student.items():
        sides = {"student": part} | ({} if teacher is None else {"teacher": teacher[name]})
        failures = {
            side: one["reason"] for side, one in sides.items() if one["reason"] != "converged"
        }
        volumes = {side: one["volume"] for side, one in sides.items()}
        density = float(starts[name].get_masses().sum()) / part["reference"] * GRAMS_PER_CM3
        crystal = {"reference": part["reference"], **volumes, "density": density}

        for side, one in sides.items():
            if one.get("rmsd15") is not None:
                crystal["rmsd15" if side == "student" else "rmsd15_of_teacher"] = one["rmsd15"]
        if teacher is not None:
            theirs, ours = (relaxed_atoms(starts[name], one) for one in (teacher[name], part))
            if theirs is not None and ours is not None:
                between = packing_distance(theirs, ours)
                crystal |= {} if between is None else {"teacher_rmsd15": between}
        compared[name] = {**crystal, "failures": failures}
    return compared


def volume_metrics(
    volumes: Mapping[str, Mapping[str, Any]], of: str, reference: str
) -> dict[str, float]:
    """Return mean absolute errors over all crystals, which may be none.

    A crystal without a volume counts with an error of 100 %.

    Args:
        volumes: as `compare_volumes` returns them.
        of: ``student`` or ``teacher``, whose errors they are.
        reference: ``reference`` or ``teacher``, from which they are.
    """
    volume_errors, density_errors, densities = [], [], []
    for crystal in volumes.values():
        target, volume = crystal.get(reference), crystal.get(of)
        if target is None:
            continue
        growth = None if volume is None else volume_error_percent(volume, target)
        volume_errors.append(100.0 if growth is None else abs(growth))

        # A density is a mass over a volume, and the mass is the same.
        shrink = 100.0 if volume is None else abs(volume_error_percent(target, volume))
        density_errors.append(shrink)
        densities.append(shrink / 100 * crystal["density"] * crystal["reference"] / target)

    if not volume_errors:
        return {}
    return {
        "volume_error_percent": float(np.mean(volume_errors)),
        "density_error_percent": float(np.mean(density_errors)),
        "density_error": float(np.mean(densities)),
    }


def mean_rmsd15(volumes: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return the mean RMSD15 over the crystals that have one, which may be none.

    Args:
        volumes: as `compare_volumes` returns them.
        key: ``rmsd15``, ``teacher_rmsd15`` or ``rmsd15_of_teacher``.
    """
    values = [crystal[key] for crystal in volumes.values() if key in crystal]
    return {"rmsd15": float(np.mean(values))} if values else {}


def warn_of_old_parts(parts: Parts) -> None:
    """Warn of crystals that were relaxed before relaxed structures were kept."""
    old = [name for name, part in parts.items() if part["volume"] and "positions" not in part]
    if old and len(old) < len(parts):
        logger.warning(
            f"rmsd15 is of {len(parts) - len(old)} of {len(parts)} crystals: {', '.join(old)} were "
            "measured by an older version, which kept no relaxed structure; remove their files to "
            "measure them again"
        )


# --- Stiffness ----------------------------------------------------------------------------------


def compare_stiffness(
    student: Parts, teacher: Parts | None, measured: str | None
) -> dict[str, dict[str, Mapping[str, Any] | None]]:
    """Return crystal to student, teacher and experiment to moduli, or the reason for none.

    Args:
        student: its crystals.
        teacher: its crystals, if there is one.
        measured: file of measured stiffness tensors, if there is one.
    """
    references = {} if measured is None else _references(list(student), measured)
    compared: dict[str, dict[str, Mapping[str, Any] | None]] = {}
    for name, part in student.items():
        compared[name] = {
            "student": part.get("elasticity"),
            "teacher": (teacher or {}).get(name, {}).get("elasticity"),
        }
        if name in references:
            compared[name]["reference"] = references[name]
    return compared


def _references(names: list[str], path: str) -> dict[str, dict[str, float]]:
    """Return crystal to its measured moduli, of the crystals that have some."""
    tensors = read_stiffness(Path(path))
    found = {}
    for name, compound in matching_compounds(names, tensors).items():
        moduli = mean_moduli(tensors[compound])
        if moduli is not None:
            found[name] = moduli
    return found


def all_moduli(side: Mapping[str, Any] | None) -> Numbers | None:
    """Return all averages of one side, or None for a crystal that has none."""
    if not side or "unstable" in side:
        return None
    if "stiffness" not in side:
        # Experiments come as averages already; earlier versions kept five of them.
        return side if "young_reuss_hill" in side else None
    try:
        return averaged_moduli(np.array(side["stiffness"], dtype=np.float64))
    except ValueError:
        return None


def modulus_metrics(
    stiffness: Mapping[str, Mapping[str, Any]], of: str, reference: str
) -> Iterator[tuple[str, float]]:
    """Yield the mean absolute error of each average, over the crystals that both sides have.

    A crystal that is not stable has no averages and is left out, as in Taniguchi 2024
    (Experimental).

    Args:
        stiffness: as `compare_stiffness` returns it.
        of: ``student`` or ``teacher``, whose errors they are.
        reference: ``reference`` or ``teacher``, from which they are.
    """
    pairs = []
    for sides in stiffness.values():
        moduli, targets = all_moduli(sides.get(of)), all_moduli(sides.get(reference))
        if moduli is not None and targets is not None:
            pairs.append((moduli, targets))
    for name in pairs[0][0] if pairs else ():
        yield f"{name}_error", float(np.mean([abs(one[name] - two[name]) for one, two in pairs]))


def count_unstable(stiffness: Mapping[str, Mapping[str, Any]], of: str) -> float:
    """Return how many crystals have no averaged moduli."""
    return float(sum(all_moduli(sides.get(of)) is None for sides in stiffness.values()))


def drawn_moduli(side: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the report draws of one side: five moduli, or the reason why there are none."""
    if not side:
        return None
    if "young_reuss_hill" in side:
        names = {name: f"{name}_reuss_hill" for name in ("bulk", "shear", "young")}
        moduli = {name: side[key] for name, key in names.items()}
        return moduli | {name: side[name] for name in ("poisson_ratio", "anisotropy")}
    return {name: value for name, value in side.items() if name != "stiffness"}
