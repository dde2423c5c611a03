"""Labels as a table: a CSV of what belongs to structures, an npz of what belongs to atoms."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.names import suggestion
from kd_plugins.structures.readers import LabelledStructure, check_file

Arrays = Mapping[str, NDArray[Any]]

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
_ID = "structure_id"

COLUMNS: Mapping[str, tuple[str, ...]] = {
    name: tuple(f"{name}_{component}" for component in VOIGT) if row.shape else (name,)
    for name, row in QUANTITIES.items()
    if row.scope == "structure"
}
"""Quantity to its columns in a CSV: ``energy``, and ``stress_xx`` to ``stress_xy``."""

_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    _ID: ("B",),
    "n_atoms": ("B",),
    "atomic_numbers": ("N",),
    "positions": ("N", 3),
    "cell": ("B", 3, 3),
    "pbc": ("B", 3),
}
_KINDS = {_ID: "Uiu", "n_atoms": "iu", "atomic_numbers": "iu", "pbc": "biu"}


def read_table(csv_path: Path, npz_path: Path) -> Iterator[LabelledStructure]:
    """Yield the structures of a table in the npz's order, matched with the CSV by their id.

    The CSV has a header, ``structure_id``, and structure quantities: ``energy``,
    ``energy_per_atom``, ``stress_xx``, ``_yy``, ``_zz``, ``_yz``, ``_xz``, ``_xy``. An empty cell
    is a label that is missing.

    The npz has ``structure_id`` (B,), ``n_atoms`` (B,), ``cell`` (B, 3, 3), ``pbc`` (B, 3), and
    concatenated over the structures in the order of its own ``structure_id``: ``atomic_numbers``
    (N,), ``positions`` (N, 3) and atom quantities such as ``forces`` (N, 3) and
    ``atomic_energies`` (N,). Units are those of `kd_plugins.core.quantities`. It is read as a
    whole, so cut a large one into parts.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file that cannot be read, a wrong shape or type, a cell that is no
            number, an id that comes twice or stands on one side only.
        KeyError: for a column or an array that is not known, or one that is missing.
    """
    for path in (csv_path, npz_path):
        check_file(path)
    rows = _read_csv(csv_path)
    arrays = _read_npz(npz_path)
    names = [str(name) for name in arrays[_ID].tolist()]
    _check_ids(names, rows, csv_path, npz_path)
    starts = np.concatenate([[0], np.cumsum(arrays["n_atoms"])])
    atom_labels = [name for name in arrays if name in QUANTITIES]
    for index, name in enumerate(names):
        atoms = slice(starts[index], starts[index + 1])
        structure = Atoms(
            arrays["atomic_numbers"][atoms],
            positions=arrays["positions"][atoms],
            cell=arrays["cell"][index],
            pbc=arrays["pbc"][index].astype(bool),
        )
        labels = {label: np.asarray(arrays[label][atoms], dtype=float) for label in atom_labels}
        yield LabelledStructure(name, structure, {**rows[name], **labels})


def _read_csv(path: Path) -> dict[str, Arrays]:
    rows: dict[str, Arrays] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        quantities = _quantities(header, path)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(header)} cells, as in the header")
            if row[_ID] in rows:
                raise ValueError(f"{where}: structure id {row[_ID]!r} comes twice; keep one")
            rows[row[_ID]] = _values(row, quantities, where)
    return rows


def _quantities(header: list[str], path: Path) -> list[str]:
    """Return the quantities that a header promises."""
    columns = {column: name for name, group in COLUMNS.items() for column in group}
    for column in header:
        if column != _ID and column not in columns:
            raise KeyError(f"{path}: unknown column {column!r}{suggestion(column, columns)}")
        if header.count(column) > 1:
            raise ValueError(f"{path}: column {column!r} comes twice; keep one")
    found = list(dict.fromkeys(columns[column] for column in header if column != _ID))
    for column in (_ID, *(column for name in found for column in COLUMNS[name])):
        if column not in header:
            raise KeyError(f"{path} has no column {column!r}; its header is {', '.join(header)}")
    return found


def _values(row: Mapping[str, str], quantities: list[str], where: str) -> Arrays:
    values: dict[str, NDArray[Any]] = {}
    for name in quantities:
        cells = [row[column].strip() for column in COLUMNS[name]]
        if not any(cells):
            continue
        try:
            numbers = np.array([float(cell) for cell in cells])
        except ValueError as error:
            raise ValueError(f"{where}: {name} is no number ({error}); mend the cell") from error
        values[name] = numbers if QUANTITIES[name].shape else numbers[0]
    return values


def _read_npz(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as an npz of plain arrays, without objects: {error}"
        ) from error
    known = {*_SHAPES, *(name for name, row in QUANTITIES.items() if row.scope == "atom")}
    for name in arrays:
        if name not in known:
            hint = "; it belongs in the CSV" if name in COLUMNS else suggestion(name, known)
            raise KeyError(f"{path}: unknown array {name!r}{hint}")
    for name in _SHAPES:
        if name not in arrays:
            raise KeyError(f"{path} has no array {name!r}; it has {', '.join(arrays)}")
    _check_arrays(arrays, path)
    return arrays


def _check_arrays(arrays: Arrays, path: Path) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS.get(name, "fiu"):
            raise ValueError(
                f"{path}: {name} is of type {array.dtype}; expected "
                f"{'whole numbers' if name in _KINDS else 'numbers'}{' or text' * (name == _ID)}"
            )
    if (arrays["n_atoms"] < 1).any():
        raise ValueError(f"{path}: n_atoms holds {arrays['n_atoms'].min()}; expected 1 or more")
    sizes = {"B": arrays[_ID].size, "N": int(arrays["n_atoms"].sum())}
    for name, array in arrays.items():
        shape = _SHAPES.get(name) or ("N", *QUANTITIES[name].shape)
        expected = [sizes.get(str(axis), axis) for axis in shape]
        fits = len(expected) == array.ndim and all(
            isinstance(size, str) or size == found
            for size, found in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{path}: {name}: expected {tuple(expected)}, got {array.shape}")


def _check_ids(names: list[str], rows: Mapping[str, Arrays], csv_path: Path, npz: Path) -> None:
    if not names:
        raise ValueError(f"{npz} holds no structure")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{npz}: structure id {name!r} comes {count} times; keep one")
    for name in sorted(set(names) ^ set(rows)):
        here, there = (npz, csv_path) if name in rows else (csv_path, npz)
        raise ValueError(
            f"structure {name!r} stands in {there} and not in {here}; both must name the same ones"
        )
