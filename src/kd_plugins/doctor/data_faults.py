"""Faults that show without comparing teacher and labels: of values, and of structures.

Values may be missing, not finite, of a wrong shape, placeholders, or may not add up; a structure
may be there twice, or have atoms that are isolated or on top of each other.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

from kd_plugins.doctor.inputs import DoctorInput, Finding, Severity, Values, first_ids, share
from kd_plugins.store.structure import Structure

# A teacher fails on single structures; where every tenth is missing, a run of the labeller is.
MANY_MISSING = 0.1
"""Share of structures without a teacher's value, above which that is an error."""

# About the error of a good teacher, which is what it predicts where the label is exactly zero.
PLACEHOLDER = {"energy": 0.01, "forces": 0.05, "stress": 1e-3}
"""How large the other side's value must be where one side is 0, for the 0 to be a placeholder:
largest component, in our units, energies per atom."""

# A teacher in kcal/mol/Å has noise of 1 eV/Å where symmetry lets forces vanish, so the limit must
# scale with its values.
OF_USUAL = 0.03
"""The same as a part of the other side's usual value; the larger of both limits counts."""

# Rounding a total energy of 100,000 eV to float32 moves it by 0.008 eV in all; a reference or a
# correction that is missing in one of both is some 0.1 eV/atom and more.
SUM_TOLERANCE = 0.01
"""eV/atom by which atomic energies may miss the energy."""

_FLOAT16 = 1e-3  # relative precision of values that a store keeps as float16

CLOSEST = 0.4
"""Å, nearer than any two nuclei are in matter; H2 has 0.74."""

LONELY = 6.0
"""Å without any neighbour, at which an atom counts as isolated: the cutoff of usual models."""

# Files keep positions to eight digits or so; the steps of a trajectory move atoms by more.
SAME = 1e-4
"""Å by which the same structure may differ where it is written twice."""

# Above the rounding of a store's float32 values and the noise of a converged calculation.
CONTRADICTION = {"energy": 1e-3, "forces": 0.02, "stress": 1e-4}
"""By how much values of one structure may differ: eV/atom, eV/Å, eV/Å³."""

_CHUNK = 1 << 22  # distances at once: 100 MB of vectors, however large the structure
_SMALL = 1000  # atoms up to which the distances between all are cheaper than a neighbour list


# ----------------------------------------------------------------------------------------------
# Values


@dataclass(frozen=True, eq=False)
class _Column:
    """One quantity of all structures on one side.

    Args:
        name: of the quantity.
        label: in messages, such as ``"teacher energy"``.
        inputs: all structures.
        values: one a structure, None where there is none.
        fits: whether each has its structure's shape.
        is_finite: whether each is finite.
    """

    name: str
    label: str
    inputs: Sequence[DoctorInput]
    values: Sequence[Values | None]
    fits: Sequence[bool]
    is_finite: Sequence[bool]

    @classmethod
    def collect(cls, inputs: Sequence[DoctorInput], side: str, name: str) -> _Column:
        values = [dict(item.sides)[side].get(name) for item in inputs]
        fits = [
            value is not None and item.fits(name, value)
            for item, value in zip(inputs, values, strict=True)
        ]
        is_finite = [value is not None and bool(np.isfinite(value).all()) for value in values]
        return cls(name, f"{side} {name}", inputs, values, fits, is_finite)

    @property
    def usable(self) -> list[Values | None]:
        """The values that fit and are finite, None for the others."""
        rows = zip(self.values, self.fits, self.is_finite, strict=True)
        return [value if fits and is_finite else None for value, fits, is_finite in rows]

    def finding(
        self, code: str, severity: Severity, bad: Sequence[DoctorInput], words: str
    ) -> Iterator[Finding]:
        """Yield a finding if some structures are bad."""
        if bad:
            text = f"{self.label} of {share(len(bad), len(self.inputs))} {words}"
            yield Finding(code, severity, self.name, text, first_ids(bad))


