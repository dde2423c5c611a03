"""Real structures with their DFT labels and a real teacher's targets, labelled once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.doctor.units import rms
from kd_plugins.structures import read_structures
from kd_plugins.structures.readers import to_structure
from kd_plugins.teachers import load_teacher

ORGANIC = "mptrj/mptrj_organic_elements.json.xz"
COPPER = "metals/mlearn_Cu_test.extxyz.xz"
SMALL = 40
"""Atoms of the structures that are labelled quickly: 57 of the 68 organic ones."""
QUANTITIES = ("energy", "forces", "stress")


@cache
def labelled(
    path: Path, teacher: str, most_atoms: int = 120, most_force: float = np.inf
) -> tuple[DoctorInput, ...]:
    """Return the structures of a file with a teacher's targets.

    Args:
        path: of the file.
        teacher: its name.
        most_atoms: of a structure.
        most_force: root mean square of its labels, eV/Å.
    """
    return tuple(_label(path, teacher, most_atoms, most_force))


def _label(path: Path, name: str, most_atoms: int, most_force: float) -> Iterator[DoctorInput]:
    structures = [
        one
        for one in read_structures([path])
        if len(one.atoms) <= most_atoms and rms(one.labels["forces"]) <= most_force
    ]
    targets = load_teacher(name).predict([one.atoms for one in structures], QUANTITIES)

    for one, values in zip(structures, targets, strict=True):
        labels = {name: one.labels[name] for name in QUANTITIES if name in one.labels}
        yield DoctorInput(one.structure_id, to_structure(one.atoms), labels, values)


SharedFile = Callable[[str], Path]
