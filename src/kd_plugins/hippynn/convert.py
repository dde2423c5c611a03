"""hippynn's padded arrays from labelled structures and back, and checks of what they hold.

hippynn keeps a database as arrays over all structures. Structures of fewer atoms than the largest
are padded behind their atoms, with atomic number 0. Lengths are in Å and energies in eV, as
elsewhere in this package, so that only the layout is converted and, for labels that are gradients,
the sign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import units
from numpy.typing import DTypeLike, NDArray

from kd_plugins.names import renamed_argument
from kd_plugins.numbers import shown
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import LabelledStructure

STRUCTURE_KEY = "structure_key"
"""Name of the array that identifies a database's rows in a TargetStore."""
LABELS = ("energy", "forces")
ENERGY_PER_ATOM = "energy_per_atom"
WEIGHT = "_weight"
"""Ending of the array of a label's or target's weights, 0 where it is missing."""
PERIODICITY = ("pbc", "_pbc")
"""Names of an array of periodicity flags (n, 3), if there is one; `AseDatabase` uses the second."""
SMALLEST_VOLUME = 1e-3
"""Å³ below which a cell counts as missing; a single atom takes thousands of times as much."""
HEAVIEST = 118
"""The largest atomic number that has a name."""
FLOATS = (torch.float32, torch.float64)
ENERGY_UNITS: Mapping[str, float] = {"eV": units.eV, "kcal/mol": units.kcal / units.mol}
"""Units of a model's energies to eV; ASE and LAMMPS' ``metal`` have eV and Å."""
ROWS_SHOWN = 5
"""How many rows a message lists."""


class DataError(ValueError):
    """A database, or a teacher's targets for it, cannot be right; the message names the remedy."""


def energy_factor(energy_unit: str) -> float:
    """Return the eV in a unit of a model's energies.

    Raises:
        ValueError: for a unit other than those of `ENERGY_UNITS`.

    >>> energy_factor("eV")
    1.0
    """
    if energy_unit not in ENERGY_UNITS:
        raise ValueError(f"energy_unit: expected {' or '.join(ENERGY_UNITS)}, got {energy_unit!r}")
    return ENERGY_UNITS[energy_unit]


@dataclass(frozen=True)
class ArrayNames:
    """The names of a database's arrays; by default those of hippynn's ``AseDatabase``.

    Args:
        species: (n, atoms) atomic numbers, 0 where a structure has no further atom.
        positions: (n, atoms, 3) in Å.
        cell: (n, 3, 3) in Å, rows are the lattice vectors; None where nothing is periodic.
        energy: (n, 1) of the whole structure in eV.
        forces: (n, atoms, 3) in eV/Å; the energy's gradient, if the name contains ``grad``.
    """

    species: str = "numbers"
    positions: str = "positions"
    cell: str | None = "cell"
    energy: str = "energy"
    forces: str = "forces"

    def __post_init__(self) -> None:
        """Refuse an empty name, and one name for two arrays."""
        given = {key: name for key, name in vars(self).items() if (key, name) != ("cell", None)}

        for key, name in given.items():
            if not isinstance(name, str) or not name:
                raise DataError(f"ArrayNames: expected the name of an array as {key}, got {name!r}")

        if len(set(given.values())) < len(given):
            raise DataError(f"ArrayNames: expected a name for each array, got {given}")

    @property
    def geometry(self) -> tuple[str, ...]:
        """Names of the arrays that define a structure: species, positions and perhaps cells."""
        names = (self.species, self.positions, self.cell)
        return tuple(name for name in names if name is not None)


def checked_names(names: ArrayNames | None) -> ArrayNames:
    """Return the names of a database's arrays, the default ones for None.

    Raises:
        DataError: for anything but an `ArrayNames`.
    """
    if names is not None and not isinstance(names, ArrayNames):
        raise DataError(f"names: expected ArrayNames(...), got {names!r}")
    return names or ArrayNames()


def is_gradient(name: str) -> bool:
    """Return whether an array holds the energy's gradient, the negative of forces, by its name.

    >>> is_gradient("Gradients"), is_gradient("forces")
    (True, False)
    """
    return "grad" in name.lower()