def value_faults(inputs: Sequence[DoctorInput]) -> list[Finding]:
    """Look at labels and teacher values one by one."""
    names = sorted({name for item in inputs for _, side in item.sides for name in side})
    labels, teachers = (
        {name: _Column.collect(inputs, side, name) for name in names}
        for side in ("label", "teacher")
    )

    found: list[Finding] = []
    for here, there in ((labels, teachers), (teachers, labels)):
        is_teacher = here is teachers
        for name in names:
            found += _shapes(here[name])
            found += _not_finite(here[name])

            # A label without a target trains nothing wrong, so it counts only beside targets.
            if is_teacher or any(value is not None for value in there[name].values):
                found += _missing(here[name], many=MANY_MISSING if is_teacher else 1.0)
            found += _placeholders(here[name], there[name])
        found += _sums(here)
    return found


def _shapes(column: _Column) -> Iterator[Finding]:
    rows = zip(column.inputs, column.values, column.fits, strict=True)
    bad = [(item, value) for item, value, fits in rows if value is not None and not fits]
    if bad:
        item, value = bad[0]
        words = (
            f"do not fit their structure, such as {value.shape} for the {item.n_atoms} atoms of "
            f"{item.structure_id!r}; do values and structures belong together?"
        )
        yield from column.finding("shape", "error", [item for item, _ in bad], words)


def _not_finite(column: _Column) -> Iterator[Finding]:
    rows = zip(column.inputs, column.values, column.is_finite, strict=True)
    bad = [item for item, value, is_finite in rows if value is not None and not is_finite]
    words = "hold NaN or inf, on which training ends; leave the value or the structure out"
    return column.finding("not-finite", "error", bad, words)


def _missing(column: _Column, many: float) -> Iterator[Finding]:
    if all(value is None for value in column.values):
        return

    rows = zip(column.inputs, column.values, strict=True)
    missing = [item for item, value in rows if value is None and _may_have(item, column.name)]
    severity: Severity = "error" if len(missing) > many * len(column.inputs) else "warning"
    words = "are missing while others have them; add them, or be sure that it is meant so"
    yield from column.finding("missing", severity, missing, words)


def _may_have(item: DoctorInput, name: str) -> bool:
    """Return whether a structure can have a quantity: no stress without a lattice."""
    return name != "stress" or bool(item.structure.pbc.all())


def _placeholders(column: _Column, other: _Column) -> Iterator[Finding]:
    """Find exact zeros where the other side's value is not zero.

    Energies may be 0 for a reason, such as an element's formation energy or the structure that all
    others are relative to, so these are warnings. Forces vanish by symmetry, on a single atom
    always.
    """
    name = column.name
    if name not in PLACEHOLDER:
        return

    sizes = [
        _size(item, name, value) for item, value in zip(other.inputs, other.usable, strict=True)
    ]
    usual = float(np.median([size for size in sizes if size] or [0.0]))
    least = max(PLACEHOLDER[name], OF_USUAL * usual)

    bad = []
    for item, value, size in zip(column.inputs, column.usable, sizes, strict=True):
        if value is None or value.any() or (name == "forces" and item.n_atoms < 2):
            continue
        # Where the other side has no value, forces and stress may well be 0; energies hardly.
        is_suspicious = name == "energy" if size is None else size > least
        if is_suspicious:
            bad.append(item)

    if name == "energy":
        words = (
            "are exactly 0: if these are placeholders for missing ones, leave them out; energies "
            "relative to a structure or to the elements may be 0"
        )
        yield from column.finding("zeros", "warning", bad, words)
    else:
        words = (
            "are exactly 0 where they should not be: placeholders for missing ones? Leave them out"
        )
        yield from column.finding("zeros", "error", bad, words)


def _size(item: DoctorInput, name: str, value: Values | None) -> float | None:
    """Return the largest component, of an energy per atom; None where there is none."""
    if value is None or value.size == 0:
        return None
    return float(np.abs(value).max()) / (item.n_atoms if name == "energy" else 1)


def _sums(columns: dict[str, _Column]) -> Iterator[Finding]:
    """Compare energies with the sum of atomic energies, and with energies per atom."""
    for name in ("atomic_energies", "energy_per_atom"):
        if name not in columns or "energy" not in columns:
            continue

        column = columns[name]
        rows = zip(column.inputs, column.usable, columns["energy"].usable, strict=True)
        differences = [(_sum_difference(item, parts, energy), item) for item, parts, energy in rows]
        bad = [pair for pair in differences if pair[0] > SUM_TOLERANCE]
        bad.sort(key=lambda pair: -pair[0])
        if bad:
            words = (
                f"do not add up to the energy, at worst by {bad[0][0]:.3g} eV/atom; is a reference "
                "or a correction in one of them only?"
            )
            yield from column.finding("sum", "error", [item for _, item in bad], words)


