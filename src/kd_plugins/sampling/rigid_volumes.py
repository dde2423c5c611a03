"""Scan the volume of a crystal with rigid molecules, and find the volume of least energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from kd_plugins.numbers import check_number, is_number
from kd_plugins.sampling.deformation import scale_rigidly
from kd_plugins.sampling.molecules import Molecules

LINEAR_SCALES = tuple(float(scale) for scale in np.cbrt(np.linspace(0.8, 1.6, 14)))
"""Fourteen equally spaced volumes from -20 % to +60 %."""
FEWEST_VOLUMES = 5
"""The least number of points: a cubic spline through four is a single cubic."""


@dataclass(frozen=True)
class Minimum:
    """The minimum of the energy of a volume scan.

    Args:
        volume: in Å³. Where there is no minimum inside the scan, the end of the scan at which the
            energy is lower, so that an error computed from it is a lower bound.
        energy: in the unit of the energies given, at this volume.
        where: ``inside`` the scan, or else ``below`` or ``above`` it.
    """

    volume: float
    energy: float
    where: Literal["inside", "below", "above"]


def volume_scan(
    atoms: Atoms, molecules: Molecules, linear_scales: Sequence[float] = LINEAR_SCALES
) -> list[Atoms]:
    """Return a crystal at several volumes, all lattice vectors scaled alike, its molecules rigid.

    Args:
        atoms: the crystal.
        molecules: of this crystal.
        linear_scales: factors of the lengths; a volume has its cube.

    Raises:
        ValueError: for no scale, or one that is not positive.
    """
    are_positive = all(is_number(scale) and scale > 0 for scale in linear_scales)
    if not are_positive or len(linear_scales) == 0:
        raise ValueError(f"linear_scales: expected factors above 0, got {list(linear_scales)}")
    return [scale_rigidly(atoms, molecules, scale * np.eye(3)) for scale in linear_scales]


def minimum_volume(
    volumes: Sequence[float] | NDArray[np.float64],
    energies: Sequence[float] | NDArray[np.float64],
    reference_volume: float,
) -> Minimum:
    """Return the local minimum of the energy that is nearest to a volume.

    The nearest, not the lowest: a potential may have a spurious well where molecules overlap. The
    energy between the points is a cubic spline over the cube root of the volume.

    Args:
        volumes: in Å³, at least `FEWEST_VOLUMES` that differ, in any order.
        energies: one per volume, in any unit.
        reference_volume: in Å³, such as that of the experiment.

    Returns:
        The minimum; its ``where`` is ``inside`` if there is one within the scan.

    Raises:
        ValueError: for too few volumes, two that are the same, or a number that is not finite.

    >>> minimum_volume([70.0, 80.0, 90.0, 110.0, 120.0], [9.0, 4.0, 1.0, 1.0, 4.0], 95.0).where
    'inside'
    >>> minimum_volume([70.0, 80.0, 90.0, 110.0, 120.0], [5.0, 4.0, 3.0, 2.0, 1.0], 95.0)
    Minimum(volume=120.0, energy=1.0, where='above')
    """
    volumes, energies = _check_and_sort(volumes, energies, reference_volume)

    lengths = np.cbrt(volumes)
    spline = CubicSpline(lengths, energies)
    slope = spline.derivative()
    stationary = slope.roots(discontinuity=False, extrapolate=False)
    minima = stationary[slope.derivative()(stationary) > 0]

    if len(minima) == 0:
        end = 0 if energies[0] < energies[-1] else -1
        where: Literal["below", "above"] = "above" if end else "below"
        return Minimum(float(volumes[end]), float(energies[end]), where)

    nearest = minima[np.argmin(np.abs(minima**3 - reference_volume))]
    return Minimum(float(nearest**3), float(spline(nearest)), "inside")


def _check_and_sort(
    volumes: Sequence[float] | NDArray[np.float64],
    energies: Sequence[float] | NDArray[np.float64],
    reference_volume: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as arrays, sorted by volume."""
    check_number("reference_volume", reference_volume, above=0, unit="Å³")
    volumes, energies = np.asarray(volumes, np.float64), np.asarray(energies, np.float64)
    if volumes.ndim != 1 or volumes.shape != energies.shape or len(volumes) < FEWEST_VOLUMES:
        raise ValueError(
            f"volumes and energies: expected at least {FEWEST_VOLUMES} of each, got "
            f"{volumes.shape} and {energies.shape}"
        )
    if not np.isfinite([*volumes, *energies, reference_volume]).all() or volumes.min() <= 0:
        raise ValueError(
            f"expected finite numbers and volumes above 0, got volumes {volumes.tolist()}, "
            f"energies {energies.tolist()}, reference_volume {reference_volume}"
        )

    order = np.argsort(volumes)
    if np.any(np.diff(volumes[order]) == 0):
        raise ValueError(f"volumes: expected no two the same, got {volumes.tolist()}")
    return volumes[order], energies[order]
