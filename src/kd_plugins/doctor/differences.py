"""A store's forces and stress against finite differences of the teacher's own energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from kd_plugins.doctor.inputs import DoctorInput, Finding, Severity, Values
from kd_plugins.doctor.units import ENERGY_UNITS, FORCE_UNITS, STRESS_UNITS, unit_hypotheses
from kd_plugins.store.manifest import Manifest
from kd_plugins.structures.readers import to_atoms
from kd_plugins.teachers.calculator import as_teacher
from kd_plugins.teachers.teacher import Teacher

# Small enough that third derivatives do not count, large enough that a float32 energy changes.
STEP = 0.01
"""Å by which the atom with the largest force is moved forth and back."""
STRAIN = 0.003
"""Largest strain by which a structure is deformed forth and back."""

# A float32 sum over atoms keeps about six digits.
NOISE = 2e-6
"""Part of an energy that a teacher in float32 does not resolve."""
_ABOVE_NOISE = 50  # a difference of two energies then has an error of some percent

# Other hardware, batch sizes and library versions move a float32 energy by less.
SAME_ENERGY = 2e-3
"""eV/atom by which a teacher's energy may differ from the one that it gave before."""

# Finite differences of a float32 energy are right to some percent.
NEAR = 0.1
"""By which a ratio may differ from a factor, in natural logarithms."""


@dataclass(frozen=True, eq=False)
class _Probe:
    """One structure, how it is moved, and the energies that the teacher predicts for it.

    Args:
        item: the structure with the store's values.
        moved: the structure as it is; then, where the store has forces, moved along them forth and
            back; then, where it has stress, strained along it forth and back.
        direction: (N, 3) along the stored forces, of largest length 1; None without forces.
        strain: (3, 3) along the stored stress, of largest component 1; None without stress.
    """

    item: DoctorInput
    moved: Sequence[Atoms]
    direction: Values | None
    strain: Values | None


def difference_faults(
    inputs: Sequence[DoctorInput], manifest: Manifest, teacher: Teacher, number: int = 3
) -> list[Finding]:
    """Compare a few structures' values with energies that the teacher predicts for them now.

    Forces and stress are compared with central differences of the energy, along their own
    directions: no other direction shows as much, since next to an equilibrium the others drown in
    curvature.

    Args:
        inputs: a sample of the store.
        manifest: of the store.
        teacher: that should have made it.
        number: of structures, those with the largest forces.
    """
    strongest = sorted(inputs, key=_largest_force, reverse=True)[:number]
    if not strongest:
        return []

    probes = [_make_probe(item) for item in strongest]
    energies = _predict_energies(as_teacher(teacher), probes)

    forces = [ratio for pair in zip(probes, energies, strict=True) for ratio in _forces(*pair)]
    stresses = [ratio for pair in zip(probes, energies, strict=True) for ratio in _stress(*pair)]
    volumes = [abs(float(np.linalg.det(item.structure.cell))) for item in strongest]
    virial = {"the teacher's values are virials (stress times volume)": float(np.median(volumes))}
    return [
        *_other_teacher(strongest, [of_one[0] for of_one in energies], manifest, teacher),
        *_not_derived("forces", forces, unit_hypotheses(FORCE_UNITS, "eV/Å")),
        *_not_derived("stress", stresses, {**unit_hypotheses(STRESS_UNITS, "eV/Å³"), **virial}),
    ]


def _largest_force(item: DoctorInput) -> float:
    return float(np.abs(item.teacher.get("forces", np.zeros(1))).max(initial=0.0))


def _make_probe(item: DoctorInput) -> _Probe:
    atoms = to_atoms(item.structure)
    moved = [atoms]

    direction = None
    forces = item.teacher.get("forces", np.zeros(0))
    if np.any(forces):
        direction = forces / np.linalg.norm(forces, axis=1).max()
        for sign in (1, -1):
            copy = atoms.copy()
            copy.positions += sign * STEP * direction
            moved.append(copy)

    strain = None
    stress = item.teacher.get("stress", np.zeros(0))
    if np.any(stress) and atoms.pbc.all():
        strain = voigt_6_to_full_3x3_stress(stress) / np.abs(stress).max()
        for sign in (1, -1):
            copy = atoms.copy()
            cell = copy.cell.array @ (np.eye(3) + sign * STRAIN * strain)
            copy.set_cell(cell, scale_atoms=True)
            moved.append(copy)
    return _Probe(item, moved, direction, strain)