def _sum_difference(item: DoctorInput, parts: Values | None, energy: Values | None) -> float:
    """Return by how much parts miss the energy, eV/atom; 0 within what their dtype can hold."""
    if energy is None or parts is None or item.n_atoms == 0:
        return 0.0
    per_atom = float(np.abs(parts.mean() - energy / item.n_atoms))
    return per_atom if per_atom > _FLOAT16 * np.abs(parts).mean() else 0.0


# ----------------------------------------------------------------------------------------------
# Structures


def structure_faults(inputs: Sequence[DoctorInput]) -> list[Finding]:
    """Look for duplicates and for atoms too close."""
    return [*_duplicates(inputs), *_too_close(inputs)]


def isolated_atoms(inputs: Sequence[DoctorInput]) -> Iterator[Finding]:
    """Warn of structures with an atom that has no neighbour.

    It is no part of `structure_faults`, because neighbour lists cost more than all other checks
    together: `kd-plugins doctor` runs it, the check before a training does not.
    """
    alone = [item for item in inputs if _has_isolated(item.structure)]
    if alone:
        text = (
            f"{share(len(alone), len(inputs))} have an atom without neighbour within {LONELY} Å, "
            "for which a model with such a cutoff has no input; is the cell's unit right?"
        )
        yield Finding("isolated-atom", "warning", "structure", text, first_ids(alone))


def _duplicates(inputs: Sequence[DoctorInput]) -> Iterator[Finding]:
    pairs = [(one, other, _contradiction(one, other)) for one, other in _find_same(inputs)]

    wrong = [pair for pair in pairs if pair[2] is not None]
    if wrong:
        one, other, name = wrong[0]
        text = (
            f"{len(wrong)} pairs of ids have the same structure but different {name}, such as "
            f"{one.structure_id!r} and {other.structure_id!r}; no student can learn both: keep one"
        )
        ids = first_ids(item for pair in wrong for item in pair[:2])
        quantity = (name or "").split()[-1]
        yield Finding("duplicate-contradiction", "error", quantity, text, ids)

    agreeing = [item for pair in pairs if pair[2] is None for item in pair[:2]]
    if agreeing:
        text = (
            f"{len(pairs) - len(wrong)} pairs of ids have the same structure and the same values, "
            f"such as {agreeing[0].structure_id!r} and {agreeing[1].structure_id!r}; they count "
            "twice, and may stand on both sides of a split"
        )
        yield Finding("duplicate", "warning", "structure", text, first_ids(agreeing))


def _find_same(inputs: Sequence[DoctorInput]) -> Iterator[tuple[DoctorInput, DoctorInput]]:
    """Yield each structure with the next one that is the same.

    Structures are sorted by a number that equal ones share, so that only neighbours in that order
    are compared, not all pairs.
    """
    groups: dict[bytes, list[tuple[float, DoctorInput]]] = defaultdict(list)
    for item in inputs:
        groups[item.structure.atomic_numbers.tobytes()].append((_sort_key(item.structure), item))

    for group in groups.values():
        group.sort(key=lambda pair: (pair[0], pair[1].structure_id))
        keys = [key for key, _ in group]
        for row, (key, item) in enumerate(group):
            # The key moves little more than the atoms; 20 times leaves room for "little".
            end = bisect(keys, key + 20 * SAME)
            same = (other for _, other in group[row + 1 : end] if _is_same(item, other))
            yield from ((item, other) for other in islice(same, 1))


def _sort_key(structure: Structure) -> float:
    """Return a number that changes little when atoms move little, and not with their images.

    Cosines of fractional coordinates do not change when an atom crosses the cell's boundary.
    """
    n_atoms = max(structure.n_atoms, 1)
    periodic = structure.pbc
    if not periodic.any():
        return float(np.linalg.norm(structure.positions, axis=1).sum() / n_atoms)

    fractions = (structure.positions @ np.linalg.pinv(structure.cell))[:, periodic]
    size = np.linalg.norm(structure.cell)
    return float(size + np.cos(2 * np.pi * fractions).sum() / n_atoms)


