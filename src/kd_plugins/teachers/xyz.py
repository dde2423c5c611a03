"""How many frames an (extended) xyz file holds, which ASE does not say when it stops early."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

XYZ = (".xyz", ".extxyz")


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
            count, skip = count + 1, int(line) + 1
    return count


def check_whole(path: Path, n_read: int) -> None:
    """Raise a ValueError if a file holds more frames than were read from it.

    ASE takes a blank line for the end of the file.
    """
    with path.open("rb") as file:
        n_frames = count_xyz(file)
    if n_read < n_frames:
        raise ValueError(f"it holds {n_frames}, and ASE stops there; is a blank line after them?")
