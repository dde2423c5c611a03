"""Volume errors of crystals: relaxed, or with rigid molecules and no relaxation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.abc import GetPropertiesMixin
from numpy.typing import NDArray

from kd_plugins.evaluate.dynamics import check_calculator
from kd_plugins.evaluate.relaxation import Relaxation
from kd_plugins.numbers import check_number
from kd_plugins.sampling.molecules import Molecules, find_molecules
from kd_plugins.sampling.rigid_volumes import LINEAR_SCALES, Minimum, minimum_volume, volume_scan


def volume_error_percent(relaxed: float, reference: float) -> float:
    """Return the error of a volume in percent of its reference, positive if it is too large.

    Raises:
        ValueError: for a volume that is not above 0.

    >>> volume_error_percent(110.0, 100.0)
    10.0
    """
    check_number("reference volume", reference, above=0, unit="Å³")
    check_number("relaxed volume", relaxed, above=0, unit="Å³")
    return 100 * (relaxed - reference) / reference


@dataclass(frozen=True)
class VolumeErrors:
    """Volume errors of several crystals, in percent; Taniguchi 2024 reports the mean absolute one.

    All crystals with a volume count, also those that did not converge or exploded. A crystal
    without a volume is left out of the means. ``failures`` names both kinds.

    Args:
        errors: crystal to error; NaN if not even its start could be computed.
        failures: crystal to the reason why its relaxation failed.

    >>> VolumeErrors({"a": -1.0, "b": 3.0, "c": 7.0}, {"c": "not converged in 9 steps"}).mean
    3.0
    """

    errors: Mapping[str, float]
    failures: Mapping[str, str]

    @classmethod
    def of(
        cls, relaxations: Mapping[str, Relaxation], references: Mapping[str, float]
    ) -> VolumeErrors:
        """Compare relaxations with reference volumes in Å³, both by the crystal's name.

        Raises:
            ValueError: for no relaxation at all, or a reference that is not positive.
            KeyError: for a relaxation without reference.
        """
        if not relaxations:
            raise ValueError("VolumeErrors: expected at least one relaxation, got none")
        missing = sorted(set(relaxations) - set(references))
        if missing:
            raise KeyError(f"no reference volume of {', '.join(missing)}")

        errors, failures = {}, {}
        for name, relaxation in relaxations.items():
            has_volume = np.isfinite(relaxation.volume)
            errors[name] = (
                volume_error_percent(relaxation.volume, references[name])
                if has_volume
                else float("nan")
            )
            if not relaxation.converged:
                failures[name] = relaxation.reason
        return cls(errors, failures)

    @property
    def mean(self) -> float:
        """Mean signed error."""
        return float(np.mean(self._counted))

    @property
    def mean_absolute(self) -> float:
        """Mean absolute error."""
        return float(np.mean(np.abs(self._counted)))

    @property
    def median_absolute(self) -> float:
        """Median absolute error."""
        return float(np.median(np.abs(self._counted)))

    @property
    def converged(self) -> VolumeErrors:
        """The errors of the crystals whose relaxation converged."""
        kept = {name: error for name, error in self.errors.items() if name not in self.failures}
        return VolumeErrors(kept, {})

    def __str__(self) -> str:
        text = (
            f"{len(self.errors)} crystals: volume error {self.mean:+.2f} % on average, "
            f"{self.mean_absolute:.2f} % absolute, {self.median_absolute:.2f} % median absolute"
        )
        if not self.failures:
            return text

        failed = [
            f"{name} ({self.errors[name]:+.1f} %: {reason})"
            for name, reason in self.failures.items()
        ]
        return f"{text}; {len(failed)} not relaxed: {', '.join(failed)}"

    @property
    def _counted(self) -> NDArray[np.float64]:
        errors = np.array(list(self.errors.values()))
        counted = errors[np.isfinite(errors)]
        # The mean of nothing is NaN, but numpy warns of it.
        return counted if len(counted) else np.array([np.nan])


def energies(structures: Sequence[Atoms], calculator: GetPropertiesMixin) -> NDArray[np.float64]:
    """Return the energy of each structure in eV; the structures are not changed.

    Raises:
        ValueError: for anything but a calculator.
    """
    check_calculator("energies", calculator)

    values = []
    for atoms in structures:
        trial = atoms.copy()
        trial.calc = calculator
        values.append(float(trial.get_potential_energy()))
    return np.array(values)


def scanned_volume(
    atoms: Atoms,
    calculator: GetPropertiesMixin,
    molecules: Molecules | None = None,
    linear_scales: Sequence[float] = LINEAR_SCALES,
) -> Minimum:
    """Return the volume of least energy nearest to a crystal's own, its molecules kept rigid.

    It replaces a relaxation in sweeps over many students: it takes fourteen energies, a relaxation
    forty steps or more.

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
