"""Structures from whatever file they stand in, each with its identity and the labels beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.db.core import Database
from ase.db.row import AtomsRow
from ase.db.sqlite import SQLite3Database
from ase.io.formats import UnknownFileTypeError
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.core.structure import Structure
from kd_plugins.teachers.compressed import decompressed, plain_name
from kd_plugins.teachers.mptrj import is_mptrj, read_mptrj
from kd_plugins.teachers.xyz import XYZ, check_whole

DATABASES = (".db", ".json", ".aselmdb")
PAGE = 1000
"""Rows of an SQLite database that are held at once."""
_ID_KEYS = ("structure_id", "frame_id")


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure of a source.

    Args:
        structure_id: its identity.
        atoms: the structure, its constraints included, without a calculator.
        labels: quantity name to float64 array, those that the source holds: energy () in eV of the
            whole structure, forces (N, 3) in eV/Å as computed, whatever the constraints, stress
            (6,) in eV/Å³ with ASE's order and sign, and so on. NaN is passed on as it came.
    """

    structure_id: str
    atoms: Atoms
    labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def to_structure(atoms: Atoms) -> Structure:
    """Return what makes out the identity of a structure.

    >>> to_structure(Atoms("Cu", cell=[3.6, 3.6, 3.6], pbc=True)).n_atoms
    1
    """
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def to_atoms(structure: Structure) -> Atoms:
    """Return a structure as ASE has it, without constraints and calculator."""
    return Atoms(
        structure.atomic_numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
    )


def read_structures(paths: Sequence[str | Path], ids: str = "auto") -> Iterator[Frame]:
    """Return the structures of some files one after another, in flat memory.

    A file may be anything that ASE reads, an ASE database (``.db``, ``.json``) or MPtrj's JSON,
    and compressed (``.gz``, ``.xz``, ``.bz2``). ASE keeps the place of each frame of an extended
    xyz, and the whole of a JSON database.

    ``ids`` says how a structure gets its identity:

    - ``auto``: ``structure_id`` of its ``info``, else ``frame_id``, else ``sid`` and ``fid`` as
      ``sid/fid`` (a ``fid`` that is missing is 0), which is how `kd_plugins.fairchem` names them;
      else the file's stem (``run.extxyz.xz`` has ``run``) if the file holds one structure, and
      ``stem:index`` if it holds several. Of a database, ``info`` is a row's data and key-value
      pairs, and ``index`` the row's id, also of a single one. A frame of MPtrj has a ``frame_id``.
    - ``path``: ``info`` does not count; as by the stem, but with the path as it was given, without
      suffix.
    - anything else: keys of ``info``, comma-separated; their values are joined by ``/``.

    A value of ``info`` is as ASE parses it: of an unquoted 007 in an extended xyz, 7 is left.
    Whether an id comes twice is for the caller to see.

    Raises:
        FileNotFoundError: at once, for a path that is not there.
        ValueError: at once, for a folder or an empty file; while reading, for a format that is not
            known or content that cannot be read; a disordered site is one.
        KeyError: for a structure without one of the keys of ``ids``.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in given:
        check_file(Path(path))
    return chain.from_iterable(_frames(path, ids) for path in given)


def check_file(path: Path) -> None:
    """Raise a FileNotFoundError or ValueError for a path that is no file with something in it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected one with structures")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the files in it")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; expected structures")


def _frames(given: str | Path, ids: str) -> Iterator[Frame]:
    path = Path(given)
    stem = Path(plain_name(path)).stem
    place = str(path.parent / stem) if ids == "path" else stem
    rows = _readable(path)
    first = list(islice(rows, 2))
    for index, (row_id, atoms) in enumerate(chain(first, rows)):
        number = index if row_id is None else row_id
        alone = row_id is None and len(first) == 1
        structure_id = _identity(atoms, ids, place if alone else f"{place}:{number}", path)
        labels = _labels(atoms)
        atoms.calc = None
        yield Frame(structure_id, atoms, labels)


