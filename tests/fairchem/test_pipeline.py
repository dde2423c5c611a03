"""Exported targets are read by fairchem's data set with the same numbers and the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from fairchem.core.datasets import AseReadMultiStructureDataset, data_list_collater

from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.store.structure import Structure
from tests.structures.fixtures import exported

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


def test_a_shuffled_batch_finds_its_targets(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """By sid/fid, after fairchem has wrapped the positions into the cell."""
    store, path = exported(shared_file, tmp_path)
    wanted = dict.fromkeys(("r_energy", "r_forces", "r_stress"), True)
    config = {"src": str(path.parent), "pattern": "*.extxyz", "a2g_args": wanted, "use_tqdm": False}
    dataset = AseReadMultiStructureDataset(config)
    order = np.random.default_rng(1).permutation(len(dataset))
    batch = data_list_collater([dataset[index] for index in order], otf_graph=True)
    names = structure_ids(batch)
    assert sorted(names) == sorted(store.ids())
    starts = [0, *batch.natoms.cumsum(0).tolist()]
    stress = batch.stress.reshape(-1, 3, 3)
    for index, name in enumerate(names):
        atoms = slice(starts[index], starts[index + 1])
        structure = Structure(
            batch.atomic_numbers[atoms], batch.pos[atoms], batch.cell[index], [True] * 3
        )
        values = store.read(name, structure).values
        found = {
            "energy": batch.energy[index : index + 1],
            "forces": batch.forces[atoms],
            "stress": stress[index][VOIGT][None],
        }
        for quantity, value in found.items():
            torch.testing.assert_close(
                value.double(), values[quantity].double(), rtol=1e-6, atol=1e-7
            )
