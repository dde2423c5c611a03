"""Which of ASE's formats are read: those whose reader opens that one file and runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat, ioformats

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
"""Not among them: what opens other files or databases, starts a program, or holds pickles, and what
other packages add to ASE."""


def read_by_ase(path: Path) -> Iterator[Atoms]:
    """Yield the structures of a file, its text read as UTF-8 whatever the locale.

    Raises:
        ase.io.formats.UnknownFileTypeError: for a format that ASE does not know.
        ValueError: for one that is not read here.
    """
    name = filetype(str(path))  # the suffix itself where ASE finds nothing
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
