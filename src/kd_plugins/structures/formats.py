"""Read structures of one file: extended xyz frame by frame, other formats by ASE's safe readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import IO, Any

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat, ioformats

from kd_plugins.structures.limits import LINE_BYTES, STRUCTURE_BYTES, max_bytes, too_large

FORMATS = frozenset(
    {
        "abinit-gsr",
        "abinit-out",
        "aims",
        "aims-output",
        "castep-geom",
        "castep-md",
        "cfg",
        "cif",
        "cjson",
        "cmdft",
        "cp2k-dcd",
        "cp2k-restart",
        "crystal",
        "cube",
        "dacapo-text",
        "dlp-history",
        "dlp4",
        "dmol-arc",
        "dmol-car",
        "dmol-incoor",
        "elk",
        "eon",
        "espresso-in",
        "espresso-out",
        "extxyz",
        "gamess-us-out",
        "gamess-us-punch",
        "gaussian-in",
        "gaussian-out",
        "gen",
        "gpaw-out",
        "gpumd",
        "gromacs",
        "gromos",
        "jsv",
        "lammps-data",
        "lammps-dump-binary",
        "lammps-dump-text",
        "magres",
        "mol",
        "mustem",
        "netcdftrajectory",
        "nomad-json",
        "nwchem-in",
        "nwchem-out",
        "onetep-out",
        "orca-output",
        "prismatic",
        "proteindatabank",
        "qbox",
        "res",
        "rmc6f",
        "runnerdata",
        "sdf",
        "siesta-xv",
        "struct",
        "struct_out",
        "sys",
        "traj",
        "turbomole",
        "turbomole-gradient",
        "v-sim",
        "vasp",
        "vasp-out",
        "vasp-xdatcar",
        "vasp-xml",
        "wout",
        "xsd",
        "xsf",
        "xtd",
        "xyz",
    }
)
"""Names of ASE's formats that are read.

Left out are readers that open other files or databases, start a program (CASTEP's starts CASTEP) or
hold pickles, and all that other packages add to ASE.
"""

XYZ_SUFFIXES = (".xyz", ".extxyz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Precedes UTF-8 text that some editors write."""


def read_by_ase(path: Path) -> Iterator[Atoms]:
    """Yield the structures of a file, its text read as UTF-8 whatever the locale.

    Raises:
        ase.io.formats.UnknownFileTypeError: for a format that ASE does not know.
        ValueError: for one that is not read here.
    """
    name = filetype(str(path))  # where ASE recognizes nothing, this is the suffix itself
    if name not in ioformats:
        raise UnknownFileTypeError(name)
    if name not in FORMATS:
        raise ValueError(
            f"ASE takes it for {name!r}, which is not read here because its reader may open or run "
            "more than this file; convert it to extended xyz"
        )

    chosen = get_ioformat(name)
    if not chosen.acceptsfd or chosen.isbinary:
        yield from ase.io.iread(str(path), ":", format=name, do_not_split_by_at_sign=True)
        return
    with path.open(encoding=chosen.encoding or "utf-8") as file:
        yield from ase.io.iread(file, ":", format=name)


def read_xyz(path: Path) -> Iterator[Atoms]:
    """Yield the frames of an (extended) xyz file, held one at a time.

    ASE reads each frame, after its lines were counted: ASE itself would allocate whatever number
    of atoms a damaged file claims.

    Raises:
        ValueError: naming frame and line, for one that is shorter than its number of atoms, is no
            UTF-8 text, or that ASE does not understand; and if a blank line stands between frames,
            which ASE takes for the end.
    """
    with path.open("rb") as file:
        for index, (line, content) in enumerate(_split_frames(read_lines(file))):
            yield parse_xyz(content, f"frame {index}, which starts in line {line}")


def parse_xyz(content: bytes, place: str) -> Atoms:
    """Return the one frame of an (extended) xyz that ``content`` holds whole, as ASE reads it.

    Raises:
        ValueError: naming the place, for text that is no UTF-8 or that ASE does not understand.
    """
    try:
        found: Any = ase.io.read(StringIO(content.decode("utf-8")), format="extxyz")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise ValueError(f"{place}: not UTF-8 text (byte 0x{byte:02x})") from error
    except KeyError as error:
        text = f"{place}: {error} is no element, or a key that is missing"
        raise ValueError(text) from error
    except Exception as error:  # ASE's reader fails in many ways
        raise ValueError(f"{place}: {type(error).__name__} {error}") from error
    return found


def count_xyz(lines: Iterable[bytes]) -> int:
    """Return the number of frames of an (extended) xyz file.

    >>> count_xyz([b"1", b"comment", b"H 0 0 0", b"2", b"", b"H 0 0 0", b"H 0 0 1"])
    2
    """
    n_frames, n_skipped = 0, 0
    for line in lines:
        if n_skipped:
            n_skipped -= 1
        elif line.strip().isdigit():
            n_frames += 1
            n_skipped = _parse_count(line) + 1  # the comment, and a line an atom
    return n_frames


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines one by one.

    Raises:
        ValueError: for one that would fill the memory.
    """
    limit, number = max_bytes(LINE_BYTES), 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise too_large(f"line {number}", limit)
        yield line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _split_frames(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the line number at which each frame starts, and its text."""
    limit, n_lines, n_frames = max_bytes(STRUCTURE_BYTES), 0, 0
    line = next(lines, b"")
    while line.strip():
        start, content = n_lines + 1, [line]
        if not line.strip().isdigit():
            raise ValueError(f"line {start}: expected a number of atoms, got {_shortened(line)}")

        # The comment and a line an atom.
        n_atoms, size = _parse_count(line), 0
        for _ in range(n_atoms + 1):
            line = next(lines, b"")
            if not line:
                raise ValueError(
                    f"frame {n_frames}, which starts in line {start}, promises {n_atoms} atoms, "
                    f"but the file ends after {max(len(content) - 2, 0)} of them"
                )
            content.append(line)
            size += len(line)
            if size > limit:
                raise too_large(f"frame {n_frames}, which starts in line {start},", limit)

        # ASE also takes the lattice from lines after the atoms.
        line = next(lines, b"")
        while line.lstrip().startswith(b"VEC"):
            content.append(line)
            line = next(lines, b"")

        n_lines += len(content)
        n_frames += 1
        yield start, b"".join(content)

    # A blank line ends the file for ASE, so frames after it would be lost without a warning.
    n_left = count_xyz(lines) if line else 0
    if n_left:
        raise ValueError(
            f"it holds {n_frames + n_left}, and ASE stops there; is a blank line after them?"
        )


def _parse_count(line: bytes) -> int:
    """Return a number of atoms; 10**15 for digits too many to be one, which Python may refuse."""
    digits = line.strip()
    return int(digits) if len(digits) < 16 else 10**15


def _shortened(line: bytes) -> str:
    return repr(line.strip()[:40].decode("utf-8", "replace"))
