"""Faults to put into sound data, each with the code under which the doctor must find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.store.structure import Array, Structure

Values = Callable[[DoctorInput, Array], Array]
Break = Callable[[list[DoctorInput], np.random.Generator], list[DoctorInput]]

EV, KCAL, KJ, HARTREE, RYDBERG, BOHR = 1.0, 23.0605, 96.4853, 1 / 27.2114, 1 / 13.6057, 0.529177
GPA, KBAR = 160.21766, 1602.1766
VASP_ORDER = [0, 1, 2, 5, 3, 4]


@dataclass(frozen=True)
class Fault:
    """A change of sound data, and the code of the finding that must result."""

    name: str
    code: str
    apply: Break


def volume(item: DoctorInput) -> float:
    """In Å³."""
    return abs(float(np.linalg.det(item.structure.cell)))


def changed(item: DoctorInput, side: str, name: str, value: Array | None) -> DoctorInput:
    """Return a item with another value, or without it."""
    values = {key: old for key, old in getattr(item, side).items() if key != name}
    return replace(item, **{side: values if value is None else {**values, name: value}})


def every(side: str, name: str, change: Values) -> Break:
    """Change the value of all structures that have it."""
    return lambda inputs, rng: [
        changed(item, side, name, change(item, getattr(item, side)[name]))
        if name in getattr(item, side)
        else item
        for item in inputs
    ]


def some(side: str, name: str, change: Values | None, share: float = 0.1) -> Break:
    """Change the value of some structures, or take it away."""

    def apply(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
        rows = set(chosen(inputs, name, max(1, round(share * len(inputs))), rng))
        return [
            changed(item, side, name, change(item, getattr(item, side)[name]) if change else None)
            if row in rows
            else item
            for row, item in enumerate(inputs)
        ]

    return apply


def chosen(
    inputs: Sequence[DoctorInput], name: str, number: int, rng: np.random.Generator
) -> list[int]:
    """Return the places of some structures with labels and targets that are not nearly zero."""
    least = {"forces": 0.1, "stress": 0.002}.get(name, 0.0)
    large = [
        row
        for row, item in enumerate(inputs)
        if min(np.abs(side[name]).max() for side in (item.labels, item.teacher)) > least
    ]
    return rng.choice(large, min(number, len(large)), replace=False).tolist()


def scaled(factor: float) -> Values:
    """Return what multiplies by a factor."""
    return lambda item, value: value * factor


def shuffled(*names: str) -> Break:
    """Exchange the teacher's values among structures with as many atoms."""

    def apply(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
        source = list(range(len(inputs)))
        for n_atoms in {item.n_atoms for item in inputs}:
            rows = [row for row, item in enumerate(inputs) if item.n_atoms == n_atoms]
            for row, other in zip(rows, np.roll(rng.permutation(rows), 1), strict=True):
                source[row] = int(other)
        if names == ("energy",):
            source = rng.permutation(len(inputs)).tolist()
        moved = [{name: inputs[row].teacher[name] for name in names} for row in source]
        pairs = zip(inputs, moved, strict=True)
        return [replace(item, teacher={**item.teacher, **values}) for item, values in pairs]

    return apply


def atoms_shuffled(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
    """Give each structure's forces to its atoms in another order."""
    return [
        changed(item, "teacher", "forces", rng.permutation(item.teacher["forces"]))
        for item in inputs
    ]


def offset(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
    """Add an energy to each element."""
    energies = rng.normal(0, 3, 120) + 2
    return [
        changed(item, "teacher", "energy", item.teacher["energy"] + added)
        for item in inputs
        for added in [energies[item.structure.atomic_numbers].sum()]
    ]


def twice(contradicting: bool) -> Break:
    """Let one structure come again under another id, moved by a lattice vector."""

    def apply(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
        item = inputs[int(rng.integers(len(inputs)))]
        here = item.structure
        moved = here.positions + here.cell[0]
        copy = Structure(here.atomic_numbers, moved, here.cell, here.pbc)
        twin = replace(item, structure_id=f"{item.structure_id} again", structure=copy)
        label = twin.labels["energy"] + 0.1 * item.n_atoms
        return [*inputs, changed(twin, "labels", "energy", label) if contradicting else twin]

    return apply


def atom_doubled(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
    """Put an atom onto another one's image."""
    row = next(row for row, item in enumerate(inputs) if item.n_atoms > 1)
    here = inputs[row].structure
    positions = here.positions.copy()
    positions[0] = positions[1] + here.cell[0] + 0.1
    broken = Structure(here.atomic_numbers, positions, here.cell, here.pbc)
    return [*inputs[:row], replace(inputs[row], structure=broken), *inputs[row + 1 :]]


def turned(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
    """Rotate every item, each its own way: nothing is wrong, but there is shear."""
    rotations = np.linalg.qr(rng.normal(size=(len(inputs), 3, 3)))[0]
    return [_turned(item, rotation) for item, rotation in zip(inputs, rotations, strict=True)]


def _turned(item: DoctorInput, rotation: Array) -> DoctorInput:
    here = item.structure
    sides = [dict(side) for side in (item.labels, item.teacher)]
    for values in sides:
        values["forces"] = values["forces"] @ rotation
        if "stress" in values:
            full = values["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
            values["stress"] = (rotation.T @ full @ rotation)[
                [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
            ]
    positions, cell = here.positions @ rotation, here.cell @ rotation
    structure = Structure(here.atomic_numbers, positions, cell, here.pbc)
    return replace(item, structure=structure, labels=sides[0], teacher=sides[1])


def disordered(inputs: list[DoctorInput], rng: np.random.Generator) -> list[DoctorInput]:
    """Put the teacher's stress into VASP's order, where there is shear to see it by."""
    return every("teacher", "stress", lambda c, v: v[VASP_ORDER])(turned(inputs, rng), rng)


def atomic(share: float) -> Break:
    """Give the teacher atomic energies that sum to some share of the energy."""
    return lambda inputs, rng: [
        changed(
            item,
            "teacher",
            "atomic_energies",
            np.full(item.n_atoms, share * item.teacher["energy"] / item.n_atoms),
        )
        for item in inputs
    ]


def _energy(name: str, change: Values, code: str = "energy-unit", side: str = "teacher") -> Fault:
    return Fault(name, code, every(side, "energy", change))


def _forces(name: str, factor: float, code: str = "forces-unit", side: str = "teacher") -> Fault:
    return Fault(name, code, every(side, "forces", scaled(factor)))


def _stress(name: str, change: Values, code: str = "stress-unit", side: str = "teacher") -> Fault:
    return Fault(name, code, every(side, "stress", change))


ENERGY = [
    _energy("energy per atom", lambda item, value: value / item.n_atoms, "energy-per-atom"),
    _energy("label per atom", lambda c, value: value / c.n_atoms, "energy-per-atom", "labels"),
    _energy("energy in kcal/mol", scaled(KCAL)),
    _energy("energy in kJ/mol", scaled(KJ)),
    _energy("energy in Hartree", scaled(HARTREE)),
    _energy("energy in Rydberg", scaled(RYDBERG)),
    _energy("label energy in kcal/mol", scaled(KCAL), side="labels"),
    _energy("label energy in Hartree", scaled(HARTREE), side="labels"),
    _energy("energy negative", scaled(-1.0), "energy-sign"),
    Fault("energy shuffled", "energy-unrelated", shuffled("energy")),
    Fault("energy offset", "energy-offset", offset),
    Fault(
        "one energy wrong",
        "energy-outlier",
        some("labels", "energy", lambda item, value: value + 5.0 * item.n_atoms, 0.01),
    ),
]
FORCES = [
    _forces("gradients", -1.0, "forces-sign"),
    _forces("label gradients", -1.0, "forces-sign", "labels"),
    _forces("forces in kcal/mol/Å", KCAL),
    _forces("forces in Hartree/Bohr", HARTREE * BOHR),
    _forces("forces in Rydberg/Bohr", RYDBERG * BOHR),
    _forces("forces in eV/Bohr", BOHR),
    _forces("forces in kJ/mol/nm", KJ * 10),
    _forces("label forces in Hartree/Bohr", HARTREE * BOHR, side="labels"),
    _forces("gradients in kcal/mol/Å", -KCAL),
    Fault("atoms in another order", "forces-order", atoms_shuffled),
    Fault(
        "one force wrong",
        "forces-outlier",
        some("labels", "forces", lambda item, value: value + 50.0 * np.eye(len(value), 3), 0.01),
    ),
]
STRESS = [
    _stress("pressure", scaled(-1.0), "stress-sign"),
    _stress("stress in GPa", scaled(GPA)),
    _stress("stress in kBar", scaled(KBAR)),
    _stress("label stress in VASP's sign and unit", scaled(-KBAR), side="labels"),
    _stress("virial", lambda item, value: value * volume(item)),
    Fault("stress in VASP's order", "stress-order", disordered),
]
VALUES = [
    Fault("label forces missing", "missing", some("labels", "forces", None, 0.05)),
    Fault("teacher energies missing", "missing", some("teacher", "energy", None, 0.2)),
    Fault(
        "label energy NaN", "not-finite", some("labels", "energy", lambda c, v: v * np.nan, 0.02)
    ),
    Fault("forces all zero", "zeros", some("teacher", "forces", lambda item, value: 0 * value)),
    Fault("label stress zero", "zeros", some("labels", "stress", lambda item, value: 0 * value)),
    Fault("energy zero", "zeros", some("labels", "energy", lambda item, value: 0 * value, 0.02)),
    Fault("forces cut", "shape", some("teacher", "forces", lambda item, value: value[:-1], 0.02)),
    Fault("atomic energies without references", "sum", atomic(0.9)),
    Fault("a structure twice", "duplicate", twice(contradicting=False)),
    Fault("twice and contradicting", "duplicate-contradiction", twice(contradicting=True)),
    Fault("an atom doubled", "too-close", atom_doubled),
]
FAULTS = [*ENERGY, *FORCES, *STRESS, *VALUES]