def _is_same(item: DoctorInput, other: DoctorInput) -> bool:
    one, two = item.structure, other.structure
    if one.difference(two) is not None or np.abs(one.cell - two.cell).max() > SAME:
        return False
    apart = _nearest_images(one.positions - two.positions, one)
    return bool(np.abs(apart).max(initial=0.0) < SAME)


def _contradiction(item: DoctorInput, other: DoctorInput) -> str | None:
    """Return which value of one structure differs under another id, or None."""
    for (side, here), (_, there) in zip(item.sides, other.sides, strict=True):
        for name, tolerance in CONTRADICTION.items():
            if name not in here or name not in there or here[name].shape != there[name].shape:
                continue
            size = item.n_atoms if name == "energy" else 1
            if np.abs(here[name] - there[name]).max(initial=0.0) > tolerance * size:
                return f"{side} {name}"
    return None


def _too_close(inputs: Sequence[DoctorInput]) -> Iterator[Finding]:
    distances = [(_smallest_distance(item.structure), item) for item in inputs]
    bad = [pair for pair in distances if pair[0] < CLOSEST]
    bad.sort(key=lambda pair: pair[0])
    if bad:
        distance, worst = bad[0]
        text = (
            f"{share(len(bad), len(inputs))} have atoms closer than {CLOSEST} Å, down to "
            f"{distance:.3f} Å in {worst.structure_id!r}: an atom twice, or lengths in another "
            "unit? No label of such a structure is worth learning"
        )
        yield Finding("too-close", "error", "structure", text, first_ids(item for _, item in bad))


def _smallest_distance(structure: Structure) -> float:
    """Return the smallest distance between two atoms, or an atom and its own image, in Å."""
    # An atom's own images are a lattice vector away.
    lattice = np.linalg.norm(structure.cell[structure.pbc], axis=1)
    smallest = float(lattice.min(initial=np.inf))

    n_rows = max(1, _CHUNK // max(structure.n_atoms, 1))
    for start in range(0, structure.n_atoms, n_rows):
        rows = structure.positions[start : start + n_rows, None] - structure.positions[None]
        vectors = _nearest_images(rows, structure)
        squares = np.einsum("ijk,ijk->ij", vectors, vectors)

        # The distance of an atom to itself does not count.
        squares[np.arange(len(squares)), start + np.arange(len(squares))] = np.inf
        smallest = min(smallest, float(np.sqrt(squares.min(initial=np.inf))))
    return smallest


def _nearest_images(vectors: Values, structure: Structure) -> Values:
    """Return vectors between atoms, (..., 3), to the nearest image of the second.

    Rounded fractions find the nearest image only of atoms that are near, which is all that counts
    here: in a skew cell a distant atom's image may be nearer than the one that they give.
    """
    images = np.round(vectors @ np.linalg.pinv(structure.cell)) * structure.pbc
    return vectors - images @ structure.cell


def _has_isolated(structure: Structure) -> bool:
    """Return whether an atom has no neighbour; an image of itself is one."""
    lengths = np.linalg.norm(structure.cell, axis=1)
    if (lengths[structure.pbc] < LONELY).any() or _are_all_near(structure):
        return False

    # ASE needs three lattice vectors, also of a molecule that has none.
    cell = complete_cell(structure.cell)
    first = primitive_neighbor_list("i", structure.pbc, cell, structure.positions, LONELY)
    return bool((np.bincount(first, minlength=structure.n_atoms) == 0).any())


def _are_all_near(structure: Structure) -> bool:
    """Return whether each atom has another near it, by one image of each.

    It is quick and nearly always true; where it is not, the neighbour list decides.
    """
    if not 1 < structure.n_atoms <= _SMALL:
        return False
    apart = structure.positions[:, None] - structure.positions[None]
    distances = np.linalg.norm(_nearest_images(apart, structure), axis=2)
    np.fill_diagonal(distances, np.inf)
    return bool((distances.min(axis=1) < LONELY).all())
