"""Several teachers as one: the mean of their predictions and the spread over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.teachers.calculator import as_teacher, largest_receptive_field
from kd_plugins.teachers.teacher import Teacher, TeacherError

SPREAD = "_std"
"""Ending of the name of a quantity's standard deviation over the teachers."""


class Ensemble:
    """The mean of several teachers' targets, and beside each ``<name>`` its ``<name>_std``.

    The spread is the sample standard deviation, number by number: of three force components it is
    three numbers, which rotate with the structure only together. Teachers with different energy
    references give a spread without a meaning; align their references first. Embeddings have no
    mean, because each teacher has axes of its own.

    Args:
        teachers: two or more, as `as_teacher` takes them.

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
        self.teachers = tuple(as_teacher(teacher) for teacher in teachers)

        common = set.intersection(*(set(teacher.quantities) for teacher in teachers))
        # The unit 1 marks embeddings, which cannot be averaged over teachers.
        means = [name for name, row in QUANTITIES.items() if name in common and row.unit != "1"]
        spreads = [name + SPREAD for name in means if name + SPREAD in QUANTITIES]
        if not means:
            raise TeacherError("the teachers of the ensemble have no quantity in common")
        self.quantities = (*means, *spreads)
        self.fingerprint = f"mean of {' & '.join(teacher.fingerprint for teacher in teachers)}"

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of all its teachers' packages."""
        return {name: v for teacher in self.teachers for name, v in teacher.versions.items()}

    @property
    def device(self) -> str:
        """The devices of its teachers, such as ``cpu`` or ``cpu and cuda:0``."""
        places = {place for one in self.teachers for place in one.device.split(" and ")}
        return " and ".join(sorted(places))

    @property
    def batch_size(self) -> int:
        """The smallest of its teachers' batch sizes."""
        return min(teacher.batch_size for teacher in self.teachers)

    @property
    def receptive_field(self) -> float | None:
        """The largest of its teachers'; None where one is not known."""
        return largest_receptive_field(self.teachers)

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict means and spreads of a batch; each teacher predicts it once, as a whole."""
        needed = list(dict.fromkeys(name.removesuffix(SPREAD) for name in quantities))
        by_teacher = [teacher.predict(structures, needed) for teacher in self.teachers]

        predicted = []
        for members in zip(*by_teacher, strict=True):
            # A quantity that one teacher cannot give for this structure has no mean either.
            shared = set.intersection(*(set(member) for member in members))
            predicted.append(
                {
                    name: _combine(name, [member[name.removesuffix(SPREAD)] for member in members])
                    for name in quantities
                    if name.removesuffix(SPREAD) in shared
                }
            )
        return predicted

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Predict one structure, as in version 0.1.0."""
        return self.predict([atoms], quantities)[0]


def _combine(name: str, values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean or, for a name that ends so, the sample standard deviation, in float64."""
    if any(np.iscomplexobj(value) for value in values):
        raise ValueError(f"{name}: expected real numbers, got complex ones of a teacher")

    # In float32, totals of 1e5 eV that differ by 1 meV would be equal.
    stacked = np.stack([np.asarray(value, dtype=np.float64) for value in values])
    return stacked.std(axis=0, ddof=1) if name.endswith(SPREAD) else stacked.mean(axis=0)
