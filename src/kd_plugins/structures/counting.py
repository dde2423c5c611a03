"""How many structures files hold, without reading them, for the time left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import ase.db

from kd_plugins.structures.compressed import decompressed, open_binary, plain_name
from kd_plugins.structures.mptrj import is_mptrj
from kd_plugins.structures.readers import DATABASES
from kd_plugins.structures.xyz import XYZ, count_xyz, lines_of

_LATTICE = b'"lattice"'
"""Stands once in each structure of an MPtrj JSON."""
_CHUNK = 1 << 24


def count_structures(paths: Sequence[str | Path]) -> int:
    """Return about how many structures the files hold.

    A pass over extended xyz takes some seconds a GB, over MPtrj's JSON about one. A file of another
    format counts as one, and so does one that cannot be read: whoever reads it will say why.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    return sum(_count(Path(os.path.expanduser(path))) for path in given)


def _count(path: Path) -> int:
    suffix = Path(plain_name(path)).suffix
    try:
        if suffix in XYZ:
            with open_binary(path) as file:
                return count_xyz(lines_of(file))
        if suffix == ".json" and is_mptrj(path):
            with open_binary(path) as file:
                return count_lattices(file)
        return _count_rows(path) if suffix in DATABASES else 1
    except Exception:  # each format fails in its own way
        return 1


def _count_rows(path: Path) -> int:
    with decompressed(path) as plain:
        return ase.db.connect(plain, use_lock_file=False, serial=True).count()


def count_lattices(file: IO[bytes]) -> int:
    """Return the number of structures of an MPtrj JSON."""
    count, tail = 0, b""
    while chunk := file.read(_CHUNK):
        text = tail + chunk
        count += text.count(_LATTICE)
        tail = text[-len(_LATTICE) + 1 :]
    return count
