"""Errors of a student's energies, forces and stresses from its teacher's or the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_plugins.core.quantities import quantity

Floats = NDArray[np.float64]
Values = Mapping[str, Floats]
"""Quantity to its values in one structure."""
ROUNDING = 1e-12
"""A standard deviation relative to the root mean square that is rounding alone."""


@dataclass(frozen=True)
class Deviation:
    """Errors of one quantity, over all its numbers with equal weight.

    Args:
        mae: mean absolute error.
        rmse: root mean square error.
        count: of the numbers compared.
        unit: of both errors.
        target_rms: root mean square of what is compared with, in the same unit.
        target_std: its standard deviation, in the same unit.
    """

    mae: float
    rmse: float
    count: int
    unit: str
    target_rms: float
    target_std: float

    @property
    def percent(self) -> float:
        """The RMSE in percent of the targets' root mean square; NaN for targets that are all 0."""
        return 100 * self.rmse / self.target_rms if self.target_rms else float("nan")

    @property
    def r_squared(self) -> float:
        """The share of the targets' variance that is predicted; NaN for targets all alike."""
        if self.target_std <= ROUNDING * self.target_rms:
            return float("nan")
        return 1 - (self.rmse / self.target_std) ** 2


@dataclass(frozen=True)
class Accuracy:
    """Errors of a student, quantity by quantity.

    Args:
        errors: quantity to deviation; of ``energy`` also ``energy_per_atom``, since the error of a
            total grows with the structure.
        force_cosine: cosine of the angle between both forces, averaged over the atoms on which
            they are not both zero; NaN without such atoms, and without forces.
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
        teacher: the same of the teacher or of the labels; all its structures and quantities are
            compared.
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

    # The student may have more structures; it is compared on those of the teacher.
    student = {key: student.get(key, {}) for key in teacher}

    errors, force_cosine = {}, float("nan")
    for name in names:
        targets = _collect("teacher", teacher, name, n_atoms)
        predictions = _collect("student", student, name, n_atoms)

        if name == "forces":
            if free is not None:
                targets = [value[free[key]] for key, value in zip(teacher, targets, strict=True)]
                predictions = [
                    value[free[key]] for key, value in zip(teacher, predictions, strict=True)
                ]
            force_cosine = _mean_cosine(np.concatenate(predictions), np.concatenate(targets))

        if name == "energy":
            errors[name] = _deviation(predictions, targets, quantity(name).unit)
            name = "energy_per_atom"
            sizes = [n_atoms[key] for key in teacher]
            targets = [value / size for value, size in zip(targets, sizes, strict=True)]
            predictions = [value / size for value, size in zip(predictions, sizes, strict=True)]

        errors[name] = _deviation(predictions, targets, quantity(name).unit)
    return Accuracy(errors, force_cosine)


def _collect(
    who: str, structures: Mapping[str, Values], name: str, n_atoms: Mapping[str, int]
) -> list[Floats]:
    """Return one quantity of all structures, each checked."""
    collected = []
    for key, values in structures.items():
        if name not in values:
            raise ValueError(
                f"{who} has no {name} of structure {key!r}; compare only what both have"
            )
        value = np.asarray(values[name], dtype=np.float64)
        _check_value(f"{who}'s {name} of structure {key!r}", name, value, n_atoms.get(key))
        collected.append(value)
    return collected


def _check_value(where: str, name: str, value: Floats, n_atoms: int | None) -> None:
    if n_atoms is None or n_atoms < 1:
        raise ValueError(f"{where}: expected n_atoms to say how many atoms it has, got {n_atoms}")

    row = quantity(name)
    leading = (n_atoms,) if row.scope == "atom" else ()
    fits = value.shape[: len(leading)] == leading and row.fits(value.shape[len(leading) :])
    if not fits:
        raise ValueError(f"{where}: expected {(*leading, *row.shape)}, got {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{where} is not finite; leave the structure out and say so")


def _deviation(predictions: Sequence[Floats], targets: Sequence[Floats], unit: str) -> Deviation:
    pairs = zip(predictions, targets, strict=True)
    errors = np.concatenate([np.ravel(prediction - target) for prediction, target in pairs])
    references = np.concatenate([np.ravel(target) for target in targets])
    return Deviation(
        mae=float(np.mean(np.abs(errors))),
        rmse=float(np.sqrt(np.mean(errors**2))),
        count=len(errors),
        unit=unit,
        target_rms=float(np.sqrt(np.mean(references**2))),
        target_std=float(np.std(references)),
    )


def _mean_cosine(predictions: Floats, targets: Floats) -> float:
    """Return the mean cosine over atoms, of forces (N, 3).

    Where only one of both forces is zero there is no angle; the cosine counts as 0 there.
    """
    lengths = np.linalg.norm(predictions, axis=1), np.linalg.norm(targets, axis=1)
    counted = (lengths[0] > 0) | (lengths[1] > 0)
    if not counted.any():
        return float("nan")

    products = np.sum(predictions * targets, axis=1)[counted]
    scales = (lengths[0] * lengths[1])[counted]
    cosines = np.divide(products, scales, out=np.zeros_like(products), where=scales > 0)
    return float(np.mean(cosines))
