"""Checks of the structures and potentials of an evaluation, before anything is computed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from ase import Atoms

from kd_plugins.evaluate.crystals import read_crystals
from kd_plugins.evaluate.rdf import rdf
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, EvaluationSettings
from kd_plugins.evaluate.stiffness_data import matching_compounds, read_stiffness
from kd_plugins.numbers import shown
from kd_plugins.structures.readers import check_file, read_structures
from kd_plugins.teachers.registry import parse_teachers

COMPARED = ("energy", "energy_per_atom", "forces", "stress")
"""Quantities whose labels a potential is compared with."""
MOST_ATOMS = 10_000_000
"""Of a cell for dynamics. More is an error in ``repeats``."""


def check_inputs(settings: EvaluationSettings) -> None:
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


def shared_labels(settings: EvaluationSettings) -> frozenset[str]:
    """Return the quantities that all structures to compare have labels of.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for two structures of one name, or a label that is not finite.
    """
    if not settings.structures:
        return frozenset()
    for name in settings.structures:
        check_file(Path(name))

    # Time and size are arguments, so that a file that has changed is read again.
    states = [(name, Path(name).stat()) for name in settings.structures]
    files = tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)
    return _shared_labels(files, settings.ids)


def check_compared(settings: EvaluationSettings, teacher: bool) -> None:
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
def _shared_labels(files: tuple[tuple[str, int, int], ...], ids: str) -> frozenset[str]:
    """Read each file once for all runs of a comparison, as long as it does not change."""
    seen: set[str] = set()
    shared = set(COMPARED)
    for structure in read_structures([name for name, *_ in files], ids):
        _refuse_repeated(structure.structure_id, seen)

        labels = {name: structure.labels[name] for name in COMPARED if name in structure.labels}
        for name, value in labels.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"structures: the label {name} of {structure.structure_id!r} is not finite; "
                    "leave that structure out"
                )
        shared &= labels.keys()
    return frozenset(shared)


def _refuse_repeated(structure_id: str, seen: set[str]) -> None:
    """Add an id to those seen, unless another structure has it."""
    if structure_id in seen:
        raise ValueError(
            f"structures: two structures are called {structure_id!r}, so one would stand for the "
            "other; give each a structure_id of its own, or leave one out"
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
    structures = list(read_structures([path]))
    if len(structures) != 1:
        raise ValueError(f"{path}: expected one structure, got {len(structures)}")
    return structures[0].atoms


def _check_crystals(settings: CrystalSettings) -> None:
    crystals = read_crystals(settings).structures
    if settings.stiffness is None:
        return
    tensors = read_stiffness(Path(settings.stiffness))
    names = [one.structure_id for one in crystals]
    if not matching_compounds(names, tensors):
        raise ValueError(
            f"crystals.stiffness: {settings.stiffness} has none of the crystals {shown(names)}; a "
            "crystal's id must be the name of its compound there"
        )


def _check_dynamics(settings: DynamicsSettings) -> None:
    start = one_structure(settings.structure)
    most_repeats = max(settings.repeats)
    if most_repeats > 1 and not (start.pbc[0] and start.cell[0].any()):
        raise ValueError(
            f"dynamics: {settings.structure} is not periodic along its first lattice vector, so it "
            f"cannot be repeated {most_repeats} times; leave repeats at 1"
        )

    n_atoms = len(start) * most_repeats
    if n_atoms > MOST_ATOMS:
        raise ValueError(
            f"dynamics.repeats: {settings.structure} repeated {most_repeats} times has "
            f"{n_atoms} atoms, expected at most {MOST_ATOMS}"
        )

    # Without steps there is no radial distribution function, so the cell may be smaller.
    if not settings.steps:
        return
    try:
        rdf([start], settings.cutoff, settings.bins)
    except ValueError as error:
        raise ValueError(f"dynamics: {settings.structure}: {error}") from None
