"""Faults of structures: the same one twice, atoms on top of each other, isolated atoms."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

from kd_plugins.doctor.inputs import DoctorInput, Finding, Values, first_ids, share
from kd_plugins.store.structure import Structure

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
