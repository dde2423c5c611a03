"""The teacher protocol: structures in, teacher targets out, in batches and on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from ase import Atoms

from kd_plugins.numbers import shown


class TeacherError(ValueError):
    """A teacher cannot be found, built or used; the message names the remedy."""


@runtime_checkable
class Teacher(Protocol):
    """A potential that predicts targets for batches of structures.

    Any object with these six members can label. `CalculatorTeacher` provides them for an ASE
    calculator, and `as_teacher` for an object that can only be called with one structure. An
    optional seventh, ``receptive_field``, is how far the atoms are, in Å, on which an atomic energy
    depends: the cutoff times the layers that pass messages.
    """

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities it predicts, by name of `kd_plugins.core.quantities.QUANTITIES`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Its identity: teachers with equal fingerprints give equal targets on every device."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Package name to version of everything that takes part in the computation."""
        ...

    @property
    def device(self) -> str:
        """Where it computes, as torch names it: ``cpu``, ``cuda`` or ``cuda:1``."""
        ...

    @property
    def batch_size(self) -> int:
        """The number of structures in a batch that is fastest on its device."""
        ...

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of a batch, one mapping per structure and in the same order.

        The values do not depend on the other structures of the batch, up to rounding. The
        structures are left unchanged.

        Args:
            structures: any number of them, also none or more than `batch_size`.
            quantities: the names to predict.

        Returns:
            For each structure, quantity name to value in its unit and without a batch axis:
            ``energy`` (), ``forces`` (atoms, 3), ``stress`` (6,). A quantity that a structure
            cannot have, such as the stress of a molecule, is left out.

        Raises:
            TeacherError: if the teacher as a whole does not work; any other exception concerns
                the structures of this batch only.
        """
        ...


def resolve_device(device: str) -> str:
    """Return the device that a name stands for: ``auto`` is CUDA where there is one, else the CPU.

    Args:
        device: ``auto``, or a device of torch such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        TeacherError: for any other name, or a device that this machine does not have.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise TeacherError(
            f"device: expected auto, cpu, cuda or cuda:NUMBER, got {shown(device)}"
        ) from error

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise TeacherError(
            f"device: expected one that this machine has, got {device!r}, but torch finds {count} "
            "CUDA devices; leave it out, or give cpu"
        )
    return str(found)


def check_device(teacher: Teacher, device: str, who: str) -> None:
    """Refuse a teacher that does not compute on the device that the user named.

    One that is made of several, such as a potential with a dispersion correction, may compute the
    others on the CPU.

    Args:
        teacher: that has been made.
        device: as the user gave it; ``auto`` accepts every device.
        who: the teacher's name, for the message.

    Raises:
        TeacherError: naming both devices.
    """
    if device == "auto":
        return

    # "cuda" is fulfilled by "cuda:1", but not the other way round.
    wanted = torch.device(resolve_device(device))
    found = [torch.device(one) for one in teacher.device.split(" and ")]
    others = [
        one for one in found if one.type != wanted.type or wanted.index not in (None, one.index)
    ]
    if len(others) == len(found) or any(one.type != "cpu" for one in others):
        raise TeacherError(
            f"{who} computes on {teacher.device}, not on {wanted}: it takes no `device`; leave the "
            "device out, or give auto"
        )
