"""Sums of a teacher's atomic energies beside the labels, and the offset between both zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_plugins.doctor.references import fit_references
from kd_plugins.hippynn.convert import ArrayNames, DataError
from kd_plugins.hippynn.coverage import has_value
from kd_plugins.hippynn.providers import Predictions


@dataclass(frozen=True, eq=False)
class SumErrors:
    """How far a teacher's energies are from the labels of a split.

    Args:
        per_atom: (n,) teacher minus label in eV/atom; NaN for structures without a target or a
            label.
    """

    per_atom: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of structures that have both."""
        return int((~np.isnan(self.per_atom)).sum())

    @property
    def mean(self) -> float:
        """Mean error, eV/atom."""
        return float(np.nanmean(self.per_atom))

    @property
    def rms(self) -> float:
        """Root mean square error, eV/atom."""
        return float(np.sqrt(np.nanmean(np.square(self.per_atom))))

    @property
    def typical(self) -> tuple[float, float]:
        """Median and robust standard deviation, eV/atom.

        1.4826 turns the median deviation of normal errors into their standard deviation.
        """
        median = float(np.nanmedian(self.per_atom))
        return median, 1.4826 * float(np.nanmedian(np.abs(self.per_atom - median)))

    @property
    def worst(self) -> float:
        """The largest error with its sign, eV/atom."""
        return float(self.per_atom[np.nanargmax(np.abs(self.per_atom))])

    def beyond(self, limit: float) -> list[int]:
        """Return the rows with a larger error than a limit in eV/atom."""
        return np.flatnonzero(np.abs(self.per_atom) > limit).tolist()


def total_energies(predictions: Predictions) -> NDArray[np.float64] | None:
    """Return the total energies in eV, (n,), by which a teacher is compared with labels."""
    if "atomic_energies" in predictions.values:
        return predictions.values["atomic_energies"].sum(axis=1)
    return predictions.values.get("energy")


def sum_errors(
    arrays: Mapping[str, torch.Tensor], predictions: Predictions, names: ArrayNames
) -> SumErrors | None:
    """Return how far a teacher's energies are from the labels; None where no structure has both."""
    total = total_energies(predictions)
    if total is None or names.energy not in arrays:
        return None
    has_both = predictions.present & has_value(arrays, names.energy).numpy()
    if not has_both.any():
        return None

    n_atoms = (arrays[names.species] != 0).sum(dim=1).cpu().numpy()  # species 0 is padding
    labels = arrays[names.energy].double().cpu().numpy().reshape(-1)
    return SumErrors(np.where(has_both, (total - labels) / n_atoms, np.nan))


def fit_offsets(
    arrays: Mapping[str, torch.Tensor], predictions: Predictions, names: ArrayNames
) -> dict[int, float]:
    """Fit how much more energy in eV the teacher gives an atom of each element than the labels do.

    Only structures that have both count.

    Raises:
        DataError: if the structures do not determine that, element by element.
    """
    errors = sum_errors(arrays, predictions, names)
    if errors is None:
        raise DataError(
            "align: no training structure has both a label and a teacher's energy; add "
            "atomic_energies or energy of structures that have energy labels"
        )

    numbers = [row[row != 0].cpu().numpy() for row in arrays[names.species]]
    kept = np.flatnonzero(~np.isnan(errors.per_atom))
    n_atoms = np.array([len(numbers[row]) for row in kept])
    references = fit_references(
        [numbers[row] for row in kept], errors.per_atom[kept] * n_atoms, np.zeros(len(kept))
    )

    undetermined = sorted(set(references.offsets) - references.determined)
    if undetermined:
        raise DataError(
            f"align: the training structures do not determine the offsets of elements "
            f"{undetermined} one by one; add some with other proportions, or train on a teacher "
            "that has the labels' zero of energy"
        )
    return dict(references.offsets)


def subtract_offsets(
    predictions: Predictions, species: torch.Tensor, offsets: Mapping[int, float]
) -> Predictions:
    """Return targets with an element's offset subtracted from the energy of every atom.

    Raises:
        DataError: for an element that the training split lacks.
    """
    if not offsets:
        return predictions

    numbers = species.cpu().numpy()
    unknown = sorted(set(np.unique(numbers).tolist()) - {0, *offsets})
    if unknown:
        raise DataError(f"align: the training split has no element {unknown[0]}, another has")

    per_atom = np.vectorize({0: 0.0, **offsets}.get, otypes=[float])(numbers)
    moves: dict[str, Any] = {"atomic_energies": per_atom, "energy": per_atom.sum(axis=1)}
    values = {
        name: value - moves[name] if name in moves else value
        for name, value in predictions.values.items()
    }
    return replace(predictions, values=values)
