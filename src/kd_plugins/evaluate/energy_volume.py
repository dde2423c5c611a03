"""The volume at which a potential holds rigid molecules, without a relaxation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.abc import GetPropertiesMixin
from numpy.typing import NDArray

from kd_plugins.evaluate.dynamics import check_calculator
from kd_plugins.sampling.molecules import Molecules, find_molecules
from kd_plugins.sampling.volume_scan import LINEAR_SCALES, Minimum, minimum_volume, volume_scan


def energies(structures: Sequence[Atoms], calculator: GetPropertiesMixin) -> NDArray[np.float64]:
    """Return the energy of each structure in eV; the structures are not changed.

    Raises:
        ValueError: for what is no calculator.
    """
    check_calculator("energies", calculator)
    found = []
    for atoms in structures:
        trial = atoms.copy()
        trial.calc = calculator
        found.append(float(trial.get_potential_energy()))
    return np.array(found)


def scanned_volume(
    atoms: Atoms,
    calculator: GetPropertiesMixin,
    molecules: Molecules | None = None,
    linear_scales: Sequence[float] = LINEAR_SCALES,
) -> Minimum:
    """Return the volume of least energy nearest to a crystal's own, its molecules kept rigid.

    A stand-in for a relaxation in sweeps over many students: fourteen energies instead of forty
    steps or more.

    Args:
        atoms: the crystal, say of the experiment.
        calculator: any of ASE's.
        molecules: of this crystal, if they are known already.
        linear_scales: factors of all lengths.

    Raises:
        ValueError: if the crystal has no molecules, or an energy is not finite.
    """
    scan = volume_scan(atoms, molecules or find_molecules(atoms), linear_scales)
    volumes = [scaled.get_volume() for scaled in scan]
    return minimum_volume(volumes, energies(scan, calculator), atoms.get_volume())
