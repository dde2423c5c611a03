"""What to sample: how many structures by which method, the ranges of each, and the guards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kd_plugins.numbers import check_number, check_whole, is_number, shown
from kd_plugins.sampling.deformation import Deformation
from kd_plugins.sampling.packing import MOST_COPIES

METHODS = ("strain", "rattle", "md", "molecules", "packing", "vacancy", "surface")
"""The methods, in the order of the pool; each is a field of `Sampling`."""


# Above the classes, whose defaults are made while `Sampling` is defined.


def _check_count(count: int) -> None:
    check_whole("count", count, least=0)


def _check_range(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    unit: str = "",
) -> None:
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))
    if not is_pair or value[0] > value[1]:  # type: ignore[index]
        of = f" in {unit}" if unit else ""
        raise ValueError(f"{name}: expected (lowest, highest){of}, got {shown(value)}")
    check_number(name, value[0], least=least, above=above, unit=unit)  # type: ignore[index]


def _check_each(name: str, values: object, unit: str = "") -> None:
    if not isinstance(values, tuple | list):
        raise ValueError(f"{name}: expected a list of numbers, got {shown(values)}")
    for value in values:
        check_number(name, value, above=0, unit=unit)


@dataclass(frozen=True)
class Strain:
    """Six independent strains of the cell, each uniform, and small displacements of the atoms.

    Args:
        count: structures of each seed structure.
        linear: lowest and highest strain along each Cartesian axis.
        shear: largest magnitude of e_yz, e_xz and e_xy, components of the symmetric strain tensor.
        rattle: lowest and highest standard deviation of the normal displacements, Å; each
            structure has its own.

    Raises:
        ValueError: for a range that is reversed or reaches -1, or a number below 0.
    """

    count: int = 0
    linear: tuple[float, float] = (-0.06, 0.06)
    shear: float = 0.04
    rattle: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        _check_count(self.count)
        # At a strain of -1 the cell has no volume.
        _check_range("linear", self.linear, above=-1)
        check_number("shear", self.shear, least=0, most=0.5)
        _check_range("rattle", self.rattle, least=0, unit="Å")


@dataclass(frozen=True)
class Rattle:
    """Normal displacements of all atoms in the seed's own cell.

    Args:
        count: structures of each seed structure.
        std: lowest and highest standard deviation, Å; each structure has its own.

    Raises:
        ValueError: for a range that is reversed, or a number below 0.
    """

    count: int = 0
    std: tuple[float, float] = (0.02, 0.15)

    def __post_init__(self) -> None:
        _check_count(self.count)
        _check_range("std", self.std, least=0, unit="Å")


@dataclass(frozen=True)
class MolecularDynamics:
    """Snapshots of one Langevin trajectory at constant volume for each seed structure.

    Temperature and density go linearly from one value of their ladder to the next, so that
    ``temperatures=(5000, 1500)`` starts hot and cools down. A perfect crystal in a small cell
    superheats: at the seed's own density, EMT's nickel does not melt in 3 ps at 5000 K.

    Args:
        count: snapshots of each seed structure.
        temperatures: K; one, or several that the thermostat goes through.
        timestep: fs; left out, 1 fs where there is hydrogen and 2 fs elsewhere.
        interval: steps before each snapshot.
        equilibration: steps at the first temperature, before those of the first snapshot.
        friction: of the thermostat, 1/fs.
        length_scales: of the cell, relative to the seed; one, or several to go through.

    Raises:
        ValueError: for a number out of bounds, or snapshots without a temperature.
    """

    count: int = 0
    temperatures: tuple[float, ...] = ()
    timestep: float | None = None
    interval: int = 20
    equilibration: int = 500
    friction: float = 0.01
    length_scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        _check_count(self.count)
        if self.count and not self.temperatures:
            raise ValueError("temperatures: expected one or more in K for molecular dynamics")
        if self.temperatures and not self.count:
            raise ValueError(
                "temperatures: are for molecular dynamics, whose count is 0; say how many snapshots"
            )

        _check_each("temperatures", self.temperatures, unit="K")
        if self.timestep is not None:
            check_number("timestep", self.timestep, above=0, unit="fs")
        check_whole("interval", self.interval, least=1)
        check_whole("equilibration", self.equilibration, least=0)
        check_number("friction", self.friction, above=0, unit="1/fs")

        if not self.length_scales:
            raise ValueError("length_scales: expected one or more, such as 1.0, got none")
        _check_each("length_scales", self.length_scales)


@dataclass(frozen=True)
class RigidMolecules(Deformation):
    """Crystals of rigid molecules: strained, each molecule rotated, all atoms rattled.

    Args:
        linear_strain: as of `Deformation`.
        shear_std: as of `Deformation`.
        rotation_degrees: as of `Deformation`.
        rattle: as of `Deformation`.
        count: structures of each seed structure.
    """

    count: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count(self.count)


@dataclass(frozen=True)
class Packing:
    """Crystals of copies of a molecule, turned at random and packed, their atoms rattled.

    The seed is one molecule, without a cell. See `kd_plugins.sampling.packing.packed`.

    Args:
        count: structures of each seed structure, each packed anew.
        copies: molecules in a cell.
        contact: lowest and highest distance at which atoms of different molecules touch, over the
            sum of their van der Waals radii; each structure has its own.
        trials: packings of which the densest is taken.
        rattle: lowest and highest standard deviation of the normal displacements, Å.

    Raises:
        ValueError: for a number out of bounds.
    """

    count: int = 0
    copies: int = 2
    contact: tuple[float, float] = (0.8, 1.0)
    trials: int = 3
    rattle: tuple[float, float] = (0.0, 0.05)

    def __post_init__(self) -> None:
        _check_count(self.count)
        check_whole("copies", self.copies, least=1, most=MOST_COPIES)
        _check_range("contact", self.contact, above=0)
        check_whole("trials", self.trials, least=1)
        _check_range("rattle", self.rattle, least=0, unit="Å")


@dataclass(frozen=True)
class Vacancies:
    """Seeds without some of their atoms, which are drawn at random, and rattled.

    Args:
        count: structures of each seed structure.
        missing: atoms that are taken out.
        rattle: lowest and highest standard deviation of the normal displacements, Å.

    Raises:
        ValueError: for a number out of bounds.
    """

    count: int = 0
    missing: int = 1
    rattle: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        _check_count(self.count)
        check_whole("missing", self.missing, least=1)
        _check_range("rattle", self.rattle, least=0, unit="Å")


@dataclass(frozen=True)
class Surfaces:
    """Rattled slabs of the seed's cell with vacuum, by ASE, one set of Miller indices in turn.

    Args:
        count: structures of each seed structure.
        miller: indices of the surfaces, relative to the seed's own lattice vectors.
        layers: of the seed's cell, as ASE counts them.
        vacuum: Å on either side; the slab is periodic across it.
        rattle: lowest and highest standard deviation of the normal displacements, Å.

    Raises:
        ValueError: for a number out of bounds, or indices that are not three whole numbers.
    """

    count: int = 0
    miller: tuple[tuple[int, ...], ...] = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
    layers: int = 3
    vacuum: float = 8.0
    rattle: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        _check_count(self.count)
        are_indices = all(
            isinstance(one, Sequence)
            and len(one) == 3
            and all(type(index) is int for index in one)
            and any(one)
            for one in self.miller
        )
        if not self.miller or not are_indices:
            raise ValueError(
                f"miller: expected lists of three whole numbers, not all 0, got "
                f"{shown(self.miller)}"
            )
        check_whole("layers", self.layers, least=1)
        check_number("vacuum", self.vacuum, above=0, unit="Å")
        _check_range("rattle", self.rattle, least=0, unit="Å")


@dataclass(frozen=True)
class Sampling:
    """What `kd_plugins.sampling.sample` makes of each seed structure.

    The defaults of the ranges are this project's own; no paper gives any.

    Args:
        atoms: the least number of atoms; seeds are repeated to it, as cubic as possible. None
            leaves them as they are.
        min_distance: the least distance of two atoms, Å; None for 0.6 of the sum of their covalent
            radii, which crystals, melts and molecules of all elements keep.
        max_force: the largest force on an atom, eV/Å, where a potential is named.
        strain: strained cells.
        rattle: displaced atoms.
        md: molecular dynamics.
        molecules: crystals of rigid molecules.
        packing: crystals of copies of a molecule.
        vacancy: missing atoms.
        surface: slabs.

    Raises:
        ValueError: for a number out of bounds.
    """

    atoms: int | None = None
    min_distance: float | None = None
    max_force: float = 30.0
    strain: Strain = Strain()
    rattle: Rattle = Rattle()
    md: MolecularDynamics = MolecularDynamics()
    molecules: RigidMolecules = RigidMolecules()
    packing: Packing = Packing()
    vacancy: Vacancies = Vacancies()
    surface: Surfaces = Surfaces()

    def __post_init__(self) -> None:
        if self.atoms is not None:
            check_whole("atoms", self.atoms, least=1)
        if self.min_distance is not None:
            check_number("min_distance", self.min_distance, least=0, unit="Å")
        check_number("max_force", self.max_force, above=0, unit="eV/Å")

    def count(self, method: str) -> int:
        """Return how many structures a method makes of each seed structure."""
        return getattr(self, method).count
