"""Structures from whatever file they stand in, each with its identity and the labels beside it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.db.core import Database
from ase.db.row import AtomsRow
from ase.db.sqlite import SQLite3Database
from ase.io.formats import UnknownFileTypeError
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.numbers import shown
from kd_plugins.store.structure import Structure
from kd_plugins.structures.compressed import decompressed, plain_name
from kd_plugins.structures.formats import read_by_ase
from kd_plugins.structures.limits import STRUCTURE, BoundedJson, largest
from kd_plugins.structures.mptrj import is_mptrj, read_mptrj
from kd_plugins.structures.xyz import XYZ, read_xyz

DATABASES = (".db", ".json", ".aselmdb")
PAGE = 1000
"""Rows of an SQLite database that are held at once."""
_ID_KEYS = ("structure_id", "frame_id")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledStructure:
    """One structure of a source.

    Args:
        structure_id: its identity.
        atoms: the structure, its constraints included, without a calculator.
        labels: quantity name to float64 array, those that the source holds: energy () in eV of the
            whole structure, forces (N, 3) in eV/Å as computed, whatever the constraints, stress
            (6,) in eV/Å³ with ASE's order and sign, and so on. NaN is passed on as it came.
        place: the file and the structure's number in it, for messages.
    """

    structure_id: str
    atoms: Atoms
    labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    place: str = ""


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


def read_structures(paths: Sequence[str | Path], ids: str = "auto") -> Iterator[LabelledStructure]:
    """Return the structures of some files one after another, in flat memory.

    A file may be anything that ASE reads, an ASE database (``.db``, ``.json``) or MPtrj's JSON,
    and compressed (``.gz``, ``.xz``, ``.bz2``). ASE keeps the whole of a JSON database. How much a
    file may unpack to and how large one structure may be has a limit, see
    `kd_plugins.structures.limits`.

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
        OSError: at once, for one that may not be read.
        ValueError: at once, for no file, a folder or an empty file; while reading, for a format
            that is not known or content that cannot be read; a disordered site is one. So are no
            atoms, what is no element, a number that is not finite, and a periodic cell without a
            volume.
        KeyError: for a structure without one of the keys of ``ids``.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    strange = [path for path in given if not isinstance(path, str | Path)]
    if strange or not given:
        raise ValueError(
            "paths: expected one file with structures or more, got "
            f"{shown(strange[0]) if strange else 'none'}"
        )
    if not isinstance(ids, str):
        raise ValueError(f"ids: expected auto, path or keys of info, as text, got {shown(ids)}")
    found = [Path(os.path.expanduser(path)) for path in given]
    for path in found:
        check_file(path)
    return chain.from_iterable(_frames(path, ids) for path in found)


def check_file(path: Path) -> None:
    """Raise an OSError or ValueError for a path that is no file with something to read in it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; expected one with structures") from None
    except OSError as error:
        raise OSError(f"{path}: expected a file with structures: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no name of a file: {error}") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is a folder; name the files in it")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is a pipe or device; expected a file, which is read twice")
    if found.st_size == 0:
        raise ValueError(f"{path} is empty; expected structures")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: you may not read it; change its permissions")


def _frames(path: Path, ids: str) -> Iterator[LabelledStructure]:
    stem = Path(plain_name(path)).stem
    place = str(path.parent / stem) if ids == "path" else stem
    told = set[str]()
    with closing(_readable(path)) as rows:  # a temporary copy goes with it, whatever happens
        first = list(islice(rows, 2))
        for index, (row_id, atoms) in enumerate(chain(first, rows)):
            number = index if row_id is None else row_id
            alone = row_id is None and len(first) == 1
            structure_id = _identity(atoms, ids, place if alone else f"{place}:{number}", path)
            where = f"{path}:{number}"
            try:
                _check_sound(atoms)
                labels = _labels(atoms)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            _warn_of_case(atoms, where, told)
            atoms.calc = None
            yield LabelledStructure(structure_id, atoms, labels, where)


def _check_sound(atoms: Atoms) -> None:
    """Raise a ValueError for a structure of which no calculator could say anything."""
    to_structure(atoms)
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise ValueError(
            f"it is periodic along {atoms.pbc.tolist()}, but its cell {vectors.tolist()} has no "
            "volume there; mend the lattice or pbc"
        )


def _warn_of_case(atoms: Atoms, where: str, told: set[str]) -> None:
    """Say once a file which keys are labels but for capital letters, and so are not read."""
    for key in {*atoms.info, *atoms.arrays} - set(QUANTITIES) - told:
        told.add(key)
        if str(key).lower() in QUANTITIES:
            name = str(key).lower()
            logger.warning(f"{where}: {key!r} is not read; if it is the label, call it {name!r}")


def _readable(path: Path) -> Generator[tuple[int | None, Atoms], None, None]:
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
            f"{path} cannot be read beyond its first {n_read} structures: {_reason(error)}"
        ) from error
    if n_read == 0:
        raise ValueError(f"{path} holds no structure")


def _reason(error: Exception) -> str:
    """Return in one line why a file cannot be read."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte 0x{error.object[error.start]:02x})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else f"its reader ended in {type(error)!r}"


def _atoms(path: Path) -> Iterator[tuple[int | None, Atoms]]:
    """Yield each structure of a file, after its row's id in a database."""
    if plain_name(path).endswith(".json") and is_mptrj(path):
        yield from ((None, atoms) for atoms in read_mptrj(path))
        return
    with decompressed(path) as plain:
        if plain.suffix in DATABASES:
            yield from _rows(plain)
        elif plain.suffix in XYZ:
            yield from ((None, atoms) for atoms in read_xyz(plain))
        else:
            yield from ((None, _ordered(atoms)) for atoms in read_by_ase(plain))


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
    if path.suffix == ".json":
        with path.open("rb") as file:
            bounded = BoundedJson(file, largest(STRUCTURE), "an ASE JSON database")
            while bounded.read(1 << 20):
                pass
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
    labels = {name: _real(name, held[name]) for name in QUANTITIES if held.get(name) is not None}
    if "stress" in labels and labels["stress"].shape == (3, 3):
        labels["stress"] = full_3x3_to_voigt_6_stress(labels["stress"])
    return labels


def _real(name: str, value: Any) -> NDArray[np.float64]:
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iufO":
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):  # ragged, or no numbers
        pass
    raise ValueError(f"{name}: expected real numbers, got {value!r:.60}")
