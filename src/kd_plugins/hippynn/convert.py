"""hippynn's padded arrays, and the structures that they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from kd_plugins.numbers import shown
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import LabelledStructure

STRUCTURE_KEY = "structure_key"
"""The array by which a database's rows are found in a TargetStore."""
LABELS = ("energy", "forces")


class DataError(ValueError):
    """A database or a teacher's targets for it cannot be right; the message says what to do."""


@dataclass(frozen=True)
class ArrayNames:
    """What a database calls its arrays; left out, as hippynn's ``AseDatabase`` does.

    Args:
        species: (n, atoms) atomic numbers, 0 where a structure has no further atom.
        positions: (n, atoms, 3) in Å.
        cell: (n, 3, 3) in Å, rows are the lattice vectors; None where nothing is periodic.
        energy: (n, 1) of the whole structure in eV.
        forces: (n, atoms, 3) in eV/Å; the energy's gradient, if there is ``grad`` in the name.
    """

    species: str = "numbers"
    positions: str = "positions"
    cell: str | None = "cell"
    energy: str = "energy"
    forces: str = "forces"

    def __post_init__(self) -> None:
        """Refuse names that are none, and one name for two arrays."""
        given = {key: name for key, name in vars(self).items() if (key, name) != ("cell", None)}
        for key, name in given.items():
            if not isinstance(name, str) or not name:
                raise DataError(f"ArrayNames: expected the name of an array as {key}, got {name!r}")
        if len(set(given.values())) < len(given):
            raise DataError(f"ArrayNames: expected a name for each array, got {given}")

    @property
    def geometry(self) -> tuple[str, ...]:
        """Names of what makes out a structure."""
        names = (self.species, self.positions, self.cell)
        return tuple(name for name in names if name is not None)


def is_gradient(name: str) -> bool:
    """Return whether an array is called what is the opposite of forces.

    >>> is_gradient("Gradients"), is_gradient("forces")
    (True, False)
    """
    return "grad" in name.lower()


def structure_keys(structure_ids: Iterable[str]) -> NDArray[np.int64]:
    """Return a number for each structure id, which a hippynn database can carry along.

    Raises:
        DataError: for what is no list of texts.

    >>> bool(structure_keys(["a"])[0] == structure_keys(["b", "a"])[1])
    True
    """
    if isinstance(structure_ids, str):
        raise DataError(f"structure_ids: expected a list of ids, got the text {structure_ids!r}")
    ids = list(structure_ids)
    for one in ids:
        if not isinstance(one, str):
            raise DataError(f"structure_ids: expected texts, got {shown(one)}")
    digests = [hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids]
    return np.array([int.from_bytes(one, "big") >> 1 for one in digests], dtype=np.int64)


