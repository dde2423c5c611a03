"""Exported targets are read by CHGNet's data set with the same numbers, in CHGNet's units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import torch
from ase import units
from chgnet.data.dataset import StructureData, collate_graphs
from pymatgen.io.ase import AseAtomsAdaptor

from kd_plugins.store.structure import Structure
from tests.structures.fixtures import exported

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


def test_a_shuffled_batch_has_the_same_numbers(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Energy per atom in eV, stress given as VASP's in kBar and given out as ASE's in GPa."""
    store, path = exported(shared_file, tmp_path, count=4)
    found = ase.io.read(path, ":")
    crystals = [AseAtomsAdaptor.get_structure(atoms) for atoms in found]
    data = StructureData(
        crystals,
        energies=[atoms.get_potential_energy() / len(atoms) for atoms in found],
        forces=[atoms.get_forces() for atoms in found],
        stresses=[atoms.get_stress(voigt=False) / units.GPa * -10 for atoms in found],
        structure_ids=[atoms.info["structure_id"] for atoms in found],
    )
    graphs, targets = collate_graphs([data[index] for index in range(len(data))])

    assert not data.failed_graph_id  # for which CHGNet would have put in others
    assert sorted(graph.mp_id for graph in graphs) == sorted(store.ids())

    for index, graph in enumerate(graphs):
        cell = graph.lattice.detach().numpy()
        positions = graph.atom_frac_coord.detach().numpy() @ cell
        structure = Structure(graph.atomic_number, positions, cell, [True] * 3)
        values = store.read(graph.mp_id, structure).values
        found = {
            "energy": targets["e"][index : index + 1] * structure.n_atoms,
            "forces": targets["f"][index],
            "stress": targets["s"][index][VOIGT][None] * units.GPa,
        }

        for quantity, value in found.items():
            torch.testing.assert_close(
                value.double(), values[quantity].double(), rtol=1e-6, atol=1e-6
            )

        assert values["stress"].abs().max() > 0.01
