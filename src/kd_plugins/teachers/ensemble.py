"""Several teachers as one: their mean, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.teachers.teacher import Teacher, TeacherError


class Ensemble:
    """The mean of several teachers' targets, and beside each ``<name>`` its ``<name>_std``.

    The spread is the sample standard deviation, number by number: of three force components it is
    three numbers, which turn with the structure only together. Teachers with different energy
    references give a spread that means nothing; align their references first. Embeddings have no
    mean: each teacher has axes of its own.

    Args:
        teachers: two or more.

    Raises:
        TeacherError: for fewer than two, or if they have no quantity in common.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        if len(teachers) < 2:
            raise TeacherError(f"an ensemble needs two or more teachers, got {len(teachers)}")
        for teacher in teachers:
            if not hasattr(teacher, "quantities") or not hasattr(teacher, "fingerprint"):
                raise TeacherError(
                    f"an ensemble is made of teachers, got {type(teacher).__name__} "
                    f"{teacher!r:.60}; load_teacher makes one of a name"
                )
        self.teachers = tuple(teachers)
        common = set.intersection(*(set(teacher.quantities) for teacher in teachers))
        means = [name for name, row in QUANTITIES.items() if name in common and row.unit != "1"]
        spreads = [f"{name}_std" for name in means if f"{name}_std" in QUANTITIES]
        if not means:
            raise TeacherError("the teachers of the ensemble have no quantity in common")
        self.quantities = (*means, *spreads)
        self.fingerprint = f"mean of {' & '.join(teacher.fingerprint for teacher in teachers)}"

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of all its teachers' packages."""
        return {name: v for teacher in self.teachers for name, v in teacher.versions.items()}

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Return means and spreads of one structure."""
        needed = list(dict.fromkeys(name.removesuffix("_std") for name in quantities))
        answers = [teacher(atoms, needed) for teacher in self.teachers]
        return {
            name: _combine(name, [answer[name.removesuffix("_std")] for answer in answers])
            for name in quantities
            if all(name.removesuffix("_std") in answer for answer in answers)
        }


def _combine(name: str, values: Sequence[np.ndarray]) -> np.ndarray:
    if any(np.iscomplexobj(value) for value in values):
        raise ValueError(f"{name}: expected real numbers, got complex ones of a teacher")
    stacked = np.stack([np.asarray(value, dtype=np.float64) for value in values])
    return stacked.std(axis=0, ddof=1) if name.endswith("_std") else stacked.mean(axis=0)