def to_arrays(
    frames: Iterable[LabelledStructure],
    labels: Sequence[str] = LABELS,
    names: ArrayNames | None = None,
    dtype: DTypeLike = np.float32,
) -> dict[str, NDArray[Any]]:
    """Return structures with labels as a hippynn ``Database`` takes them.

    Beside the arrays of `ArrayNames` there are ``structure_key``, by which rows are found again in
    a TargetStore however a database shuffles them, and ``energy_per_atom``.

    Args:
        frames: such as `kd_plugins.structures.read_structures` yields.
        labels: those that every structure must have, ``energy`` and ``forces`` or one of them.
        names: of the arrays.
        dtype: of everything that is not a whole number.

    Raises:
        DataError: for no structure, an id that comes twice, or a label that is missing or not
            finite; for numbers that are too large for ``dtype``; for structures that are not
            periodic along all three vectors where there are cells, as hippynn knows no others.

    >>> from ase import Atoms
    >>> atoms = Atoms("Cu", cell=[2, 2, 2], pbc=True)
    >>> frame = LabelledStructure("cu", atoms, {"energy": np.array(-3.5)})
    >>> sorted(to_arrays([frame], labels=["energy"]))
    ['cell', 'energy', 'energy_per_atom', 'numbers', 'positions', 'structure_key']
    """
    names = checked_names(names)
    if not isinstance(frames, Iterable):
        raise DataError(f"frames: expected a list of Frames, got {shown(frames)}")
    held = list(frames)
    if np.dtype(dtype) not in (np.dtype("float32"), np.dtype("float64")):
        raise DataError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")
    _check_frames(held, labels)
    _check_periodic(held, names)
    size = max(len(frame.atoms) for frame in held)
    arrays = {
        names.species: padded([frame.atoms.numbers for frame in held], size),
        names.positions: padded([frame.atoms.positions for frame in held], size).astype(dtype),
        STRUCTURE_KEY: structure_keys(frame.structure_id for frame in held),
    }
    if names.cell is not None:
        arrays[names.cell] = np.array([frame.atoms.cell.array for frame in held], dtype)
    if "energy" in labels:
        energy = np.array([[float(frame.labels["energy"])] for frame in held])
        sizes = np.array([[len(frame.atoms)] for frame in held])
        arrays[names.energy] = energy.astype(dtype)
        arrays["energy_per_atom"] = (energy / sizes).astype(dtype)
    if "forces" in labels:
        forces = [frame.labels["forces"] for frame in held]
        sign = -1 if is_gradient(names.forces) else 1
        arrays[names.forces] = sign * padded(forces, size).astype(dtype)
    _check_finite(arrays, held)
    return arrays


def checked_names(names: ArrayNames | None) -> ArrayNames:
    """Return what a database calls its arrays.

    Raises:
        DataError: for anything but an `ArrayNames`.
    """
    if names is not None and not isinstance(names, ArrayNames):
        raise DataError(f"names: expected ArrayNames(...), got {names!r}")
    return names or ArrayNames()


def padded(values: Sequence[NDArray[Any]], size: int) -> NDArray[Any]:
    """Return (n, size, ...) of n arrays (atoms, ...), zeros behind each one's atoms."""
    first = values[0]
    found = np.zeros((len(values), size, *first.shape[1:]), first.dtype)
    for row, value in zip(found, values, strict=True):
        row[: len(value)] = value
    return found


def structures(arrays: Mapping[str, torch.Tensor], names: ArrayNames) -> list[Structure]:
    """Return the structures of a split, without padding.

    Raises:
        DataError: for arrays that are missing.
    """
    check_there(arrays, names.geometry)
    numbers, positions = (arrays[name].detach().cpu().numpy() for name in names.geometry[:2])
    cells = np.zeros((len(numbers), 3, 3)) if names.cell is None else arrays[names.cell].cpu()
    periodic = [names.cell is not None] * 3
    return [
        Structure(z[z != 0], r[z != 0], cell, periodic)
        for z, r, cell in zip(numbers, positions, np.asarray(cells), strict=True)
    ]


