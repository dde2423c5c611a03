"""Read structures with their ids and labels from any file; convert between Atoms and Structure."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

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
from kd_plugins.store.structure import Structure, as_real_numbers
from kd_plugins.structures.formats import (
    XYZ_SUFFIXES,
    count_xyz,
    read_by_ase,
    read_lines,
    read_xyz,
)
from kd_plugins.structures.limits import (
    STRUCTURE_BYTES,
    BoundedJson,
    decompressed,
    max_bytes,
    open_binary,
    plain_name,
)
from kd_plugins.structures.mptrj import is_mptrj, read_mptrj

DATABASE_SUFFIXES = (".db", ".json", ".aselmdb")
ROWS_AT_ONCE = 1000
"""Rows of an SQLite database that are held in memory."""
_CHUNK_BYTES = 1 << 24
_ID_KEYS = ("structure_id", "frame_id")
_MPTRJ_LATTICE = b'"lattice"'
"""A key that each structure of an MPtrj JSON has once."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledStructure:
    """A structure with its id and the labels that its file has.

    Args:
        structure_id: its identity.
        atoms: the structure, its constraints included, without a calculator.
        labels: quantity name to float64 array, those that the file has: energy () in eV of the
            whole structure, forces (N, 3) in eV/Å as computed, whatever the constraints, stress
            (6,) in eV/Å³ with ASE's order and sign, and so on. NaN is passed on as it came.
        place: the file and the structure's number in it, for messages.
    """

    structure_id: str
    atoms: Atoms
    labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    place: str = ""


def to_structure(atoms: Atoms) -> Structure:
    """Return the identity of a structure of ASE's.

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
    and compressed (``.gz``, ``.xz``, ``.bz2``). ASE holds the whole of a JSON database. Unpacked
    files and single structures have a limit of size, see `kd_plugins.structures.limits`.

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
    Whether an id comes twice is for the caller to check.

    Raises:
        FileNotFoundError: at once, for a path that is not there.
        OSError: at once, for one that may not be read.
        ValueError: at once, for no file, a folder or an empty file; while reading, for a format
            that is not known, content that cannot be read, a disordered site, a structure without
            atoms, an atom that is no element, a number that is not finite, or a periodic cell
            without a volume.
        KeyError: for a structure without one of the keys of ``ids``.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    not_paths = [path for path in files if not isinstance(path, str | Path)]
    if not_paths or not files:
        raise ValueError(
            "paths: expected one file with structures or more, got "
            f"{shown(not_paths[0]) if not_paths else 'none'}"
        )
    if not isinstance(ids, str):
        raise ValueError(f"ids: expected auto, path or keys of info, as text, got {shown(ids)}")

    # All files before the first is read: a slip in the tenth path should not cost the hours of the
    # nine before.
    expanded = [Path(os.path.expanduser(path)) for path in files]
    for path in expanded:
        check_file(path)
    return chain.from_iterable(_read_file(path, ids) for path in expanded)


def check_file(path: Path) -> None:
    """Refuse a path that is not a file with something to read in it.

    Raises:
        FileNotFoundError: if nothing is there.
        OSError: if it may not be read, or its name is too long.
        ValueError: for a folder, a pipe, a device, or an empty file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; expected one with structures") from None
    except OSError as error:
        raise OSError(f"{path}: expected a file with structures: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no name of a file: {error}") from error

    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder; name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is a pipe or device; expected a file, which is read twice")
    if status.st_size == 0:
        raise ValueError(f"{path} is empty; expected structures")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: you may not read it; change its permissions")


def check_structures(structures: object) -> Iterator[LabelledStructure]:
    """Yield labelled structures that a caller gave, after checking each.

    Raises:
        ValueError: at once, for a path or a single structure; while iterating, for an item that is
            not a LabelledStructure.
    """
    is_single = isinstance(structures, str | LabelledStructure)
    if is_single or not isinstance(structures, Iterable):
        raise ValueError(
            "structures: expected several LabelledStructures, such as read_structures yields, got "
            f"{shown(structures)}"
        )
    return _check_each(structures)


def _check_each(structures: Iterable[object]) -> Iterator[LabelledStructure]:
    for structure in structures:
        if not isinstance(structure, LabelledStructure):
            raise ValueError(
                "structures: expected LabelledStructures, such as read_structures yields or "
                f"LabelledStructure(id, atoms), got {shown(structure)}"
            )
        yield structure


