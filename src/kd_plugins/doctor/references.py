"""Per-element energy offsets between a teacher and labels, fitted by least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from kd_plugins.store.structure import Array

# Both limits must be passed. CHGNet scatters by 0.12 eV/atom on MPtrj's organic structures, with
# long tails, and none of these is a failed calculation; those are off by eV/atom.
OUTLIER_ENERGY = 0.5
"""eV/atom off the fit, below which nothing is called an outlier."""
OUTLIER_SCATTER = 15.0
"""Robust standard deviations off the fit, below which nothing is called an outlier."""

_ROUNDS = 20  # of reweighting, after which residuals change by less than any limit here
_SMALL = 1e-3  # eV/atom, a residual below which a structure's weight rises no more
_ZERO = 1e-8  # of a singular value or leverage, rounding aside


@dataclass(frozen=True, eq=False)
class Compositions:
    """Composition fractions of structures, and least squares on them.

    Fractions and energies per atom are fitted, not counts and totals: the residuals of a large and
    of a small structure are then comparable. Where the fractions do not determine every element,
    the solution is that of least norm.

    Args:
        elements: atomic numbers, one a column.
        fractions: (B, Z) shares of the elements in each structure.

    >>> water, hydrogen = np.array([8, 1, 1]), np.array([1, 1])
    >>> per_atom = np.array([(-4.0 + 2 * 0.5) / 3, 0.5])
    >>> Compositions.of([water, hydrogen]).solve(per_atom).round(6).tolist()
    [0.5, -4.0]
    """

    elements: tuple[int, ...]
    fractions: Float[Array, "B Z"]

    @classmethod
    def of(cls, atomic_numbers: Sequence[Int[Array, "_"]]) -> Compositions:
        """Return the compositions of structures.

        Args:
            atomic_numbers: one array a structure, B of shape (N,).

        Raises:
            ValueError: for a structure without atoms.
        """
        if any(len(numbers) == 0 for numbers in atomic_numbers):
            raise ValueError("atomic_numbers: expected one atom or more a structure, got none")

        elements = sorted({z for numbers in atomic_numbers for z in numbers.tolist()})
        fractions = [[np.mean(numbers == z) for z in elements] for numbers in atomic_numbers]
        return cls(tuple(elements), np.array(fractions).reshape(-1, len(elements)))

    def select(self, rows: Bool[Array, " B"]) -> Compositions:
        """Return the compositions of some structures, with the same columns."""
        return Compositions(self.elements, self.fractions[rows])

    @cached_property
    def _factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The singular value decomposition, without directions that no structure determines."""
        left, sizes, right = np.linalg.svd(self.fractions, full_matrices=False)
        kept = sizes > _ZERO * sizes.max(initial=0.0)
        return left[:, kept], sizes[kept], right[kept]

    @property
    def row_space(self) -> Float[Array, "R Z"]:
        """Orthonormal combinations of elements that the fractions determine, (rank, Z)."""
        return self._factors[2]

    @property
    def rank(self) -> int:
        """Number of independent combinations of elements."""
        return len(self.row_space)

    @property
    def leverages(self) -> Float[Array, " B"]:
        """How far each structure determines its own fit, 0 to 1; 1 if no other one does."""
        return np.square(self._factors[0]).sum(axis=1)

    def solve(self, per_atom: Float[Array, " B"]) -> Float[Array, " Z"]:
        """Return one energy for each element, by least squares of energies per atom."""
        left, sizes, right = self._factors
        return right.T @ ((left.T @ per_atom) / sizes)

    def residuals(self, per_atom: Float[Array, " B"]) -> Float[Array, " B"]:
        """Return what remains of energies per atom after the fit to the elements."""
        left = self._factors[0]
        return per_atom - left @ (left.T @ per_atom)

    def left_out(self, per_atom: Float[Array, " B"]) -> Float[Array, " B"]:
        """Return residuals against the fit to all others; NaN where those determine nothing.

        The residual of a structure that is left out is its residual in the fit to all over
        1 - leverage, so one fit does for all of them.
        """
        alone = 1 - self.leverages
        return self.residuals(per_atom) / np.where(alone > _ZERO, alone, np.nan)

    def determined(self) -> frozenset[int]:
        """Return the elements with an energy that no combination of others can stand for."""
        # The squared length of an element's unit vector inside the row space.
        shares = np.square(self.row_space).sum(axis=0)
        pairs = zip(self.elements, shares, strict=True)
        return frozenset(z for z, share in pairs if share > 1 - _ZERO)

    def supported(self) -> frozenset[int]:
        """Return the elements that stay determined whichever one structure is left out."""
        return self.select(self.leverages < 1 - _ZERO).determined()


