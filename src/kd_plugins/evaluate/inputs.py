"""The structures that measurements start from, looked at before anything is computed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from ase import Atoms

from kd_plugins.evaluate.rdf import rdf
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, Measure
from kd_plugins.structures.readers import check_file, read_structures
from kd_plugins.teachers.registry import parse_teachers

COMPARED = ("energy", "energy_per_atom", "forces", "stress")
"""Labels that a potential is compared with."""
MOST_ATOMS = 10_000_000
"""Of a cell to move; more is a slip in ``repeats``."""


def check_inputs(settings: Measure) -> None:
    """Refuse structures with which a measurement would fail later.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for an empty one, two structures of one name, a label that is not finite,
            several structures to start from, a crystal that is not periodic, or a cell that cannot
            be repeated or does not hold the sphere of the radial distribution function.
    """
    for name in settings.files:
        check_file(Path(name))
    shared_labels(settings)
    if settings.crystals:
        _check_crystals(settings.crystals)
    if settings.dynamics:
        _check_dynamics(settings.dynamics)


def shared_labels(settings: Measure) -> frozenset[str]:
    """Return the quantities with which all structures that are compared are labelled.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for two structures of one name, or a label that is not finite.
    """
    if not settings.structures:
        return frozenset()
    for name in settings.structures:
        check_file(Path(name))
    states = [(name, Path(name).stat()) for name in settings.structures]
    return _labels(tuple((name, s.st_mtime_ns, s.st_size) for name, s in states), settings.ids)


def check_compared(settings: Measure, teacher: bool) -> None:
    """Refuse structures with neither labels nor a teacher to compare with.

    Raises:
        ValueError: naming the files.
    """
    if settings.structures and not teacher and not shared_labels(settings):
        raise ValueError(
            f"{', '.join(settings.structures)}: no energy, forces or stress that all structures "
            "are labelled with, and no teacher, so there is nothing to compare with; name a "
            "teacher, or structures with labels"
        )


@lru_cache(maxsize=4)
def _labels(files: tuple[tuple[str, int, int], ...], ids: str) -> frozenset[str]:
    """Look at each file once as long as it is the same, for all runs of a comparison."""
    seen: set[str] = set()
    shared = set(COMPARED)
    for frame in read_structures([name for name, *_ in files], ids):
        _refuse_again("structures", frame.structure_id, seen)
        held = {name: frame.labels[name] for name in COMPARED if name in frame.labels}
        for name, value in held.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"structures: the label {name} of {frame.structure_id!r} is not finite; leave "
                    "that structure out"
                )
        shared &= held.keys()
    return frozenset(shared)


def _refuse_again(key: str, structure_id: str, seen: set[str]) -> None:
    if structure_id in seen:
        raise ValueError(
            f"{key}: two structures are called {structure_id!r}, so one would stand for the other; "
            "give each a structure_id of its own, or leave one out"
        )
    seen.add(structure_id)


def check_potential(named: str) -> None:
    """Refuse a potential whose name or parameters are wrong, without opening it.

    Raises:
        TeacherError: saying what is wrong.
    """
    for spec in parse_teachers(named):
        spec.check()


def one_structure(path: str) -> Atoms:
    """Return the structure that a file holds.

    Raises:
        ValueError: if it holds none or several.
    """
    frames = list(read_structures([path]))
    if len(frames) != 1:
        raise ValueError(f"{path}: expected one structure, got {len(frames)}")
    return frames[0].atoms


def _check_crystals(settings: CrystalSettings) -> None:
    seen: set[str] = set()
    for frame in read_structures(settings.structures):
        _refuse_again("crystals", frame.structure_id, seen)
        if not (frame.atoms.pbc.all() and frame.atoms.cell.rank == 3):
            raise ValueError(
                f"crystals: {frame.structure_id} is not periodic in three directions, so it has no "
                "volume to relax"
            )


def _check_dynamics(settings: DynamicsSettings) -> None:
    start = one_structure(settings.structure)
    if max(settings.repeats) > 1 and not (start.pbc[0] and start.cell[0].any()):
        raise ValueError(
            f"dynamics: {settings.structure} is not periodic along its first lattice vector, so it "
            f"cannot be repeated {max(settings.repeats)} times; leave repeats at 1"
        )
    n_atoms = len(start) * max(settings.repeats)
    if n_atoms > MOST_ATOMS:
        raise ValueError(
            f"dynamics.repeats: {settings.structure} repeated {max(settings.repeats)} times has "
            f"{n_atoms} atoms, expected at most {MOST_ATOMS}"
        )
    if not settings.steps:
        return
    try:
        rdf([start], settings.cutoff, settings.bins)
    except ValueError as error:
        raise ValueError(f"dynamics: {settings.structure}: {error}") from None
