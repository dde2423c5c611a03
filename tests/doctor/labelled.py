"""Real structures with their DFT labels and a real teacher's targets, labelled once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.structures import read_structures
from kd_plugins.structures.readers import to_structure
from kd_plugins.teachers import load_teacher

ORGANIC = "mptrj/mptrj_organic_elements.json.xz"
COPPER = "metals/mlearn_Cu_test.extxyz.xz"
SMALL = 40
"""Atoms of what is labelled quickly: 57 of the 68 organic frames."""
QUANTITIES = ("energy", "forces", "stress")


@cache
def labelled(path: Path, teacher: str, largest: int = 120) -> tuple[DoctorInput, ...]:
    """Return the structures of a file, up to a number of atoms, with what a teacher says."""
    return tuple(_cases(path, teacher, largest))


def _cases(path: Path, name: str, largest: int) -> Iterator[DoctorInput]:
    teacher = load_teacher(name)
    for frame in read_structures([path]):
        if len(frame.atoms) > largest:
            continue
        labels = {name: frame.labels[name] for name in QUANTITIES if name in frame.labels}
        targets = teacher(frame.atoms, QUANTITIES)
        values = {name: np.asarray(value) for name, value in targets.items()}
        yield DoctorInput(frame.structure_id, to_structure(frame.atoms), labels, values)


SharedFile = Callable[[str], Path]
