"""A store's forces and stress against differences of the teacher's own energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from kd_plugins.doctor.agreement import suspects
from kd_plugins.doctor.inputs import DoctorInput, Finding, Severity
from kd_plugins.doctor.units import ENERGY_UNITS, FORCE_UNITS, STRESS_UNITS
from kd_plugins.store.manifest import Manifest
from kd_plugins.structures.readers import to_atoms
from kd_plugins.teachers.calculator import as_teacher
from kd_plugins.teachers.teacher import Teacher

STEP, STRAIN = 0.01, 0.003
"""Å of the atom that moves farthest, and strain, by which a structure is moved forth and back."""
NOISE = 2e-6
"""Of an energy, that a teacher in float32 does not resolve; a difference must be 50 times that."""
SAME_ENERGY = 2e-3
"""eV/atom by which a teacher may differ from what it said before."""
NEAR = 0.1
"""By which a ratio may differ from a factor, in natural logarithms."""


def difference_faults(
    cases: Sequence[DoctorInput], manifest: Manifest, teacher: Teacher, number: int = 3
) -> list[Finding]:
    """Ask the teacher for energies of a few structures and of the same ones moved and strained.

    Args:
        cases: a sample of the store.
        manifest: of the store.
        teacher: that is said to have made it.
        number: of structures, those with the largest forces.
    """
    strongest = sorted(cases, key=_largest_force, reverse=True)[:number]
    energies, forces, stresses = [], [], []
    for case in strongest:
        atoms = to_atoms(case.structure)
        energies += _energy(case, atoms, manifest, teacher)
        forces += _force(case, atoms, teacher)
        stresses += _stress(case, atoms, teacher)
    volumes = [abs(float(np.linalg.det(case.structure.cell))) for case in strongest]
    virial = {"the teacher's values are virials (stress times volume)": float(np.median(volumes))}
    return [
        *_other_teacher(strongest, energies, manifest, teacher),
        *_not_derived("forces", forces, suspects(FORCE_UNITS, "eV/Å")),
        *_not_derived("stress", stresses, {**suspects(STRESS_UNITS, "eV/Å³"), **virial}),
    ]


def _largest_force(case: DoctorInput) -> float:
    return float(np.abs(case.teacher.get("forces", np.zeros(1))).max(initial=0.0))


def _ask(teacher: Teacher, atoms: Atoms) -> float:
    (predicted,) = as_teacher(teacher).predict([atoms], ("energy",))
    return float(predicted["energy"])


def _energy(
    case: DoctorInput, atoms: Atoms, manifest: Manifest, teacher: Teacher
) -> Iterator[tuple[float, float]]:
    """Yield the store's energy and the teacher's, with the offsets that the store has."""
    if "energy" in case.teacher:
        offsets = [manifest.energy_offsets.get(symbol, 0.0) for symbol in atoms.symbols]
        yield float(case.teacher["energy"]), _ask(teacher, atoms) + sum(offsets)


def _force(case: DoctorInput, atoms: Atoms, teacher: Teacher) -> Iterator[tuple[float, float]]:
    """Yield the force along the stored forces, as stored and by differences, in eV/Å.

    No other direction tells as much: next to an equilibrium others drown in curvature.
    """
    forces = case.teacher.get("forces", np.zeros(0))
    if not np.any(forces):
        return
    direction = forces / np.linalg.norm(forces, axis=1).max()
    moved = [atoms.copy() for _ in range(2)]
    for sign, copy in zip((1, -1), moved, strict=True):
        copy.positions += sign * STEP * direction
    slope = _slope(teacher, moved, STEP)
    if slope is not None:
        yield float(np.vdot(forces, direction)), -slope


def _stress(case: DoctorInput, atoms: Atoms, teacher: Teacher) -> Iterator[tuple[float, float]]:
    """Yield the stress along the stored stress, as stored and by differences, in eV/Å³."""
    stress = case.teacher.get("stress", np.zeros(0))
    if not np.any(stress) or not atoms.pbc.all():
        return
    strain = voigt_6_to_full_3x3_stress(stress) / np.abs(stress).max()
    moved = [atoms.copy() for _ in range(2)]
    for sign, copy in zip((1, -1), moved, strict=True):
        copy.set_cell(copy.cell.array @ (np.eye(3) + sign * STRAIN * strain), scale_atoms=True)
    slope = _slope(teacher, moved, STRAIN)
    if slope is not None:
        yield float(stress @ _voigt(strain)), slope / atoms.get_volume()


def _voigt(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return strain as what stress in Voigt order is multiplied by: shear counts twice."""
    return strain[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * [1, 1, 1, 2, 2, 2]


def _slope(teacher: Teacher, moved: Sequence[Atoms], step: float) -> float | None:
    """Return the energy's central difference, or None if it drowns in rounding."""
    forth, back = (_ask(teacher, atoms) for atoms in moved)
    if abs(forth - back) < 50 * NOISE * max(abs(forth), 1.0):
        return None
    return (forth - back) / (2 * step)


def _other_teacher(
    cases: Sequence[DoctorInput],
    energies: Sequence[tuple[float, float]],
    manifest: Manifest,
    teacher: Teacher,
) -> Iterator[Finding]:
    with_energy = [case for case in cases if "energy" in case.teacher]
    for case, (stored, fresh) in zip(with_energy, energies, strict=True):
        if abs(stored - fresh) > SAME_ENERGY * case.n_atoms + 2 * NOISE * abs(fresh):
            units = {f"the store's are in {unit}": 1 / size for unit, size in ENERGY_UNITS.items()}
            units["the store's are per atom"] = 1 / case.n_atoms
            why = _reason(stored / fresh if fresh else 0.0, units, 1e-3)
            why = why or "another teacher, version or file made it"
            if getattr(teacher, "fingerprint", manifest.fingerprint) != manifest.fingerprint:
                why = f"{why} (the fingerprints differ)"
            message = (
                f"of {case.structure_id!r} the teacher says {fresh:.6g} eV and the store "
                f"{stored:.6g}: {why}; label again"
            )
            yield Finding("other-teacher", "error", "energy", message, (case.structure_id,))
            return


def _not_derived(
    name: str, pairs: Sequence[tuple[float, float]], factors: Mapping[str, float]
) -> Iterator[Finding]:
    """Compare what is stored with differences of the energy."""
    ratios = [stored / slope for stored, slope in pairs]
    if not ratios or max(abs(ratio - 1) for ratio in ratios) < 0.1:
        return
    ratio = float(np.median(ratios))
    own = {words: factor for words, factor in factors.items() if "teacher" in words}
    why = _reason(ratio, own, NEAR)
    severity: Severity = "error" if why else "warning"
    listed = ", ".join(f"{one:.3g}" for one in ratios)
    advice = why or "a teacher that predicts them directly, or that another one stored?"
    message = (
        f"the store's {name} are not the derivatives of the teacher's energy but {listed} times "
        f"those: {advice}"
    )
    yield Finding(f"{name}-not-derived", severity, name, message)


def _reason(ratio: float, factors: Mapping[str, float], near: float) -> str | None:
    """Return what a ratio of stored to right values comes from, if it is a known factor."""
    if ratio == 0:
        return "they are zero"
    wrong = " with the wrong sign" if ratio < 0 else ""
    for words, factor in factors.items():
        if abs(np.log(abs(ratio) / factor)) < near:
            return words + wrong
    return "they have the wrong sign" if abs(ratio + 1) < near else None
