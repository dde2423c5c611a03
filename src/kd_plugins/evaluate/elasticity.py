"""The elastic stiffness of a crystal, and the moduli of a polycrystal of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.abc import GetPropertiesMixin
from ase.units import GPa
from numpy.typing import NDArray
from tqdm import tqdm

from kd_plugins.evaluate.relaxation import relax
from kd_plugins.numbers import check_number, check_whole

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
VOIGT_INDICES = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
STRAINS = (-0.01, -0.005, 0.005, 0.01)
"""Small enough for a soft crystal. With both signs, quadratic terms fall out of a linear fit."""
NOISE = 1e-5
"""eV/atom by which an energy may fall because of rounding in float32."""
SYMMETRIC = 1e-6
"""Largest asymmetry of a stiffness, relative to its largest number."""

Floats = NDArray[np.float64]


# --- The stiffness of a crystal -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ElasticTensor:
    """A stiffness tensor with its numerical errors.

    Args:
        stiffness: (6, 6) in GPa, symmetric, Voigt order xx, yy, zz, yz, xz, xy, with engineering
            shear strains.
        asymmetry: largest half difference of C_ij and C_ji in GPa before it was made symmetric.
        fit_residual: root mean square distance of the stresses from the straight lines, in GPa.
        residual_stress: (6,) in GPa, the stress without strain according to the fit, tension
            positive. Stiffness by stresses is that by energies only where it is 0.
        not_relaxed: the strains, such as ``xy +0.010``, in which the relaxation did not converge.
        unstable: the strains, such as ``xy 0.010``, of which both signs together lower the energy
            by more than `NOISE`: the crystal was not in its minimum, or its atoms fell into
            another minimum, and the numbers are not its stiffness. A crystal may still be unstable
            against a combination of strains, which `ElasticAverages` refuses.
    """

    stiffness: Floats
    asymmetry: float
    fit_residual: float
    residual_stress: Floats
    not_relaxed: tuple[str, ...]
    unstable: tuple[str, ...]


def elastic_tensor(
    atoms: Atoms,
    calculator: GetPropertiesMixin,
    strains: Sequence[float] = STRAINS,
    relax_ions: bool = True,
    force_tolerance: float = 0.005,
    max_steps: int = 500,
    progress: bool = False,
) -> ElasticTensor:
    """Return the stiffness of a crystal, C_ij = d stress_i / d strain_j.

    Taniguchi 2024 (Experimental) takes the second derivative of the energy, which is the same in a
    crystal without stress. So relax the crystal first, at least as tightly as ``force_tolerance``.

    The paper gives neither strains nor tolerance. These defaults reproduce central differences of
    the energy of EMT copper to 1 %. Check both for a soft crystal: with CHGNet+D3 some of urea's
    numbers halve from a tolerance of 0.03 to 0.005 eV/Å.

    Args:
        atoms: a relaxed crystal; not changed.
        calculator: any of ASE's that has stress.
        strains: of each of the six components in turn; of shears, the engineering strain, twice
            the tensor's component. Both signs, the same on either side.
        relax_ions: let the atoms relax in each strained cell, as they do in an experiment. Clamped
            atoms make a molecular crystal several times too stiff.
        force_tolerance: of these relaxations, in eV/Å.
        max_steps: of each of these relaxations.
        progress: show a bar.

    Raises:
        ValueError: for strains that are no pairs of both signs, a structure that is not periodic in
            three directions, or a calculator that fails on one of the strained crystals.
    """
    sizes = _check_strains(atoms, strains)
    stresses, energies = np.empty((6, len(sizes), 6)), np.empty((6, len(sizes)))
    not_relaxed = []

    pairs = [(component, number) for component in range(6) for number in range(len(sizes))]
    for component, number in tqdm(pairs, desc="elasticity", unit=" strains", disable=not progress):
        trial = strained(atoms, component, sizes[number])
        name = f"{VOIGT[component]} {sizes[number]:+.3f}"
        if relax_ions:
            trial, converged = _relax_ions(trial, calculator, force_tolerance, max_steps, name)
            if not converged:
                not_relaxed.append(name)

        energy, stress = _energy_and_stress(trial, calculator, name)
        energies[component, number] = energy
        stresses[component, number] = stress

    energy_at_rest, _ = _energy_and_stress(atoms.copy(), calculator, "none")
    unstable = _unstable_strains(sizes, (energies - energy_at_rest) / len(atoms))
    return _fit(sizes, stresses, tuple(not_relaxed), unstable)


def strained(atoms: Atoms, component: int, strain: float) -> Atoms:
    """Return a crystal with one Voigt component of strain, its atoms carried along.

    Args:
        atoms: the crystal.
        component: 0 to 5 for xx, yy, zz, yz, xz, xy.
        strain: of a shear, the engineering strain, shared equally by both off-diagonal elements.

    Raises:
        ValueError: for another component, or a strain that is not finite.

    >>> strained(Atoms(cell=[2.0, 2.0, 2.0], pbc=True), 5, 0.01).cell.array[0].round(3).tolist()
    [2.0, 0.01, 0.0]
    """
    check_whole("component", component, least=0, most=5)
    check_number("strain", strain)

    i, j = VOIGT_INDICES[component]
    deformation = np.eye(3)
    deformation[i, j] += strain / (1 if i == j else 2)
    deformation[j, i] = deformation[i, j]

    result = atoms.copy()
    result.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return result


def _relax_ions(
    atoms: Atoms, calculator: GetPropertiesMixin, tolerance: float, max_steps: int, name: str
) -> tuple[Atoms, bool]:
    relaxation = relax(atoms, calculator, tolerance, max_steps, cell=False)
    if np.isnan(relaxation.energy):
        raise ValueError(f"strain {name}: the calculator fails: {relaxation.reason}")
    return relaxation.atoms, relaxation.converged


def _energy_and_stress(
    atoms: Atoms, calculator: GetPropertiesMixin, name: str
) -> tuple[float, Floats]:
    """Return energy in eV and stress in GPa."""
    atoms.calc = calculator
    energy = float(atoms.get_potential_energy())
    stress = np.asarray(atoms.get_stress(), dtype=np.float64) / GPa
    if not np.isfinite([energy, *stress]).all():
        raise ValueError(
            f"strain {name}: the calculator's energy is {energy} eV and its stress "
            f"{stress.tolist()} GPa"
        )
    return energy, stress


def _unstable_strains(sizes: Floats, energies: Floats) -> tuple[str, ...]:
    """Name the strains that lower the energy.

    Against a residual stress, a strain of one sign lowers the energy of a stable crystal, too. In
    the mean of both signs that work cancels.

    Args:
        sizes: (S,) strains in ascending order, so that the opposite of the first is the last.
        energies: (6, S) in eV/atom, relative to the crystal without strain.
    """
    both_signs = (energies + energies[:, ::-1]) / 2
    positive = [number for number, size in enumerate(sizes) if size > 0]
    return tuple(
        f"{VOIGT[component]} {sizes[number]:.3f}"
        for component in range(6)
        for number in positive
        if both_signs[component, number] < -NOISE
    )


def _fit(
    strains: Floats, stresses: Floats, not_relaxed: tuple[str, ...], unstable: tuple[str, ...]
) -> ElasticTensor:
    """Fit a straight line to each component of stress (6, S, 6) over each strain (S,)."""
    design = np.column_stack([strains, np.ones_like(strains)])
    values = stresses.swapaxes(0, 1).reshape(len(strains), 36)
    coefficients, *_ = np.linalg.lstsq(design, values, rcond=None)
    slopes, intercepts = coefficients.reshape(2, 6, 6)

    fitted = strains[None, :, None] * slopes[:, None] + intercepts[:, None]
    return ElasticTensor(
        stiffness=(slopes + slopes.T) / 2,
        asymmetry=float(np.abs(slopes - slopes.T).max() / 2),
        fit_residual=float(np.sqrt(np.mean((stresses - fitted) ** 2))),
        residual_stress=intercepts.mean(axis=0),
        not_relaxed=not_relaxed,
        unstable=unstable,
    )


def _check_strains(atoms: Atoms, strains: Sequence[float]) -> Floats:
    values = np.sort(np.asarray(strains, dtype=np.float64))
    are_pairs = (
        len(values) >= 2
        and np.isfinite(values).all()
        and np.all(values != 0)
        and np.allclose(values, -values[::-1])
    )
    if not are_pairs:
        raise ValueError(f"strains: expected pairs such as -0.01 and 0.01, got {list(strains)}")

    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ValueError(
            "elastic_tensor: expected a crystal with three periodic lattice vectors, got pbc "
            f"{atoms.pbc.tolist()} and {atoms.cell.rank} vectors"
        )
    return values


# --- The moduli of a polycrystal ----------------------------------------------------------------


@dataclass(frozen=True)
class Moduli:
    """The moduli of an isotropic solid.

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
        """Return both with Young's modulus, from 1/E = 1/(3G) + 1/(9K).

        Raises:
            ValueError: for a modulus that is not above 0.
        """
        check_number("bulk", bulk, above=0, unit="GPa")
        check_number("shear", shear, above=0, unit="GPa")

        young = 1 / (1 / (3 * shear) + 1 / (9 * bulk))
        return cls(float(bulk), float(shear), float(young))

    def mean(self, other: Moduli) -> Moduli:
        """Return the arithmetic mean of each modulus."""
        return Moduli(
            (self.bulk + other.bulk) / 2,
            (self.shear + other.shear) / 2,
            (self.young + other.young) / 2,
        )