def _predict_energies(teacher: Teacher, probes: Sequence[_Probe]) -> list[list[float]]:
    """Return the energies of each probe's structures, predicted in one call."""
    structures = [atoms for probe in probes for atoms in probe.moved]
    predictions = iter(teacher.predict(structures, ("energy",)))
    return [[float(next(predictions)["energy"]) for _ in probe.moved] for probe in probes]


def _forces(probe: _Probe, energies: Sequence[float]) -> Iterator[float]:
    """Yield the stored force along itself over that by differences, if the latter is resolved."""
    if probe.direction is None:
        return
    slope = _slope(energies[1], energies[2], STEP)
    if slope is not None:
        stored = float(np.vdot(probe.item.teacher["forces"], probe.direction))
        yield stored / -slope  # a force is minus the energy's derivative


def _stress(probe: _Probe, energies: Sequence[float]) -> Iterator[float]:
    """Yield the stored stress along itself over that by differences, if the latter is resolved."""
    if probe.strain is None:
        return
    slope = _slope(energies[-2], energies[-1], STRAIN)
    if slope is not None:
        stored = float(probe.item.teacher["stress"] @ _as_voigt_strain(probe.strain))
        yield stored * probe.moved[0].get_volume() / slope


def _as_voigt_strain(strain: Values) -> Values:
    """Return a strain as stress in Voigt order is multiplied by it: shear counts twice."""
    return strain[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * [1, 1, 1, 2, 2, 2]


def _slope(forth: float, back: float, step: float) -> float | None:
    """Return the energy's central difference, or None if it drowns in rounding."""
    if abs(forth - back) < _ABOVE_NOISE * NOISE * max(abs(forth), 1.0):
        return None
    return (forth - back) / (2 * step)


def _other_teacher(
    inputs: Sequence[DoctorInput], energies: Sequence[float], manifest: Manifest, teacher: Teacher
) -> Iterator[Finding]:
    """Yield the first structure with a stored energy that this teacher does not predict."""
    for item, predicted in zip(inputs, energies, strict=True):
        if "energy" not in item.teacher:
            continue

        # A store that `align` has written holds the teacher's energies with offsets added.
        stored = float(item.teacher["energy"])
        symbols = to_atoms(item.structure).symbols
        fresh = predicted + sum(manifest.energy_offsets.get(symbol, 0.0) for symbol in symbols)
        if abs(stored - fresh) <= SAME_ENERGY * item.n_atoms + 2 * NOISE * abs(fresh):
            continue

        units = {f"the store's are in {unit}": 1 / size for unit, size in ENERGY_UNITS.items()}
        units["the store's are per atom"] = 1 / item.n_atoms
        why = _reason(stored / fresh if fresh else 0.0, units, 1e-3)
        why = why or "another teacher, version or file made it"
        if getattr(teacher, "fingerprint", manifest.fingerprint) != manifest.fingerprint:
            why = f"{why} (the fingerprints differ)"
        text = (
            f"the teacher's energy of {item.structure_id!r} is {fresh:.6g} eV and the store's "
            f"{stored:.6g}: {why}; label again"
        )
        yield Finding("other-teacher", "error", "energy", text, (item.structure_id,))
        return


def _not_derived(
    name: str, ratios: Sequence[float], factors: Mapping[str, float]
) -> Iterator[Finding]:
    """Compare stored values over differences of the energy with 1, and with units' factors."""
    if not ratios or max(abs(ratio - 1) for ratio in ratios) < 0.1:
        return

    # The labels have no part in this comparison, so hypotheses about them are left out.
    of_teacher = {words: factor for words, factor in factors.items() if "teacher" in words}
    why = _reason(float(np.median(ratios)), of_teacher, NEAR)
    severity: Severity = "error" if why else "warning"
    listed = ", ".join(f"{one:.3g}" for one in ratios)
    advice = why or "a teacher that predicts them directly, or that another one stored?"
    text = (
        f"the store's {name} are not the derivatives of the teacher's energy but {listed} times "
        f"those: {advice}"
    )
    yield Finding(f"{name}-not-derived", severity, name, text)


def _reason(ratio: float, factors: Mapping[str, float], near: float) -> str | None:
    """Return why stored values are so many times the right ones, if it is a known factor."""
    if ratio == 0:
        return "they are zero"

    # Hartree/Å and Rydberg/Bohr are only 6 % apart, so the nearest factor counts, not the first.
    distances = {words: abs(np.log(abs(ratio) / factor)) for words, factor in factors.items()}
    nearest = min(distances, key=distances.__getitem__)
    if distances[nearest] < near:
        return nearest + (" with the wrong sign" if ratio < 0 else "")
    return "they have the wrong sign" if abs(ratio + 1) < near else None
