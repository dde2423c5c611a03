"""A fairchem EquiformerV2 as a teacher for `kd-plugins label`, node embeddings included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError, read_config
from kd_plugins.core.quantities import quantity
from kd_plugins.fairchem.checkpoint import read_checkpoint
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.fairchem.teacher import Teacher
from kd_plugins.teachers.teacher import TeacherError

SEED = 0
"""Of the random rolls of EquiformerV2's edge frames, so that a structure always gives the same."""


class EqV2Teacher:
    """An EquiformerV2 that labels one structure at a time, in eV and eV/Å.

    Args:
        teacher: the model.
        device: where it is.
    """

    quantities = (
        *("energy", "energy_per_atom", "forces", "atomic_energies"),
        *("node_embeddings", "equivariant_embeddings"),
    )

    batch_size = 1

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        teacher.backbone.otf_graph = True
        self.teacher, self.device = teacher, str(device)
        self._device = device
        self.fingerprint = f"EquiformerV2 {teacher.fingerprint}"
        self._to_graph = AtomsToGraphs(r_edges=False, r_pbc=True)

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of fairchem-core and torch."""
        return {name: metadata.version(name) for name in ("fairchem-core", "torch")}

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of each structure, one after the other."""
        return [self(atoms, quantities) for atoms in structures]

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the targets of one structure.

        Raises:
            TeacherError: if the model has no head for a quantity.
        """
        batch = Batch.from_data_list([self._to_graph.convert(atoms)]).to(self._device)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(SEED)
            targets = self.teacher(batch)
        values = {name: value.cpu().numpy() for name, value in targets.values.items()}
        values["energy_per_atom"] = values["energy"] / len(atoms)
        missing = [name for name in quantities if name not in values]
        if missing:
            raise TeacherError(
                f"this EquiformerV2 gives no {missing[0]!r}; leave that out of the quantities"
            )
        per_structure = [name for name in quantities if quantity(name).scope == "structure"]
        return {
            name: values[name][0] if name in per_structure else values[name] for name in quantities
        }


def eqv2(
    checkpoint: str,
    weights: Literal["ema", "raw"] | None = None,
    trust_pickle: bool = False,
    device: str | None = None,
) -> EqV2Teacher:
    """Return the teacher ``eqv2``.

    Args:
        checkpoint: of fairchem.
        weights: ``ema`` or ``raw``, where the file holds both.
        trust_pickle: read a file that holds pickled code, which may do anything.
        device: a GPU where there is one if left out.

    Raises:
        TeacherError: if the file is no EquiformerV2 checkpoint, or an argument is not valid.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    given = {"checkpoint": checkpoint, "weights": weights, "trust_pickle": trust_pickle}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        settings = read_config(TeacherSettings, given, "teacher eqv2")
        return EqV2Teacher(Teacher(read_checkpoint(settings), where), where)
    except (ConfigError, FileNotFoundError) as error:
        raise TeacherError(str(error).replace("task.distill.teacher.", "")) from error
