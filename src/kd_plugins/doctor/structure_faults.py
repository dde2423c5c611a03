"""Faults of structures: the same one twice, and atoms on top of each other."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from kd_plugins.doctor.inputs import DoctorInput, Finding, first_ids, share
from kd_plugins.store.structure import Structure

CLOSEST = 0.4
"""Å, nearer than any two nuclei are in matter; H2 has 0.74."""
SAME = 1e-4
"""Å by which the same structure may differ where it is written twice; frames move more."""
CONTRADICTION = {"energy": 1e-3, "forces": 0.02, "stress": 1e-4}
"""By how much values of one structure may differ: eV/atom, eV/Å, eV/Å³."""
_CHUNK = 1 << 22


def structure_faults(cases: Sequence[DoctorInput]) -> list[Finding]:
    """Look for duplicates and for atoms too close."""
    return [*_duplicates(cases), *_too_close(cases)]


def _duplicates(cases: Sequence[DoctorInput]) -> Iterator[Finding]:
    pairs = list(_same(cases))
    wrong = [(one, other, name) for one, other in pairs if (name := _contradiction(one, other))]
    if wrong:
        one, other, name = wrong[0]
        message = (
            f"{len(wrong)} pairs of ids have the same structure but different {name}, such as "
            f"{one.structure_id!r} and {other.structure_id!r}; no student can learn both: keep one"
        )
        ids = first_ids(case for pair in wrong for case in pair[:2])
        yield Finding("duplicate-contradiction", "error", name.split()[-1], message, ids)
    agreeing = [case for pair in pairs if not _contradiction(*pair) for case in pair]
    if agreeing:
        message = (
            f"{len(pairs) - len(wrong)} pairs of ids have the same structure and the same values, "
            f"such as {agreeing[0].structure_id!r} and {agreeing[1].structure_id!r}; they count "
            "twice, and may stand on both sides of a split"
        )
        yield Finding("duplicate", "warning", "structure", message, first_ids(agreeing))


def _same(cases: Sequence[DoctorInput]) -> Iterator[tuple[DoctorInput, DoctorInput]]:
    """Yield each case with the next one of the same structure, sorted by what they would share."""
    groups: dict[bytes, list[tuple[float, DoctorInput]]] = defaultdict(list)
    for case in cases:
        groups[case.structure.atomic_numbers.tobytes()].append((_mark(case.structure), case))
    for group in groups.values():
        group.sort(key=lambda pair: (pair[0], pair[1].structure_id))
        marks = [mark for mark, _ in group]
        for row, (mark, case) in enumerate(group):
            end = bisect(marks, mark + 20 * SAME)
            twins = (other for _, other in group[row + 1 : end] if _is_same(case, other))
            yield from ((case, twin) for twin in islice(twins, 1))


def _mark(structure: Structure) -> float:
    """Return a number that moves little more than the atoms, in Å, and not with their images."""
    periodic = structure.pbc
    if not periodic.any():
        return float(np.linalg.norm(structure.positions, axis=1).sum() / max(structure.n_atoms, 1))
    fractions = (structure.positions @ np.linalg.pinv(structure.cell))[:, periodic]
    size = np.linalg.norm(structure.cell)
    return float(size + np.cos(2 * np.pi * fractions).sum() / max(structure.n_atoms, 1))


def _is_same(case: DoctorInput, other: DoctorInput) -> bool:
    one, two = case.structure, other.structure
    if one.difference(two) is not None or np.abs(one.cell - two.cell).max() > SAME:
        return False
    apart = one.positions - two.positions
    apart -= (np.round(apart @ np.linalg.pinv(one.cell)) * one.pbc) @ one.cell
    return bool(np.abs(apart).max(initial=0.0) < SAME)


def _contradiction(case: DoctorInput, other: DoctorInput) -> str | None:
    """Return which value of one structure differs under another id, or None."""
    for (side, here), (_, there) in zip(case.sides, other.sides, strict=True):
        for name, tolerance in CONTRADICTION.items():
            if name not in here or name not in there or here[name].shape != there[name].shape:
                continue
            size = case.n_atoms if name == "energy" else 1
            if np.abs(here[name] - there[name]).max(initial=0.0) > tolerance * size:
                return f"{side} {name}"
    return None


def _too_close(cases: Sequence[DoctorInput]) -> Iterator[Finding]:
    distances = [(_closest(case.structure), case) for case in cases]
    bad = sorted((pair for pair in distances if pair[0] < CLOSEST), key=lambda pair: pair[0])
    if bad:
        message = (
            f"{share(len(bad), len(cases))} have atoms closer than {CLOSEST} Å, down to "
            f"{bad[0][0]:.3f} Å in {bad[0][1].structure_id!r}: an atom twice, or lengths in "
            "another unit? No label of such a structure is worth learning"
        )
        yield Finding("too-close", "error", "structure", message, first_ids(c for _, c in bad))


def _closest(structure: Structure) -> float:
    """Return the smallest distance between two atoms or an atom and its image, in Å.

    Rounded fractions give the nearest image only of atoms that are near, which is all that counts.
    """
    inverse = np.linalg.pinv(structure.cell)
    lattice = np.linalg.norm(structure.cell[structure.pbc], axis=1)
    closest = float(lattice.min(initial=np.inf))
    rows = max(1, _CHUNK // max(structure.n_atoms, 1))
    for start in range(0, structure.n_atoms, rows):
        apart = structure.positions[start : start + rows, None] - structure.positions[None]
        apart -= (np.round(apart @ inverse) * structure.pbc) @ structure.cell
        squares = np.square(apart).sum(axis=2)
        squares[np.arange(len(squares)), start + np.arange(len(squares))] = np.inf
        closest = min(closest, float(np.sqrt(squares.min(initial=np.inf))))
    return closest
