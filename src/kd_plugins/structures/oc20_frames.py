"""Read OC20's S2EF files: frames of the wanted systems alone, the others skipped by their lines.

Source: Chanussot et al. 2021, doi:10.1021/acscatal.0c04525. A folder of the release has chunks of
5,000 frames, ``0.extxyz`` and beside it ``0.txt`` with a line ``system_id,frame7,energy`` a frame,
where the energy is that of the clean surface and the gas. Either may end in ``.xz``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from kd_plugins.structures.formats import parse_xyz
from kd_plugins.structures.limits import open_binary

MOST_ATOMS = 100_000
"""Of a frame; OC20's have up to some hundreds, a damaged file may promise any number."""
_SID = re.compile(rb'\bsid="?([^\s"]+)')


@dataclass(frozen=True)
class Chunk:
    """A file of structures, and the log with their ids, if they do not carry them."""

    structures: Path
    log: Path | None

    @property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of its files by their names."""
        files = [file for file in (self.structures, self.log) if file is not None]
        return {file.name: file.stat().st_size for file in files}


@dataclass(frozen=True)
class Frame:
    """One structure, its identity, and the reference energy in eV if the log has one.

    Args:
        number: of the frame in its file, from 0.
        where: file and frame, for messages.
    """

    atoms: Atoms
    sid: str
    fid: int
    reference: float | None
    number: int
    where: str

    @property
    def energy(self) -> float:
        """Return the file's energy in eV."""
        return float(self.atoms.get_potential_energy())

    @property
    def forces(self) -> np.ndarray[Any, Any]:
        """Return the forces as computed, (N, 3) in eV/Å; ASE's constraints would zero some."""
        return self.atoms.get_forces(apply_constraint=False)

    @property
    def fixed(self) -> np.ndarray[Any, Any]:
        """Return which atoms are fixed, (N,)."""
        fixed = np.zeros(len(self.atoms), dtype=bool)
        for constraint in self.atoms.constraints:
            if isinstance(constraint, FixAtoms):
                fixed[constraint.index] = True
        return fixed


def find_chunks(source: Path) -> list[Chunk]:
    """Return the files of an OC20 folder, or the one file that is meant.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: for a folder without structures, or structures without their log.
    """
    if source.is_file():
        return [Chunk(source, None)]
    if not source.is_dir():
        raise FileNotFoundError(f"there is no {source}; expected an OC20 folder or an extxyz file")

    files = sorted([*source.glob("*.extxyz"), *source.glob("*.extxyz.xz")])
    if not files:
        raise ValueError(f"{source}: no *.extxyz and no *.extxyz.xz in this folder")
    return [Chunk(file, _log_of(file)) for file in files]


def _log_of(structures: Path) -> Path:
    stem = structures.name.split(".extxyz")[0]
    for log in (structures.with_name(f"{stem}.txt"), structures.with_name(f"{stem}.txt.xz")):
        if log.is_file():
            return log
    raise ValueError(f"{structures}: {stem}.txt with ids and reference energies is missing")


def read_frames(chunk: Chunk, wanted: Collection[str] | None = None) -> Iterator[Frame]:
    """Yield the frames of a chunk, one at a time; those of other systems are not parsed.

    Args:
        chunk: to read.
        wanted: ids of the systems; all of them if left out.

    Raises:
        ValueError: naming file and frame, for one that is cut off, that ASE cannot read or that
            has no identity, and for a log of another length.
    """
    name = chunk.structures.name
    with ExitStack() as stack:
        file = stack.enter_context(open_binary(chunk.structures))
        lines = _read_log(stack.enter_context(open_binary(chunk.log))) if chunk.log else None

        n_frames = n_lines = 0
        while (first := file.readline()).strip():
            number, where = n_frames, f"{name}, frame {n_frames}"
            n_atoms = _parse_count(first, where)
            n_frames += 1

            line = None
            if lines is not None:
                line = next(lines, None)
                n_lines += line is not None
                if line is None or not _is_wanted(line.partition(",")[0], wanted):
                    _skip(file, n_atoms + 1, where)
                    continue

            comment = file.readline()
            own = _SID.search(comment) if lines is None and wanted is not None else None
            if own is not None and not _is_wanted(own[1].decode("utf-8", "replace"), wanted):
                _skip(file, n_atoms, where)
                continue

            atoms = parse_xyz(b"".join([first, comment, *islice(file, n_atoms)]), where)
            identity = _own_identity(atoms, where) if line is None else _parse_log(line, where)
            if _is_wanted(identity[0], wanted):
                yield Frame(atoms, *identity, number, where)

        if lines is not None and chunk.log is not None:
            n_lines += sum(1 for _ in lines)
            if n_lines != n_frames:
                raise ValueError(
                    f"{name} has {n_frames} frames, {chunk.log.name} has {n_lines} lines"
                )


def _is_wanted(sid: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or sid in wanted


def _read_log(file: IO[bytes]) -> Iterator[str]:
    return (line.decode("utf-8", "replace").strip() for line in file if line.strip())


def _parse_count(line: bytes, where: str) -> int:
    digits = line.strip()
    if digits.isdigit() and len(digits) < 10 and int(digits) <= MOST_ATOMS:
        return int(digits)
    text = digits[:40].decode("utf-8", "replace")
    raise ValueError(f"{where}: expected a number of atoms up to {MOST_ATOMS}, got {text!r}")


def _skip(file: IO[bytes], n_lines: int, where: str) -> None:
    if sum(1 for _ in islice(file, n_lines)) < n_lines:
        raise ValueError(f"{where}: the file ends before its last atom")


def _own_identity(atoms: Atoms, where: str) -> tuple[str, int, None]:
    missing = [key for key in ("sid", "fid") if key not in atoms.info]
    if missing:
        raise ValueError(f"{where}: no {' and no '.join(missing)} among its info")
    return str(atoms.info["sid"]), int(atoms.info["fid"]), None


def _parse_log(line: str, where: str) -> tuple[str, int, float | None]:
    """Read ``system_id,frame7,reference_energy``; OC20's test sets have no energy."""
    try:
        sid, frame, *energy = line.split(",")
        return sid, int(frame.removeprefix("frame")), float(energy[0]) if energy else None
    except ValueError:
        raise ValueError(
            f"{where}: expected system_id,frame7,energy in the log, got {line[:60]!r}"
        ) from None


def check_frame(frame: Frame) -> None:
    """Refuse a frame that cannot be trained on.

    Raises:
        ValueError: naming what it lacks.
    """
    results = frame.atoms.calc.results if frame.atoms.calc else {}
    for quantity in ("energy", "forces"):
        if quantity not in results:
            raise ValueError(f"{frame.where}: no {quantity}")
        if not np.isfinite(results[quantity]).all():
            raise ValueError(f"{frame.where}: {quantity} hold NaN or inf")

    for name, array in (("positions", frame.atoms.positions), ("cell", frame.atoms.cell.array)):
        if not np.isfinite(array).all():
            raise ValueError(f"{frame.where}: {name} hold NaN or inf")

    if not frame.atoms.has("tags"):
        raise ValueError(f"{frame.where}: no tags (0 fixed, 1 surface, 2 adsorbate)")