def check_there(arrays: Mapping[str, Any], wanted: Iterable[str]) -> None:
    """Refuse a split that lacks an array, or holds something else in its place.

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


def _check_periodic(frames: Sequence[LabelledStructure], names: ArrayNames) -> None:
    """Refuse structures that hippynn would repeat, or not repeat, against what they say."""
    periodic = names.cell is not None
    wrong = [frame for frame in frames if not (frame.atoms.pbc == periodic).all()]
    if not wrong:
        return
    first = wrong[0]
    said = "".join("FT"[int(flag)] for flag in first.atoms.pbc)
    if not periodic:
        what = f"is periodic (pbc {said}), but ArrayNames(cell=None) leaves the cells out"
        remedy = "give the array of cells a name, or set pbc to False"
    elif len(wrong) == len(frames) and not any(frame.atoms.pbc.any() for frame in frames):
        what = f"and all others are not periodic (pbc {said}), but arrays with cells were asked for"
        remedy = "say names=ArrayNames(cell=None) and train a model without cells"
    else:
        what = f"is not periodic along all cell vectors (pbc {said}), as {len(wrong)} are not"
        remedy = (
            "hippynn would repeat them; take them out, or give them a cell with vacuum around them "
            "and pbc True"
        )
    raise DataError(f"structure {first.structure_id!r} {what}; {remedy}")


def _check_finite(arrays: Mapping[str, NDArray[Any]], frames: Sequence[LabelledStructure]) -> None:
    for name, value in arrays.items():
        lost = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
        if lost.any():
            first = frames[int(np.flatnonzero(lost)[0])].structure_id
            raise DataError(
                f"structure {first!r}: {name!r} is NaN, inf or too large for {value.dtype}; mend "
                "it or take it out"
            )


def _check_frames(frames: Sequence[LabelledStructure], labels: Sequence[str]) -> None:
    if isinstance(labels, str):
        raise DataError(f"labels: expected a list of names, got {labels!r}")
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise DataError(f"labels: expected some of {', '.join(LABELS)}, got {unknown[0]!r}")
    if not frames:
        raise DataError("there are no structures to make arrays of")
    for frame in frames:
        if not isinstance(frame, LabelledStructure):
            raise DataError(
                f"frames: expected LabelledStructures, such as read_structures yields, got "
                f"{type(frame).__name__}"
            )
    seen = set[str]()
    for frame in frames:
        if frame.structure_id in seen:
            raise DataError(f"structure id {frame.structure_id!r} comes twice")
        seen.add(frame.structure_id)
        if not len(frame.atoms) or not frame.atoms.numbers.all():
            raise DataError(
                f"structure {frame.structure_id!r}: expected atoms, each of an element, got "
                f"{frame.atoms.get_chemical_formula() or 'none'}; hippynn takes element 0 for "
                "padding"
            )
        for name in labels:
            _check_label(frame, name)


def _check_label(frame: LabelledStructure, name: str) -> None:
    if name not in frame.labels:
        held = ", ".join(frame.labels) or "no labels"
        raise DataError(f"structure {frame.structure_id!r} has no {name}; it has {held}")
    value = frame.labels[name]
    expected = () if name == "energy" else (len(frame.atoms), 3)
    if value.shape != expected or not np.isfinite(value).all():
        raise DataError(
            f"structure {frame.structure_id!r}: expected {name} {expected}, finite; got "
            f"{value.shape} with {int((~np.isfinite(value)).sum())} that are NaN or inf"
        )


PERIODICITY = ("pbc", "_pbc")
"""What an array of (n, 3) flags is called, where there is one; the second by ``AseDatabase``."""
FLAT = 1e-3
"""Å³ below which a cell counts as none; an atom alone takes thousands of times that."""
HEAVIEST = 118
"""The last atomic number that has a name."""
FLOATS = (torch.float32, torch.float64)
NAMED = 5
"""How many rows a message names."""


def check_geometry(arrays: Mapping[str, torch.Tensor], names: ArrayNames, where: str = "") -> None:
    """Refuse structures that hippynn would take for others, or not take at all.

    Args:
        arrays: of a split.
        names: what they are called.
        where: opening of every message, such as ``split 'train': ``.

    Raises:
        DataError: naming array and rows.
    """
    check_there(arrays, names.geometry)
    _check_species(arrays[names.species], names.species, where)
    check_floats(arrays, [name for name in names.geometry if name != names.species], where)

    n, size = arrays[names.species].shape
    _check_shape(arrays[names.positions], (n, size, 3), names.positions, names.species, where)
    lost = ~finite(arrays[names.positions], arrays[names.species])
    refuse(lost, f"{where}{names.positions!r} is NaN or inf", "take them out")

    if names.cell is not None:
        _check_shape(arrays[names.cell], (n, 3, 3), names.cell, names.species, where)
        _check_cells(arrays, names.cell, where)


def check_floats(arrays: Mapping[str, torch.Tensor], wanted: Sequence[str], where: str) -> None:
    """Refuse arrays that are kept as whole numbers, or too roughly for energies in eV.

    Raises:
        DataError: naming the first one.
    """
    for name in wanted:
        if arrays[name].dtype not in FLOATS:
            raise DataError(
                f"{where}{name!r}: expected float32 or float64, got {arrays[name].dtype}; targets "
                "would be rounded away; make the database with dtype float32"
            )


def finite(value: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
    """Return which rows of an array are finite, (n,); what stands in an atom's padding is not read.

    Args:
        value: (n, ...) of structures or, (n, atoms, ...), of atoms.
        species: (n, atoms).
    """
    fine = torch.isfinite(value)
    if value.shape[:2] == species.shape:
        padding = (species == 0).to(fine.device)
        fine |= padding.reshape(*padding.shape, *[1] * (value.ndim - 2))
    return fine.reshape(len(value), -1).all(dim=1)


def refuse(bad: torch.Tensor | NDArray[np.bool_], what: str, remedy: str) -> None:
    """Raise an error that names the rows which are bad, if any.

    Args:
        bad: (n,).
        what: is wrong with them.
        remedy: what to do.

    Raises:
        DataError: if any is.
    """
    if bool(bad.any()):
        rows = np.flatnonzero(np.asarray(bad.cpu() if isinstance(bad, torch.Tensor) else bad))
        raise DataError(
            f"{what} in {len(rows)} of {len(bad)} structures, {rows_of(rows)}; {remedy}"
        )


def rows_of(rows: Sequence[int] | NDArray[np.int64]) -> str:
    """Return rows in words.

    >>> rows_of([4]), rows_of(range(9))
    ('row 4', 'rows 0, 1, 2, 3, 4 and 4 more')
    """
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"rows {', '.join(str(row) for row in rows[:NAMED])}{more}"


def _check_species(species: torch.Tensor, name: str, where: str) -> None:
    # hippynn looks elements up by them, for which shorter whole numbers are masks or no index.
    if species.ndim != 2 or not len(species) or species.dtype not in (torch.int32, torch.int64):
        raise DataError(
            f"{where}{name!r}: expected whole atomic numbers, int64 (structures, atoms), of one "
            f"structure or more, got {species.dtype} {tuple(species.shape)}"
        )
    wrong = ((species < 0) | (species > HEAVIEST)).any(dim=1)
    refuse(wrong, f"{where}{name!r} holds numbers that no element has", "they go from 1 to 118")
    refuse((species == 0).all(dim=1), f"{where}{name!r} holds no atom", "take them out")


def _check_shape(
    value: torch.Tensor, expected: tuple[int, ...], name: str, species: str, where: str
) -> None:
    if value.shape != expected:
        raise DataError(
            f"{where}{name!r}: expected {expected} as of {species!r}, got {tuple(value.shape)}"
        )


def _check_cells(arrays: Mapping[str, torch.Tensor], name: str, where: str) -> None:
    """Refuse what is not periodic: hippynn repeats a structure along all three vectors."""
    cells = arrays[name].detach().cpu().double()
    lost = ~torch.isfinite(cells).flatten(1).all(dim=1)
    refuse(lost, f"{where}{name!r} is NaN or inf", "take them out")

    none = torch.linalg.det(cells).abs() < FLAT
    if bool(none.all()):
        raise DataError(
            f"{where}{name!r}: no structure has a cell with a volume; if none is periodic, train "
            "a model without cells and say names=ArrayNames(cell=None)"
        )
    apart = (
        "hippynn would repeat these along all three cell vectors; take them out, or put them into "
        "a cell with vacuum around them that is periodic"
    )
    refuse(none, f"{where}{name!r} has no volume", apart)
    for flags in PERIODICITY:
        if flags in arrays and arrays[flags].shape == (len(cells), 3):
            open_ = (arrays[flags] == 0).any(dim=1)
            refuse(open_, f"{where}{flags!r} says not periodic", apart)