def check_names(argument: str, names: object) -> None:
    """Refuse a text in place of a list of names: each letter would be taken for a name.

    Raises:
        ValueError: naming the argument and how to write it.
    """
    if isinstance(names, str):
        raise ValueError(
            f"{argument}: expected a list of names, such as [{names!r}], got {names!r}"
        )


# Counting, for the time left of a progress bar.


def count_structures(paths: Sequence[str | Path]) -> int:
    """Return about how many structures the files hold, without parsing them.

    A pass over extended xyz takes some seconds a GB, over MPtrj's JSON about one. A file of another
    format counts as one, and so does one that cannot be read: reading it will name what is wrong.
    """
    files = [paths] if isinstance(paths, str | Path) else paths
    return sum(_count_file(Path(os.path.expanduser(path))) for path in files)


def _count_file(path: Path) -> int:
    suffix = Path(plain_name(path)).suffix
    try:
        if suffix in XYZ_SUFFIXES:
            with open_binary(path) as file:
                return count_xyz(read_lines(file))

        if suffix == ".json" and is_mptrj(path):
            with open_binary(path) as file:
                return count_lattices(file)

        if suffix in DATABASE_SUFFIXES:
            with decompressed(path) as plain:
                return ase.db.connect(plain, use_lock_file=False, serial=True).count()
    except Exception:  # each format fails in its own way
        pass
    return 1


def count_lattices(file: IO[bytes]) -> int:
    """Return the number of structures of an MPtrj JSON."""
    count, tail = 0, b""
    while chunk := file.read(_CHUNK_BYTES):
        # The key may begin in one chunk and end in the next.
        text = tail + chunk
        count += text.count(_MPTRJ_LATTICE)
        tail = text[-len(_MPTRJ_LATTICE) + 1 :]
    return count


# Reading one file.


def _read_file(path: Path, ids: str) -> Iterator[LabelledStructure]:
    stem = Path(plain_name(path)).stem
    prefix = str(path.parent / stem) if ids == "path" else stem
    warned_keys = set[str]()

    # Closed whatever happens: a temporary copy goes with it.
    with closing(_name_errors(path)) as rows:
        first_two = list(islice(rows, 2))  # whether there is a second decides the first one's id
        for index, (row_id, atoms) in enumerate(chain(first_two, rows)):
            number = index if row_id is None else row_id
            is_single = row_id is None and len(first_two) == 1
            default_id = prefix if is_single else f"{prefix}:{number}"
            structure_id = _choose_id(atoms, ids, default_id, path)

            place = f"{path}:{number}"
            try:
                _check_geometry(atoms)
                labels = _read_labels(atoms)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error

            _warn_of_capitals(atoms, place, warned_keys)
            atoms.calc = None
            yield LabelledStructure(structure_id, atoms, labels, place)


def _name_errors(path: Path) -> Generator[tuple[int | None, Atoms], None, None]:
    """Yield what `_read_rows` does, with the path in every error."""
    n_read = 0

    try:
        for row in _read_rows(path):
            yield row
            n_read += 1
    except UnknownFileTypeError as error:
        raise ValueError(f"{path}: ASE knows no format for it ({error})") from error
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read beyond its first {n_read} structures: {_describe(error)}"
        ) from error

    if n_read == 0:
        raise ValueError(f"{path} holds no structure")


def _describe(error: Exception) -> str:
    """Return in one line why a file cannot be read."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte 0x{error.object[error.start]:02x})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"

    # ValueErrors are our own or ASE's sentences; of others, the type tells more than the text.
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else f"its reader ended in {type(error)!r}"


def _read_rows(path: Path) -> Iterator[tuple[int | None, Atoms]]:
    """Yield each structure of a file, after its row's id in a database."""
    # MPtrj's JSON is streamed as it is, since a plain copy would take eleven gigabytes.
    if plain_name(path).endswith(".json") and is_mptrj(path):
        yield from ((None, atoms) for atoms in read_mptrj(path))
        return

    with decompressed(path) as plain:
        if plain.suffix in DATABASE_SUFFIXES:
            yield from _read_database(plain)
        elif plain.suffix in XYZ_SUFFIXES:
            yield from ((None, atoms) for atoms in read_xyz(plain))
        else:
            yield from ((None, _check_ordered(atoms)) for atoms in read_by_ase(plain))