@dataclass(frozen=True)
class ElasticAverages:
    """The elastic moduli of a polycrystal (Taniguchi 2024, Experimental).

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
    def of(cls, stiffness: Floats) -> ElasticAverages:
        """Average a stiffness tensor.

        Hill's Young's modulus is the mean of Voigt's and Reuss's, as in the paper. Other programs
        compute it from Hill's K and G, which gives a slightly different number.

        Args:
            stiffness: (6, 6) in GPa, Voigt order xx, yy, zz, yz, xz, xy, engineering shears.

        Raises:
            ValueError: for another shape, numbers that are not finite, a tensor that is not
                symmetric, or one that is not positive definite: such a crystal is not stable,
                averages of it may be negative, and the paper leaves it out.

        >>> ElasticAverages.of(np.diag([3.0, 3.0, 3.0, 1.5, 1.5, 1.5])).hill
        Moduli(bulk=1.0, shear=1.5, young=3.0)
        """
        stiffness = _check_stiffness(stiffness)
        voigt = _voigt(stiffness)
        reuss = _reuss(np.linalg.inv(stiffness))
        hill = voigt.mean(reuss)

        # Poisson's ratio (3K - 2G) / (6K + 2G) is (1 - 3G / (3K + G)) / 2.
        ratio = 3 * hill.shear / (3 * hill.bulk + hill.shear)
        log_bulk = np.log(voigt.bulk / reuss.bulk)
        log_shear = np.log(voigt.shear / reuss.shear)
        return cls(
            voigt=voigt,
            reuss=reuss,
            hill=hill,
            reuss_hill=reuss.mean(hill),
            poisson_ratio=float((1 - ratio) / 2),
            anisotropy=float(np.sqrt(log_bulk**2 + 5 * log_shear**2)),
        )


def _voigt(stiffness: Floats) -> Moduli:
    """Return the moduli of grains with equal strain: 9K = S + 2M and 15G = S - M + 3T.

    S, M and T are the sums that `_sums` returns, of the stiffness.
    """
    stretch, mixed, shear = _sums(stiffness)
    return Moduli.of(bulk=(stretch + 2 * mixed) / 9, shear=(stretch - mixed + 3 * shear) / 15)


def _reuss(compliance: Floats) -> Moduli:
    """Return the moduli of grains with equal stress: 1/K = S + 2M and 15/G = 4S - 4M + 3T.

    S, M and T are the sums that `_sums` returns, of the compliance.
    """
    stretch, mixed, shear = _sums(compliance)
    return Moduli.of(
        bulk=1 / (stretch + 2 * mixed), shear=15 / (4 * stretch - 4 * mixed + 3 * shear)
    )


def _sums(tensor: Floats) -> tuple[float, float, float]:
    """Return 11 + 22 + 33, 12 + 23 + 31 and 44 + 55 + 66 of a tensor."""
    diagonal = np.diag(tensor)
    mixed = tensor[0, 1] + tensor[1, 2] + tensor[2, 0]
    return float(diagonal[:3].sum()), float(mixed), float(diagonal[3:].sum())


def _check_stiffness(stiffness: Floats) -> Floats:
    """Return the stiffness made exactly symmetric.

    Raises:
        ValueError: see `ElasticAverages.of`.
    """
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