# From labelled structures to arrays


def structure_keys(structure_ids: Iterable[str]) -> NDArray[np.int64]:
    """Return an integer for each structure id, so that a hippynn database can hold it.

    A database holds numbers only and shuffles its rows; by this key a row is found again in a
    TargetStore, whose structures have text ids.

    Raises:
        DataError: for anything but a list of texts.

    >>> bool(structure_keys(["a"])[0] == structure_keys(["b", "a"])[1])
    True
    """
    if isinstance(structure_ids, str):
        raise DataError(f"structure_ids: expected a list of ids, got the text {structure_ids!r}")

    ids = list(structure_ids)
    for one in ids:
        if not isinstance(one, str):
            raise DataError(f"structure_ids: expected texts, got {shown(one)}")

    # A cryptographic hash, because Python's own differs between processes. One bit is dropped so
    # that it fits a signed integer; among a million structures two agree once in 10^7 databases.
    digests = [hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids]
    return np.array([int.from_bytes(one, "big") >> 1 for one in digests], dtype=np.int64)


@renamed_argument("frames", "structures")
def to_arrays(
    structures: Iterable[LabelledStructure],
    labels: Sequence[str] = LABELS,
    names: ArrayNames | None = None,
    dtype: DTypeLike = np.float32,
    allow_missing: bool = False,
) -> dict[str, NDArray[Any]]:
    """Return labelled structures as the arrays of which hippynn makes a ``Database``.

    Beside the arrays of `ArrayNames` there are ``structure_key``, which identifies the rows in a
    TargetStore in whatever order a database holds them, and ``energy_per_atom``. With
    ``allow_missing`` each array of labels has zeros where a structure has none, and another one
    beside it, such as ``forces_weight``, that is 0 there and 1 elsewhere; give `distillation_loss`
    the database that is made of them.

    Args:
        structures: such as `kd_plugins.structures.read_structures` yields.
        labels: those that every structure must have, ``energy`` and ``forces`` or one of them.
        names: of the arrays.
        dtype: of all arrays of real numbers, float32 or float64.
        allow_missing: accept structures without some or all of ``labels``.

    Raises:
        DataError: for no structure, an id that comes twice, a label that is missing or not finite,
            or numbers that are too large for ``dtype``; with cells, also for structures that are
            not periodic along all three lattice vectors, because hippynn has no others.

    >>> from ase import Atoms
    >>> atoms = Atoms("Cu", cell=[2, 2, 2], pbc=True)
    >>> structure = LabelledStructure("cu", atoms, {"energy": np.array(-3.5)})
    >>> sorted(to_arrays([structure], labels=["energy"]))
    ['cell', 'energy', 'energy_per_atom', 'numbers', 'positions', 'structure_key']
    """
    names = checked_names(names)
    if not isinstance(structures, Iterable):
        raise DataError(
            f"structures: expected a list of LabelledStructures, got {shown(structures)}"
        )
    if np.dtype(dtype) not in (np.dtype("float32"), np.dtype("float64")):
        raise DataError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")
    if not isinstance(allow_missing, bool):
        raise DataError(f"allow_missing: expected True or False, got {shown(allow_missing)}")

    structures = list(structures)
    _check_labelled(structures, labels, allow_missing)
    _check_periodic(structures, names)

    size = max(len(one.atoms) for one in structures)
    arrays = {
        names.species: pad([one.atoms.numbers for one in structures], size),
        names.positions: pad([one.atoms.positions for one in structures], size).astype(dtype),
        STRUCTURE_KEY: structure_keys(one.structure_id for one in structures),
    }
    if names.cell is not None:
        arrays[names.cell] = np.array([one.atoms.cell.array for one in structures], dtype)

    arrays.update(_label_arrays(structures, labels, names, size, dtype))
    if allow_missing:
        arrays.update(_label_weights(structures, labels, names, size, dtype))

    _check_finite(arrays, structures)
    return arrays


