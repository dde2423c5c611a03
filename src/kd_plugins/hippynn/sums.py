"""What a teacher's atomic energies add up to, beside the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_plugins.doctor.references import fit_references
from kd_plugins.hippynn.convert import ArrayNames, DataError
from kd_plugins.hippynn.providers import Predictions


@dataclass(frozen=True, eq=False)
class SumErrors:
    """How far a teacher's energies are from the labels of a split.

    Args:
        per_atom: (n,) teacher minus label in eV/atom; NaN where the teacher says nothing.
    """

    per_atom: NDArray[np.float64]

    @property
    def n(self) -> int:
        """Structures of the split."""
        return len(self.per_atom)

    @property
    def mean(self) -> float:
        """eV/atom."""
        return float(np.nanmean(self.per_atom))

    @property
    def rms(self) -> float:
        """eV/atom."""
        return float(np.sqrt(np.nanmean(np.square(self.per_atom))))

    @property
    def typical(self) -> tuple[float, float]:
        """Median and robust standard deviation, eV/atom."""
        median = float(np.nanmedian(self.per_atom))
        return median, 1.4826 * float(np.nanmedian(np.abs(self.per_atom - median)))

    @property
    def worst(self) -> float:
        """eV/atom, of the structure that is furthest off."""
        return float(self.per_atom[np.nanargmax(np.abs(self.per_atom))])

    def beyond(self, limit: float) -> list[int]:
        """Return the rows that are further off than a limit in eV/atom."""
        return np.flatnonzero(np.abs(self.per_atom) > limit).tolist()


def sum_errors(
    arrays: Mapping[str, torch.Tensor], said: Predictions, names: ArrayNames
) -> SumErrors | None:
    """Return how far a teacher's energies are from the labels; None where one of them is not."""
    total = energies(said)
    if total is None or names.energy not in arrays or not said.present.any():
        return None
    sizes = (arrays[names.species] != 0).sum(dim=1).cpu().numpy()
    labels = arrays[names.energy].double().cpu().numpy().reshape(-1)
    return SumErrors(np.where(said.present, (total - labels) / sizes, np.nan))


def energies(said: Predictions) -> NDArray[np.float64] | None:
    """Return the total energies in eV, (n,), by which a teacher is compared with labels."""
    if "atomic_energies" in said.values:
        return said.values["atomic_energies"].sum(axis=1)
    return said.values.get("energy")


def offsets(
    arrays: Mapping[str, torch.Tensor], said: Predictions, names: ArrayNames
) -> dict[int, float]:
    """Return what the teacher gives an atom of each element more than the labels do, in eV.

    Raises:
        DataError: if the structures do not tell that, element by element.
    """
    errors = sum_errors(arrays, said, names)
    if errors is None:
        raise DataError("align: energies of the teacher and labels are needed, and one is missing")
    numbers = [row[row != 0].cpu().numpy() for row in arrays[names.species]]
    kept = np.flatnonzero(said.present)
    sizes = np.array([len(numbers[row]) for row in kept])
    found = fit_references(
        [numbers[row] for row in kept], errors.per_atom[kept] * sizes, np.zeros(len(kept))
    )
    vague = sorted(set(found.offsets) - found.determined)
    if vague:
        raise DataError(
            f"align: the training structures do not tell elements {vague} apart; add some with "
            "other proportions, or train on a teacher whose zero of energy is the labels'"
        )
    return dict(found.offsets)


def aligned(said: Predictions, species: torch.Tensor, moved: Mapping[int, float]) -> Predictions:
    """Return what a teacher says with an energy taken from every atom.

    Raises:
        DataError: for an element that the training split lacks.
    """
    if not moved:
        return said
    numbers = species.cpu().numpy()
    unknown = sorted(set(np.unique(numbers).tolist()) - {0, *moved})
    if unknown:
        raise DataError(f"align: the training split has no element {unknown[0]}, another has")
    shift = np.vectorize({0: 0.0, **moved}.get, otypes=[float])(numbers)
    moves: dict[str, Any] = {"atomic_energies": shift, "energy": shift.sum(axis=1)}
    values = {
        name: value - moves[name] if name in moves else value for name, value in said.values.items()
    }
    return replace(said, values=values)
