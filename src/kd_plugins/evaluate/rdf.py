"""Radial distribution functions and the distance of two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry.rdf import CellTooSmall, get_rdf
from jaxtyping import Float

from kd_plugins.numbers import check_number, check_whole
from kd_plugins.store.structure import Array

SHORTEST = 0.01
"""Å. No two atoms are nearer, so a smaller cutoff is an error in its unit."""


@dataclass(frozen=True, eq=False)
class Rdf:
    """A radial distribution function, averaged over frames.

    Args:
        distances: (K,) centres of the bins in Å.
        values: (K,) density around an atom over the mean density.
    """

    distances: Float[Array, " K"]
    values: Float[Array, " K"]

    def distance(self, other: Rdf) -> float:
        """Return the integral of the absolute difference, in Å (Matin et al. 2025, Figure 3 C).

        Two runs of one model differ as well, so compare a distance with theirs.

        Raises:
            ValueError: for other bins.
        """
        if not np.array_equal(self.distances, other.distances):
            raise ValueError(
                "two radial distribution functions need the same cutoff and bins, got "
                f"{self._bins_text()} and {other._bins_text()}"
            )
        width = self.distances[1] - self.distances[0]
        return float(np.abs(self.values - other.values).sum() * width)

    def _bins_text(self) -> str:
        return f"{len(self.distances)} bins up to {self.distances[-1]:.4g} Å"


def rdf(frames: Sequence[Atoms], cutoff: float, bins: int = 100) -> Rdf:
    """Return ASE's radial distribution function of some frames, in cells of any shape.

    Args:
        frames: periodic structures; each cell must hold a sphere of the cutoff.
        cutoff: in Å.
        bins: up to the cutoff, two or more.

    Raises:
        ValueError: for no frame, a frame that is not periodic, fewer than two bins, or a cutoff
            that is more than half a cell's height.

    >>> from ase.build import bulk
    >>> found = rdf([bulk("Cu", cubic=True) * (4, 4, 4)], cutoff=5.0)
    >>> float(found.distances[found.values.argmax()].round(2))
    2.58
    """
    if not len(frames):
        raise ValueError("rdf: expected one frame or more, got none")
    if not all(frame.pbc.all() and frame.cell.rank == 3 for frame in frames):
        raise ValueError("rdf: a frame is not periodic in three directions, so has no density")

    # Two checks, since a cutoff that is not above 0 is another error than one in another unit.
    check_number("rdf: cutoff", cutoff, above=0, unit="Å")
    check_number("rdf: cutoff", cutoff, least=SHORTEST, unit="Å")
    check_whole("rdf: bins", bins, least=2)

    try:
        values, distances = get_rdf(list(frames), cutoff, bins)
    except CellTooSmall as error:
        raise ValueError(f"{error} (rdf: cutoff {cutoff} Å)") from None
    return Rdf(distances, values)
