"""(Extended) xyz, frame by frame: ASE reads each, and none is shorter than it promises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import IO

import ase.io
from ase import Atoms

from kd_plugins.structures.limits import LINE, STRUCTURE, beyond, largest

XYZ = (".xyz", ".extxyz")
_MARK = b"\xef\xbb\xbf"
"""Stands at the start of UTF-8 files of some editors."""


def count_xyz(lines: Iterable[bytes]) -> int:
    """Return the number of frames of an (extended) xyz file.

    >>> count_xyz([b"1", b"comment", b"H 0 0 0", b"2", b"", b"H 0 0 0", b"H 0 0 1"])
    2
    """
    count, skip = 0, 0
    for line in lines:
        if skip:
            skip -= 1
        elif line.strip().isdigit():
            count, skip = count + 1, _number(line) + 1
    return count


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines one by one.

    Raises:
        ValueError: for one that would fill the memory.
    """
    limit, number = largest(LINE), 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise beyond(f"line {number}", limit)
        yield line.removeprefix(_MARK) if number == 1 else line


def read_xyz(path: Path) -> Iterator[Atoms]:
    """Yield the frames of a file, held one at a time.

    Raises:
        ValueError: naming frame and line, for one that is shorter than it promises, is no UTF-8
            text, or that ASE does not understand; and if a blank line stands between frames, which
            ASE takes for the end.
    """
    with path.open("rb") as file:
        for frame, (line, content) in enumerate(_frames(lines_of(file))):
            place = f"frame {frame}, which starts in line {line}"
            try:
                yield ase.io.read(StringIO(content.decode("utf-8")), format="extxyz")
            except UnicodeDecodeError as error:
                byte = content[error.start]
                raise ValueError(f"{place}: not UTF-8 text (byte 0x{byte:02x})") from error
            except KeyError as error:
                text = f"{place}: {error} is no element, or a key that is missing"
                raise ValueError(text) from error
            except Exception as error:  # ASE's reader fails in many ways
                text = f"{place}: {type(error).__name__} {error}"
                raise ValueError(text) from error


def _frames(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the number of a frame's first line, and its text."""
    limit, number, n_frames = largest(STRUCTURE), 0, 0
    line = next(lines, b"")
    while line.strip():
        first, content = number + 1, [line]
        if not line.strip().isdigit():
            raise ValueError(f"line {first}: expected a number of atoms, got {_shown(line)}")

        n_atoms, size = _number(line), 0
        for _ in range(n_atoms + 1):
            line = next(lines, b"")
            if not line:
                raise ValueError(
                    f"frame {n_frames}, which starts in line {first}, promises {n_atoms} atoms, "
                    f"but the file ends after {max(len(content) - 2, 0)} of them"
                )
            content.append(line)
            size += len(line)
            if size > limit:
                raise beyond(f"frame {n_frames}, which starts in line {first},", limit)

        # ASE also takes the lattice from lines after the atoms.
        line = next(lines, b"")
        while line.lstrip().startswith(b"VEC"):
            content.append(line)
            line = next(lines, b"")
        number += len(content)
        n_frames += 1
        yield first, b"".join(content)

    left = count_xyz(lines) if line else 0
    if left:
        held = n_frames + left
        raise ValueError(f"it holds {held}, and ASE stops there; is a blank line after them?")


def _number(line: bytes) -> int:
    """Return a number of atoms; as large as any that is too long to be one."""
    digits = line.strip()
    return int(digits) if len(digits) < 16 else 10**15


def _shown(line: bytes) -> str:
    return repr(line.strip()[:40].decode("utf-8", "replace"))
