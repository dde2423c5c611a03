"""What a teacher is to the labeller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from ase import Atoms


class TeacherError(ValueError):
    """A teacher cannot be found, built or used; the message says what to do."""


@runtime_checkable
class Teacher(Protocol):
    """Says what it thinks of one structure.

    Any object with these four can label; for an ASE calculator `CalculatorTeacher` has them.
    """

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it can give, by name of `kd_plugins.core.quantities.QUANTITIES`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Its identity: teachers with equal fingerprints give equal targets."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Package name to version of what computes."""
        ...

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Return quantity name to value in its unit, without a batch axis.

        A quantity that a structure cannot have, such as the stress of a molecule, is left out.
        """
        ...
