"""How far a student's energies, forces and stresses are from its teacher's or the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_plugins.core.quantities import quantity

Values = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Deviation:
    """How far one quantity is off, over all its numbers alike.

    Args:
        mae: mean absolute error.
        rmse: root mean square error.
        count: how many numbers were compared.
        unit: of both errors.
    """

    mae: float
    rmse: float
    count: int
    unit: str


@dataclass(frozen=True)
class Accuracy:
    """How a student compares.

    Args:
        errors: quantity to deviation; ``energy`` is listed as ``energy_per_atom``, since the
            error of a total grows with the structure.
        force_cosine: of the angle between both forces, averaged over those atoms on which they are
            not both zero; NaN if there are none or no forces.
    """

    errors: Mapping[str, Deviation]
    force_cosine: float


def compare(
    student: Mapping[str, Values],
    teacher: Mapping[str, Values],
    n_atoms: Mapping[str, int],
    free: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Accuracy:
    """Compare a student with its teacher or with labels, structure by structure.

    Args:
        student: structure id to its values, by quantity: energy () of the whole structure in eV,
            forces (N, 3) in eV/Å, stress (6,) in eV/Å³, and so on.
        teacher: the same of the teacher; its quantities are compared, its structures too.
        n_atoms: structure id to number of atoms.
        free: structure id to (N,), the atoms whose forces count; all if left out.

    Raises:
        KeyError: for a quantity that the table does not have.
        ValueError: for no structure, or, named by structure and quantity, values that are missing,
            not finite or of another shape.

    >>> target = {"a": {"energy": np.array(-4.0)}}
    >>> compare({"a": {"energy": np.array(-3.0)}}, target, {"a": 2}).errors["energy_per_atom"].mae
    0.5
    """
    names = list(dict.fromkeys(name for values in teacher.values() for name in values))
    if not names:
        raise ValueError("compare: expected a teacher with structures and values, got none")
    errors, force_cosine = {}, float("nan")
    for name in names:
        unit = quantity(name).unit
        targets = _collected("teacher", teacher, name, n_atoms)
        guesses = _collected(
            "student", {key: student.get(key, {}) for key in teacher}, name, n_atoms
        )
        if name == "forces":
            kept = [slice(None) if free is None else free[key] for key in teacher]
            targets, guesses = (
                [value[rows] for value, rows in zip(side, kept, strict=True)]
                for side in (targets, guesses)
            )
            force_cosine = _cosine(np.concatenate(guesses), np.concatenate(targets))
        if name == "energy":
            sizes = [n_atoms[key] for key in teacher]
            targets, guesses = _divided(targets, sizes), _divided(guesses, sizes)
            name, unit = "energy_per_atom", quantity("energy_per_atom").unit
        errors[name] = _error(guesses, targets, unit)
    return Accuracy(errors, force_cosine)


def _collected(
    who: str, structures: Mapping[str, Values], name: str, n_atoms: Mapping[str, int]
) -> list[NDArray[np.float64]]:
    """Return one quantity of all structures, each checked."""
    collected = []
    for key, values in structures.items():
        if name not in values:
            raise ValueError(
                f"{who} has no {name} of structure {key!r}; compare only what both have"
            )
        value = np.asarray(values[name], dtype=np.float64)
        _check(f"{who}'s {name} of structure {key!r}", name, value, n_atoms.get(key))
        collected.append(value)
    return collected


def _check(what: str, name: str, value: NDArray[np.float64], n_atoms: int | None) -> None:
    if n_atoms is None or n_atoms < 1:
        raise ValueError(f"{what}: expected n_atoms to say how many atoms it has, got {n_atoms}")
    row = quantity(name)
    leading = (n_atoms,) if row.scope == "atom" else ()
    fits = value.shape[: len(leading)] == leading and row.fits(value.shape[len(leading) :])
    if not fits:
        raise ValueError(f"{what}: expected {(*leading, *row.shape)}, got {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{what} is not finite; leave the structure out and say so")


def _divided(
    values: Sequence[NDArray[np.float64]], sizes: Sequence[int]
) -> list[NDArray[np.float64]]:
    return [value / size for value, size in zip(values, sizes, strict=True)]


def _error(
    guesses: Sequence[NDArray[np.float64]], targets: Sequence[NDArray[np.float64]], unit: str
) -> Deviation:
    both = zip(guesses, targets, strict=True)
    misses = np.concatenate([np.ravel(guess - target) for guess, target in both])
    return Deviation(
        mae=float(np.mean(np.abs(misses))),
        rmse=float(np.sqrt(np.mean(misses**2))),
        count=len(misses),
        unit=unit,
    )


def _cosine(guesses: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return the mean over atoms; a force against none at all counts as 0."""
    sizes = np.linalg.norm(guesses, axis=1), np.linalg.norm(targets, axis=1)
    counted = (sizes[0] > 0) | (sizes[1] > 0)
    if not counted.any():
        return float("nan")
    products, lengths = np.sum(guesses * targets, axis=1)[counted], (sizes[0] * sizes[1])[counted]
    return float(
        np.mean(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))
    )