def _check_ordered(atoms: Atoms) -> Atoms:
    """Refuse disordered sites, of which ASE's CIF reader takes the commonest element."""
    for site in atoms.info.get("occupancy", {}).values():
        if list(site.values()) != [1.0]:
            raise ValueError(
                f"a site is disordered ({site}); expected one element of occupancy 1, so take the "
                "file out or choose one of its arrangements"
            )
    return atoms


def _read_database(path: Path) -> Iterator[tuple[int | None, Atoms]]:
    # ASE parses a JSON database at once, so its size is checked before.
    if path.suffix == ".json":
        with path.open("rb") as file:
            bounded = BoundedJson(file, max_bytes(STRUCTURE_BYTES), "an ASE JSON database")
            while bounded.read(1 << 20):
                pass

    database: Any = ase.db.connect(path, use_lock_file=False, serial=True)
    with database:
        for row in _select_rows(database):
            atoms = row.toatoms()
            atoms.info = {**row.data, **row.key_value_pairs}
            yield row.id, atoms


def _select_rows(database: Database) -> Iterator[AtomsRow]:
    """Yield all rows; those of SQLite in pages, since ASE fetches at once what it selects."""
    if not isinstance(database, SQLite3Database):
        yield from database.select()
        return

    last_id = 0
    while rows := list(database.select(f"id>{last_id}", limit=ROWS_AT_ONCE, sort="id")):
        yield from rows
        last_id = rows[-1].id


# What is taken from one structure.


def _choose_id(atoms: Atoms, ids: str, default_id: str, path: Path) -> str:
    """Return a structure's id, see `read_structures`."""
    info = atoms.info
    if ids == "path":
        return default_id
    if ids == "auto":
        return _usual_id(info) or default_id

    keys = [key.strip() for key in ids.split(",")]
    missing = [key for key in keys if key not in info]
    if missing:
        raise KeyError(
            f"{path}: structure {default_id!r} has no {missing[0]!r} to be named by; it has "
            f"{', '.join(info) or 'nothing'}; mend ids={ids!r}"
        )
    return "/".join(str(info[key]) for key in keys)


def _usual_id(info: Mapping[str, Any]) -> str | None:
    for key in _ID_KEYS:
        if key in info:
            return str(info[key])
    return f"{info['sid']}/{info.get('fid', 0)}" if "sid" in info else None


def _check_geometry(atoms: Atoms) -> None:
    """Raise a ValueError for a structure that no calculator could compute."""
    to_structure(atoms)  # elements, and finite numbers
    periodic_vectors = atoms.cell.array[atoms.pbc]
    if len(periodic_vectors) == 0:
        return

    # A slab or a wire needs a volume along its periodic vectors only.
    if np.linalg.matrix_rank(periodic_vectors) < len(periodic_vectors):
        raise ValueError(
            f"it is periodic along {atoms.pbc.tolist()}, but its cell {periodic_vectors.tolist()} "
            "has no volume there; mend the lattice or pbc"
        )


def _read_labels(atoms: Atoms) -> dict[str, NDArray[np.float64]]:
    """Return the quantities that a structure's file has; nothing is computed."""
    results = atoms.calc.results if atoms.calc is not None else {}
    found = {**atoms.info, **atoms.arrays, **results}
    found.setdefault("atomic_energies", results.get("energies"))  # ASE's name

    labels = {
        name: as_real_numbers(name, found[name])
        for name in QUANTITIES
        if found.get(name) is not None
    }
    if "stress" in labels and labels["stress"].shape == (3, 3):
        labels["stress"] = full_3x3_to_voigt_6_stress(labels["stress"])
    return labels


def _warn_of_capitals(atoms: Atoms, place: str, warned_keys: set[str]) -> None:
    """Warn, once a file, of keys that would be labels but for capital letters, such as Energy."""
    for key in {*atoms.info, *atoms.arrays} - set(QUANTITIES) - warned_keys:
        warned_keys.add(key)
        name = str(key).lower()
        if name in QUANTITIES:  # names are matched letter by letter
            logger.warning(f"{place}: {key!r} is not read; if it is the label, call it {name!r}")
