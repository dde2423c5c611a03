"""Bulk, shear and Young's moduli of a polycrystal, from the stiffness of one crystal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_plugins.numbers import check_number

SYMMETRIC = 1e-6
"""By how much a stiffness may be asymmetric, relative to its largest number."""


@dataclass(frozen=True)
class Moduli:
    """One average.

    Args:
        bulk: K in GPa.
        shear: G in GPa.
        young: E in GPa.
    """

    bulk: float
    shear: float
    young: float

    @classmethod
    def of(cls, bulk: float, shear: float) -> Moduli:
        """Return both with Young's modulus after 1/E = 1/(3G) + 1/(9K).

        Raises:
            ValueError: for a modulus that is not above 0.
        """
        check_number("bulk", bulk, above=0, unit="GPa")
        check_number("shear", shear, above=0, unit="GPa")
        return cls(float(bulk), float(shear), float(1 / (1 / (3 * shear) + 1 / (9 * bulk))))

    def mean(self, other: Moduli) -> Moduli:
        """Return the arithmetic mean of each modulus."""
        return Moduli(
            (self.bulk + other.bulk) / 2,
            (self.shear + other.shear) / 2,
            (self.young + other.young) / 2,
        )


@dataclass(frozen=True)
class ElasticAverages:
    """The averages of Taniguchi 2024, Experimental.

    Args:
        voigt: of the stiffness, an upper bound.
        reuss: of the compliance, a lower bound.
        hill: arithmetic mean of Voigt and Reuss.
        reuss_hill: arithmetic mean of Reuss and Hill, nearer to experiments on organic crystals.
        poisson_ratio: of Hill's K and G.
        anisotropy: A = sqrt(ln(K_V/K_R)² + 5 ln(G_V/G_R)²), 0 for an isotropic crystal.
    """

    voigt: Moduli
    reuss: Moduli
    hill: Moduli
    reuss_hill: Moduli
    poisson_ratio: float
    anisotropy: float

    @classmethod
    def of(cls, stiffness: NDArray[np.float64]) -> ElasticAverages:
        """Average a stiffness tensor.

        Young's modulus of Hill, too, is the mean of Voigt's and Reuss's, as the paper says; that
        of Hill's K and G, as other programs have it, is slightly another.

        Args:
            stiffness: (6, 6) in GPa, Voigt order xx, yy, zz, yz, xz, xy, engineering shears.

        Raises:
            ValueError: for another shape, numbers that are not finite, a tensor that is not
                symmetric, or one that is not positive definite: such a crystal is not stable,
                averages of it may be negative, and the paper leaves it out.

        >>> ElasticAverages.of(np.diag([3.0, 3.0, 3.0, 1.5, 1.5, 1.5])).hill
        Moduli(bulk=1.0, shear=1.5, young=3.0)
        """
        stiffness = _checked(stiffness)
        voigt, reuss = _voigt(stiffness), _reuss(np.linalg.inv(stiffness))
        hill = voigt.mean(reuss)
        ratio = 3 * hill.shear / (3 * hill.bulk + hill.shear)
        logarithms = np.log(voigt.bulk / reuss.bulk), np.log(voigt.shear / reuss.shear)
        return cls(
            voigt=voigt,
            reuss=reuss,
            hill=hill,
            reuss_hill=reuss.mean(hill),
            poisson_ratio=float((1 - ratio) / 2),
            anisotropy=float(np.sqrt(logarithms[0] ** 2 + 5 * logarithms[1] ** 2)),
        )


def _voigt(stiffness: NDArray[np.float64]) -> Moduli:
    stretch, mixed, shear = _sums(stiffness)
    return Moduli.of(bulk=(stretch + 2 * mixed) / 9, shear=(stretch - mixed + 3 * shear) / 15)


def _reuss(compliance: NDArray[np.float64]) -> Moduli:
    stretch, mixed, shear = _sums(compliance)
    return Moduli.of(
        bulk=1 / (stretch + 2 * mixed), shear=15 / (4 * stretch - 4 * mixed + 3 * shear)
    )


def _sums(tensor: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return 11 + 22 + 33, 12 + 23 + 31 and 44 + 55 + 66 of a tensor."""
    diagonal = np.diag(tensor)
    mixed = tensor[0, 1] + tensor[1, 2] + tensor[2, 0]
    return float(diagonal[:3].sum()), float(mixed), float(diagonal[3:].sum())


def _checked(stiffness: NDArray[np.float64]) -> NDArray[np.float64]:
    stiffness = np.asarray(stiffness, dtype=np.float64)
    if stiffness.shape != (6, 6):
        raise ValueError(f"stiffness: expected (6, 6), got {stiffness.shape}")
    if not np.isfinite(stiffness).all():
        raise ValueError(f"stiffness: expected finite numbers, got {stiffness.tolist()}")
    gap = np.abs(stiffness - stiffness.T)
    if gap.max() > SYMMETRIC * np.abs(stiffness).max():
        i, j = np.unravel_index(np.argmax(gap), gap.shape)
        raise ValueError(
            f"stiffness: expected a symmetric tensor, got C{i + 1}{j + 1} = {stiffness[i, j]:g} "
            f"and C{j + 1}{i + 1} = {stiffness[j, i]:g} GPa; take the mean with its transpose"
        )
    lowest = np.linalg.eigvalsh(stiffness)[0]
    if lowest <= 0:
        raise ValueError(
            f"stiffness: not positive definite (lowest eigenvalue {lowest:.3g} GPa), so the "
            "crystal is not stable and has no averages; relax it more tightly, or leave it out and "
            "say so"
        )
    return (stiffness + stiffness.T) / 2
