"""A store of real structures, exported: what every host's data pipeline must read the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from kd_plugins.store.manifest import Manifest, default_dtypes
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.export import export_extxyz
from kd_plugins.structures.readers import read_structures, to_structure

QUANTITIES = ("energy", "forces", "stress", "atomic_energies")


def exported(
    shared_file: Callable[[str], Path], folder: Path, count: int = 8
) -> tuple[TargetStore, Path]:
    """Return a store of OC20 frames of several sizes, and the extended xyz made of it.

    Energies and forces are those of OC20, stresses and atomic energies are made up.
    """
    store = TargetStore.create(
        folder / "store", Manifest("VASP", "test", default_dtypes(QUANTITIES))
    )
    generator = np.random.default_rng(0)
    structures = read_structures([shared_file("oc20/s2ef_train.extxyz.xz")])
    for structure in islice(structures, 0, 60 * count, 60):
        n_atoms, energy = len(structure.atoms), structure.labels["energy"]
        values = {
            "energy": energy,
            "forces": structure.labels["forces"],
            "stress": generator.normal(size=6) * 0.05,
            "atomic_energies": energy / n_atoms + generator.normal(size=n_atoms),
        }
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        store.append([Record(structure.structure_id, to_structure(structure.atoms), tensors)])
    path = folder / "data" / "exported.extxyz"
    path.parent.mkdir()
    export_extxyz(store, path)
    return store, path