def _readable(path: Path) -> Iterator[tuple[int | None, Atoms]]:
    """Yield what `_atoms` does, and say of every error where it came from."""
    n_read = 0
    try:
        for found in _atoms(path):
            yield found
            n_read += 1
    except UnknownFileTypeError as error:
        raise ValueError(f"{path}: ASE knows no format for it ({error})") from error
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read beyond its first {n_read} structures: "
            f"{type(error).__name__}: {error}"
        ) from error
    if n_read == 0:
        raise ValueError(f"{path} holds no structure")


def _atoms(path: Path) -> Iterator[tuple[int | None, Atoms]]:
    """Yield each structure of a file, after its row's id in a database."""
    if plain_name(path).endswith(".json") and is_mptrj(path):
        yield from ((None, atoms) for atoms in read_mptrj(path))
        return
    with decompressed(path) as plain:
        if plain.suffix in DATABASES:
            yield from _rows(plain)
        else:
            yield from _from_ase(plain)


def _from_ase(path: Path) -> Iterator[tuple[None, Atoms]]:
    n_read = 0
    for atoms in ase.io.iread(str(path), ":", do_not_split_by_at_sign=True):
        yield None, _ordered(atoms)
        n_read += 1
    if path.suffix in XYZ:
        check_whole(path, n_read)


def _ordered(atoms: Atoms) -> Atoms:
    """Refuse what ASE's CIF reader lets pass: it takes the commonest element of a mixed site."""
    for site in atoms.info.get("occupancy", {}).values():
        if list(site.values()) != [1.0]:
            raise ValueError(
                f"a site is disordered ({site}); expected one element of occupancy 1, so take the "
                "file out or choose one of its arrangements"
            )
    return atoms


def _rows(path: Path) -> Iterator[tuple[int | None, Atoms]]:
    database: Any = ase.db.connect(path, use_lock_file=False, serial=True)
    with database:
        for row in _selected(database):
            atoms = row.toatoms()
            atoms.info = {**row.data, **row.key_value_pairs}
            yield row.id, atoms


def _selected(database: Database) -> Iterator[AtomsRow]:
    """Yield all rows; SQLite's in pages, since ASE fetches at once what it selects."""
    if not isinstance(database, SQLite3Database):
        yield from database.select()
        return
    last = 0
    while rows := list(database.select(f"id>{last}", limit=PAGE, sort="id")):
        yield from rows
        last = rows[-1].id


def _identity(atoms: Atoms, ids: str, place: str, path: Path) -> str:
    info = atoms.info
    if ids == "path":
        return place
    if ids == "auto":
        return _usual_identity(info) or place
    keys = [key.strip() for key in ids.split(",")]
    missing = [key for key in keys if key not in info]
    if missing:
        raise KeyError(
            f"{path}: structure {place!r} has no {missing[0]!r} to be named by; it has "
            f"{', '.join(info) or 'nothing'}; mend ids={ids!r}"
        )
    return "/".join(str(info[key]) for key in keys)


def _usual_identity(info: Mapping[str, Any]) -> str | None:
    for key in _ID_KEYS:
        if key in info:
            return str(info[key])
    return f"{info['sid']}/{info.get('fid', 0)}" if "sid" in info else None


def _labels(atoms: Atoms) -> dict[str, NDArray[np.float64]]:
    """Return the quantities that ASE has of a structure; its reader computes nothing."""
    results = atoms.calc.results if atoms.calc is not None else {}
    held = {**atoms.info, **atoms.arrays, **results}
    held.setdefault("atomic_energies", results.get("energies"))
    labels = {
        name: np.asarray(held[name], dtype=np.float64)
        for name in QUANTITIES
        if held.get(name) is not None
    }
    if "stress" in labels and labels["stress"].shape == (3, 3):
        labels["stress"] = full_3x3_to_voigt_6_stress(labels["stress"])
    return labels
