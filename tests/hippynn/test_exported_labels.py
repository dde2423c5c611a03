"""Exported targets are read by hippynn's database with the same numbers, padded and sorted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hippynn.interfaces.ase_interface import AseDatabase

from kd_plugins.store.structure import Structure
from tests.structures.fixtures import QUANTITIES, exported


def test_hippynn_reads_exported_labels(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    """hippynn drops the ids; its rows are in a stable order by the number of atoms."""
    store, path = exported(shared_file, tmp_path)
    database = AseDatabase(
        f"{path.parent}/",
        path.name,
        inputs=["numbers", "positions", "cell"],
        targets=list(QUANTITIES),
        seed=0,
        quiet=True,
    )
    arrays = {name: np.asarray(array) for name, array in database.arr_dict.items()}
    names = sorted(store.ids(), key=lambda name: store.record(name).structure.n_atoms)
    assert len({store.record(name).structure.n_atoms for name in names}) > 2
    for row, name in enumerate(names):
        n_atoms = int((arrays["numbers"][row] > 0).sum())
        structure = Structure(
            arrays["numbers"][row, :n_atoms],
            arrays["positions"][row, :n_atoms],
            arrays["cell"][row],
            [True] * 3,
        )
        values = store.read(name, structure).values
        for quantity in QUANTITIES:
            found = torch.tensor(arrays[quantity][row]).double()
            if quantity in ("forces", "atomic_energies"):
                assert not found[n_atoms:].any()
                found = found[:n_atoms]
            expected = values[quantity].double().reshape(found.shape)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