@dataclass(frozen=True, eq=False)
class References:
    """A fitted energy offset, teacher minus label.

    Args:
        offsets: atomic number to eV/atom; of least norm where the data determine only sums.
        determined: elements with an offset that follows from the data.
        supported: those of them with an offset that rests on more than one structure.
        residuals: (B,) of each structure, eV/atom, outliers included.
        left_out: (B,) the same against the fit to all others; NaN where those determine nothing.
        outliers: (B,) the structures that the fit left aside.
        row_space: (rank, Z) orthonormal combinations of elements that the data determine.
    """

    offsets: Mapping[int, float]
    determined: frozenset[int]
    supported: frozenset[int]
    residuals: Float[Array, " B"]
    left_out: Float[Array, " B"]
    outliers: Bool[Array, " B"]
    row_space: Float[Array, "R Z"]

    @property
    def std(self) -> float:
        """Standard deviation of the residuals without outliers, eV/atom."""
        return float(np.sqrt(np.mean(np.square(self.residuals[~self.outliers]))))

    @property
    def mad(self) -> float:
        """Median absolute residual, eV/atom."""
        return float(np.median(np.abs(self.residuals)))

    def total(self, atomic_numbers: Int[Array, " N"]) -> float:
        """Return the offset of a structure, in eV.

        Raises:
            KeyError: for an element that was not among the fitted ones.
        """
        return float(self.per_atom(atomic_numbers).sum())

    def per_atom(self, atomic_numbers: Int[Array, " N"]) -> Float[Array, " N"]:
        """Return each atom's offset, in eV.

        Raises:
            KeyError: for an element that was not among the fitted ones.
        """
        unknown = sorted(set(atomic_numbers.tolist()) - set(self.offsets))
        if unknown:
            raise KeyError(
                f"no offset is known of element {unknown[0]}; the fitted ones are "
                f"{', '.join(map(str, sorted(self.offsets)))}"
            )
        return np.array([self.offsets[z] for z in atomic_numbers.tolist()], dtype=np.float64)

    def covers(self, atomic_numbers: Int[Array, " N"]) -> bool:
        """Return whether the data determine the total offset of such a structure.

        They may without determining each element's: in a set of NaCl alone, that of NaCl.
        """
        if not set(atomic_numbers.tolist()) <= set(self.offsets):
            return False

        # Its composition must be a combination of those that were fitted.
        fractions = np.array([np.mean(atomic_numbers == z) for z in self.offsets])
        outside = fractions - self.row_space.T @ (self.row_space @ fractions)
        return bool(np.abs(outside).max() < 1e-6)


def fit_references(
    atomic_numbers: Sequence[Int[Array, "_"]],
    teacher_energies: Float[Array, " B"],
    label_energies: Float[Array, " B"],
) -> References:
    """Fit how much more energy a teacher gives each element than the labels do.

    Structures that are far off are left aside, so that one failed calculation does not spoil all.

    Args:
        atomic_numbers: one array a structure, B of shape (N,).
        teacher_energies: (B,) total energies in eV.
        label_energies: (B,) total energies in eV.

    Raises:
        ValueError: for no structure, different numbers of them, or an energy that is not finite.

    >>> copper = [np.array([29]), np.array([29, 29])]
    >>> references = fit_references(copper, np.array([-3.0, -6.0]), np.array([-4.0, -8.0]))
    >>> round(references.offsets[29], 6)
    1.0
    """
    if not 0 < len(atomic_numbers) == len(teacher_energies) == len(label_energies):
        raise ValueError(
            f"expected one teacher and one label energy a structure, got {len(teacher_energies)} "
            f"and {len(label_energies)} for {len(atomic_numbers)} structures"
        )

    everything = Compositions.of(atomic_numbers)
    n_atoms = np.array([len(numbers) for numbers in atomic_numbers])
    differences = (teacher_energies - label_energies) / n_atoms
    if not np.isfinite(differences).all():
        raise ValueError("an energy is NaN or inf; leave structures without an energy out")

    outliers = find_outliers(everything, differences)
    fitted = everything.select(~outliers)
    solution = fitted.solve(differences[~outliers])

    # An outlier is no part of the fit, so its residual is already one against all others.
    residuals = differences - everything.fractions @ solution
    left_out = residuals.copy()
    left_out[~outliers] = fitted.left_out(differences[~outliers])

    return References(
        offsets=dict(zip(everything.elements, solution.tolist(), strict=True)),
        determined=fitted.determined(),
        supported=fitted.supported(),
        residuals=residuals,
        left_out=left_out,
        outliers=outliers,
        row_space=fitted.row_space,
    )


def find_outliers(compositions: Compositions, per_atom: Float[Array, " B"]) -> Bool[Array, " B"]:
    """Return which energies per atom, (B,), are far off what the elements explain.

    Far off means by more than `OUTLIER_ENERGY` and by more than `OUTLIER_SCATTER`, from a fit of
    least absolute deviations, which a few wrong structures hardly change. If more than a tenth are
    far off, none is an outlier: the whole set is then wrong, not a few calculations.
    """
    residuals = np.abs(_least_absolute(compositions, per_atom))
    n, rank = len(residuals), min(compositions.rank, len(residuals) - 1)

    # A fit of so many elements makes about as many residuals zero, which would make the scatter
    # look smaller; 1.4826 turns the median of normal residuals into their standard deviation.
    scatter = 1.4826 * np.median(np.sort(residuals)[rank:]) * n / (n - rank)
    outliers = residuals > max(OUTLIER_ENERGY, OUTLIER_SCATTER * scatter)
    return outliers if outliers.mean() <= 0.1 else np.zeros_like(outliers)


def _least_absolute(
    compositions: Compositions, per_atom: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return residuals, (B,), of the fit of least absolute deviations.

    Iteratively reweighted least squares: with weights of one over the last residual, the sum of
    squares becomes the sum of absolute values.
    """
    residuals = compositions.residuals(per_atom)
    for _ in range(_ROUNDS):
        weights = 1 / np.sqrt(np.maximum(np.abs(residuals), _SMALL))
        weighted = Compositions(compositions.elements, compositions.fractions * weights[:, None])
        residuals = per_atom - compositions.fractions @ weighted.solve(per_atom * weights)
    return residuals
