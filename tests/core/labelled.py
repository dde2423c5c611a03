"""Real structures with their DFT labels and a real teacher's targets, labelled once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from kd_plugins.core.cases import Case
from kd_plugins.teachers import Frame, load_teacher, read_structures
from kd_plugins.teachers.structures import to_structure

ORGANIC = "mptrj/mptrj_organic_elements.json.xz"
COPPER = "metals/mlearn_Cu_test.extxyz.xz"
QUANTITIES = ("energy", "forces", "stress")


@cache
def labelled(path: Path, teacher: str, number: int | None = None) -> tuple[Case, ...]:
    """Return the first structures of a file with what a teacher says of them."""
    return tuple(_cases(path, teacher, number))


def _cases(path: Path, name: str, number: int | None) -> Iterator[Case]:
    teacher = load_teacher(name)
    for frame in islice(read_structures([path]), number):
        labels = {name: frame.labels[name] for name in QUANTITIES if name in frame.labels}
        targets = teacher(frame.atoms, QUANTITIES)
        values = {name: np.asarray(value) for name, value in targets.items()}
        yield Case(frame.structure_id, to_structure(frame.atoms), labels, values)


def frames(path: Path, number: int | None = None) -> list[Frame]:
    """Return the first structures of a file with their labels."""
    return list(islice(read_structures([path]), number))


SharedFile = Callable[[str], Path]