def _label_arrays(
    structures: Sequence[LabelledStructure],
    labels: Sequence[str],
    names: ArrayNames,
    size: int,
    dtype: DTypeLike,
) -> dict[str, NDArray[Any]]:
    """Return the arrays of labels, padded to so many atoms, with zeros for a missing label."""
    arrays = {}
    if "energy" in labels:
        energy = np.array([[float(one.labels.get("energy", 0.0))] for one in structures])
        n_atoms = np.array([[len(one.atoms)] for one in structures])
        arrays[names.energy] = energy.astype(dtype)
        # Divided in float64, before totals of thousands of eV are rounded.
        arrays[ENERGY_PER_ATOM] = (energy / n_atoms).astype(dtype)

    if "forces" in labels:
        values = [one.labels.get("forces", np.zeros((len(one.atoms), 3))) for one in structures]
        forces = pad(values, size).astype(dtype)
        arrays[names.forces] = -forces if is_gradient(names.forces) else forces
    return arrays


def _label_weights(
    structures: Sequence[LabelledStructure],
    labels: Sequence[str],
    names: ArrayNames,
    size: int,
    dtype: DTypeLike,
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the labels' weights: (n, 1) of structures, (n, atoms) of atoms."""
    weights = {}
    if "energy" in labels:
        weight = np.array([["energy" in one.labels] for one in structures]).astype(dtype)
        weights = {names.energy + WEIGHT: weight, ENERGY_PER_ATOM + WEIGHT: weight.copy()}
    if "forces" in labels:
        rows = [np.full(len(one.atoms), "forces" in one.labels) for one in structures]
        weights[names.forces + WEIGHT] = pad(rows, size).astype(dtype)
    return weights


def pad(values: Sequence[NDArray[Any]], size: int) -> NDArray[Any]:
    """Return one array (n, size, ...) of n arrays (atoms, ...), with zeros behind their atoms."""
    first = values[0]
    padded = np.zeros((len(values), size, *first.shape[1:]), first.dtype)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded


def _check_labelled(
    structures: Sequence[LabelledStructure], labels: Sequence[str], allow_missing: bool
) -> None:
    """Refuse structures without atoms, ids that come twice, and labels that are missing."""
    if isinstance(labels, str):
        raise DataError(f"labels: expected a list of names, got {labels!r}")
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise DataError(f"labels: expected some of {', '.join(LABELS)}, got {unknown[0]!r}")

    if not structures:
        raise DataError("there are no structures to make arrays of")
    for one in structures:
        if not isinstance(one, LabelledStructure):
            raise DataError(
                f"structures: expected LabelledStructures, such as read_structures yields, got "
                f"{type(one).__name__}"
            )

    seen = set[str]()
    for one in structures:
        if one.structure_id in seen:
            raise DataError(f"structure id {one.structure_id!r} comes twice")
        seen.add(one.structure_id)

        if not len(one.atoms) or not one.atoms.numbers.all():
            raise DataError(
                f"structure {one.structure_id!r}: expected atoms, each of an element, got "
                f"{one.atoms.get_chemical_formula() or 'none'}; hippynn takes element 0 for padding"
            )
        for name in labels:
            if name in one.labels or not allow_missing:
                _check_label(one, name)


def _check_label(structure: LabelledStructure, name: str) -> None:
    if name not in structure.labels:
        present = ", ".join(structure.labels) or "no labels"
        raise DataError(
            f"structure {structure.structure_id!r} has no {name}; it has {present}; if only a "
            "teacher is to say it, give allow_missing=True"
        )

    value = structure.labels[name]
    expected = () if name == "energy" else (len(structure.atoms), 3)
    if value.shape != expected or not np.isfinite(value).all():
        raise DataError(
            f"structure {structure.structure_id!r}: expected {name} {expected}, finite; got "
            f"{value.shape} with {int((~np.isfinite(value)).sum())} that are NaN or inf"
        )


def _check_periodic(structures: Sequence[LabelledStructure], names: ArrayNames) -> None:
    """Refuse structures that hippynn would repeat although they are not periodic, or not repeat.

    With cells hippynn repeats every structure along all three vectors; without, along none. It
    reads no flags of periodicity.
    """
    periodic = names.cell is not None
    wrong = [one for one in structures if not (one.atoms.pbc == periodic).all()]
    if not wrong:
        return

    first = wrong[0]
    flags = "".join("FT"[int(flag)] for flag in first.atoms.pbc)
    if not periodic:
        what = f"is periodic (pbc {flags}), but ArrayNames(cell=None) leaves the cells out"
        remedy = "give the array of cells a name, or set pbc to False"
    elif len(wrong) == len(structures) and not any(one.atoms.pbc.any() for one in structures):
        what = f"and all others are not periodic (pbc {flags}), but the arrays would have cells"
        remedy = "give names=ArrayNames(cell=None) and train a model without cells"
    else:
        what = f"is not periodic along all cell vectors (pbc {flags}), as {len(wrong)} are not"
        remedy = (
            "hippynn would repeat them; take them out, or give them a cell with vacuum around them "
            "and pbc True"
        )
    raise DataError(f"structure {first.structure_id!r} {what}; {remedy}")


def _check_finite(
    arrays: Mapping[str, NDArray[Any]], structures: Sequence[LabelledStructure]
) -> None:
    """Refuse numbers that overflow the arrays' dtype."""
    for name, value in arrays.items():
        wrong = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
        if wrong.any():
            first = structures[int(np.flatnonzero(wrong)[0])].structure_id
            raise DataError(
                f"structure {first!r}: {name!r} is NaN, inf or too large for {value.dtype}; mend "
                "it or take it out"
            )


# From arrays to structures


def to_structures(arrays: Mapping[str, torch.Tensor], names: ArrayNames) -> list[Structure]:
    """Return the structures of a split, without padding.

    Raises:
        DataError: for arrays that are missing.
    """
    check_present(arrays, names.geometry)
    numbers, positions = (arrays[name].detach().cpu().numpy() for name in names.geometry[:2])
    cells = np.zeros((len(numbers), 3, 3)) if names.cell is None else arrays[names.cell].cpu()
    periodic = [names.cell is not None] * 3

    return [
        Structure(z[z != 0], r[z != 0], cell, periodic)
        for z, r, cell in zip(numbers, positions, np.asarray(cells), strict=True)
    ]


# Checks of a split's arrays


def check_present(arrays: Mapping[str, Any], wanted: Iterable[str]) -> None:
    """Refuse a split that lacks an array, or holds anything but tensors.

    Raises:
        DataError: naming it.
    """
    for name in wanted:
        if name not in arrays:
            raise DataError(
                f"the database has no array {name!r}; it has {', '.join(sorted(arrays))}; say "
                "what it calls its arrays with names=ArrayNames(...)"
            )
        if not isinstance(arrays[name], torch.Tensor):
            raise DataError(
                f"array {name!r}: expected a torch tensor, got {type(arrays[name]).__name__}; "
                "hippynn's Database makes them of numpy's arrays"
            )


def check_geometry(arrays: Mapping[str, torch.Tensor], names: ArrayNames, where: str = "") -> None:
    """Refuse structures that hippynn would misread without an error, or could not read.

    Args:
        arrays: of a split.
        names: of these arrays.
        where: opening of every message, such as ``split 'train': ``.

    Raises:
        DataError: naming array and rows.
    """
    check_present(arrays, names.geometry)
    _check_species(arrays[names.species], names.species, where)
    check_floats(arrays, [name for name in names.geometry if name != names.species], where)

    n, size = arrays[names.species].shape
    _check_shape(arrays[names.positions], (n, size, 3), names.positions, names.species, where)
    wrong = ~is_finite(arrays[names.positions], arrays[names.species])
    refuse_rows(wrong, f"{where}{names.positions!r} is NaN or inf", "take them out")

    if names.cell is not None:
        _check_shape(arrays[names.cell], (n, 3, 3), names.cell, names.species, where)
        _check_cells(arrays, names.cell, where)


def check_floats(arrays: Mapping[str, torch.Tensor], wanted: Sequence[str], where: str) -> None:
    """Refuse arrays of integers or of half precision, which would round energies in eV away.

    Raises:
        DataError: naming the first one.
    """
    for name in wanted:
        if arrays[name].dtype not in FLOATS:
            raise DataError(
                f"{where}{name!r}: expected float32 or float64, got {arrays[name].dtype}; targets "
                "would be rounded away; make the database with dtype float32"
            )


def is_finite(value: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
    """Return (n,), whether all numbers of a row are finite, apart from those of padding.

    Args:
        value: (n, ...), or (n, atoms, ...) of atoms.
        species: (n, atoms).
    """
    fine = torch.isfinite(value)
    if value.shape[:2] == species.shape:
        padding = (species == 0).to(fine.device)
        fine |= padding.reshape(*padding.shape, *[1] * (value.ndim - 2))
    return fine.reshape(len(value), -1).all(dim=1)


def refuse_rows(wrong: torch.Tensor | NDArray[np.bool_], what: str, remedy: str) -> None:
    """Raise an error that lists the wrong rows, if there are any.

    Args:
        wrong: (n,), true for the wrong rows.
        what: is wrong with them.
        remedy: the way to mend them.

    Raises:
        DataError: if there is one.
    """
    if bool(wrong.any()):
        rows = np.flatnonzero(np.asarray(wrong.cpu() if isinstance(wrong, torch.Tensor) else wrong))
        raise DataError(
            f"{what} in {len(rows)} of {len(wrong)} structures, {list_rows(rows)}; {remedy}"
        )


def list_rows(rows: Sequence[int] | NDArray[np.int64]) -> str:
    """Return row numbers as text.

    >>> list_rows([4]), list_rows(range(9))
    ('row 4', 'rows 0, 1, 2, 3, 4 and 4 more')
    """
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    return f"rows {', '.join(str(row) for row in rows[:ROWS_SHOWN])}{more}"


def _check_species(species: torch.Tensor, name: str, where: str) -> None:
    # hippynn indexes a table of elements with them. Torch takes shorter integers for a mask or
    # refuses them, so those are refused here by name.
    if species.ndim != 2 or not len(species) or species.dtype not in (torch.int32, torch.int64):
        raise DataError(
            f"{where}{name!r}: expected whole atomic numbers, int64 (structures, atoms), of one "
            f"structure or more, got {species.dtype} {tuple(species.shape)}"
        )

    wrong = ((species < 0) | (species > HEAVIEST)).any(dim=1)
    what = f"{where}{name!r} holds numbers that no element has"
    refuse_rows(wrong, what, f"they go from 1 to {HEAVIEST}")
    empty = (species == 0).all(dim=1)
    refuse_rows(empty, f"{where}{name!r} holds no atom", "take them out")


def _check_shape(
    value: torch.Tensor, expected: tuple[int, ...], name: str, species: str, where: str
) -> None:
    if value.shape != expected:
        raise DataError(
            f"{where}{name!r}: expected {expected} as of {species!r}, got {tuple(value.shape)}"
        )


def _check_cells(arrays: Mapping[str, torch.Tensor], name: str, where: str) -> None:
    """Refuse structures that are not periodic, since hippynn repeats along all three vectors."""
    cells = arrays[name].detach().cpu().double()
    wrong = ~torch.isfinite(cells).flatten(1).all(dim=1)
    refuse_rows(wrong, f"{where}{name!r} is NaN or inf", "take them out")

    flat = torch.linalg.det(cells).abs() < SMALLEST_VOLUME
    if bool(flat.all()):
        raise DataError(
            f"{where}{name!r}: no structure has a cell with a volume; if none is periodic, train "
            "a model without cells and give names=ArrayNames(cell=None)"
        )

    remedy = (
        "hippynn would repeat these along all three cell vectors; take them out, or put them into "
        "a cell with vacuum around them that is periodic"
    )
    refuse_rows(flat, f"{where}{name!r} has no volume", remedy)
    for flags in PERIODICITY:
        if flags in arrays and arrays[flags].shape == (len(cells), 3):
            open_rows = (arrays[flags] == 0).any(dim=1)
            refuse_rows(open_rows, f"{where}{flags!r} says not periodic", remedy)
