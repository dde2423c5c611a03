"""Species, positions and cells of a split, checked before anything is computed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kd_plugins.hippynn.arrays import ArrayNames, DataError, check_there

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
