"""Guards of sampled structures: the shortest distance, and the largest force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

NEAREST = 0.6
"""The least distance of two atoms, over the sum of their covalent radii.

Crystals of the elements have 0.84 or more, the nitrogen molecule 0.77, EMT's metals at 2500 K 0.74.
"""

Forces = NDArray[np.float64]


@dataclass(frozen=True)
class Rejection:
    """Why a draw is not taken.

    Args:
        guard: ``min_distance`` or ``max_force``, the setting that refuses it, or ``md`` for a
            trajectory that has come apart.
        reason: with the atoms and the numbers.
    """

    guard: str
    reason: str


@dataclass(frozen=True)
class Guards:
    """What every sampled structure keeps.

    Args:
        min_distance: Å, or None for `NEAREST` of the sum of covalent radii.
        max_force: eV/Å.
        forces: returns the forces (N, 3) on a structure's atoms, eV/Å; None where no potential is
            named.
    """

    min_distance: float | None
    max_force: float
    forces: Callable[[Atoms], Forces] | None = None

    def reject(self, atoms: Atoms, forces: Forces | None = None) -> Rejection | None:
        """Return why a structure is not taken; None if it is.

        Args:
            atoms: the structure.
            forces: on its atoms, if they are known.
        """
        contact = self._contact(atoms)
        if contact is not None:
            return Rejection("min_distance", contact)

        if forces is None and self.forces is not None:
            forces = self.forces(atoms)
        if forces is None:
            return None

        sizes = np.linalg.norm(forces, axis=1)
        # Not `>`, which NaN would pass.
        if np.all(sizes <= self.max_force):
            return None
        worst = int(np.argmax(np.nan_to_num(sizes, nan=np.inf)))
        return Rejection(
            "max_force",
            f"the force on {atoms.symbols[worst]}{worst} is {sizes[worst]:.3g} eV/Å, above "
            f"{self.max_force:g}",
        )

    def _contact(self, atoms: Atoms) -> str | None:
        """Describe the nearest two atoms if they are too near."""
        cutoffs = self.min_distance
        if cutoffs is None:
            cutoffs = natural_cutoffs(atoms, mult=NEAREST)
        i, j, distances = neighbor_list("ijd", atoms, cutoffs)
        if not len(distances):
            return None

        worst = int(np.argmin(distances))
        one, other = (f"{atoms.symbols[end[worst]]}{end[worst]}" for end in (i, j))
        least = self.min_distance
        if least is None:
            least = NEAREST * covalent_radii[atoms.numbers[[i[worst], j[worst]]]].sum()
        return f"{one} and {other} are {distances[worst]:.2f} Å apart, below {least:.2f}"
