"""The structures that measurements start from, looked at before anything is computed."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms
from ase.geometry.rdf import CellTooSmall

from kd_plugins.evaluate.rdf import rdf
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, Measure
from kd_plugins.teachers.spec import parse_teachers
from kd_plugins.teachers.structures import check_file, read_structures


def check_inputs(settings: Measure) -> None:
    """Refuse structures with which a measurement would fail later.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for an empty one, several structures to start from, a crystal that is not
            periodic, or a cell that cannot be repeated or does not hold the sphere of the radial
            distribution function.
    """
    for name in settings.files:
        check_file(Path(name))
    if settings.crystals:
        _check_crystals(settings.crystals)
    if settings.dynamics:
        _check_dynamics(settings.dynamics)


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
    for frame in read_structures(settings.structures):
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
    if not settings.steps:
        return
    try:
        rdf([start], settings.cutoff, settings.bins)
    except (CellTooSmall, ValueError) as error:
        raise ValueError(f"dynamics: {settings.structure}: {error}") from None
