"""What a store holds comes back from the extended xyz that was made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from kd_plugins.store.manifest import Manifest, default_dtypes
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.export import export_extxyz
from kd_plugins.structures.imported import import_labels
from kd_plugins.structures.readers import read_structures, to_structure

SHAPES = {
    "energy": (),
    "energy_per_atom": (),
    "forces": (4, 3),
    "stress": (6,),
    "atomic_energies": (4,),
    "magmoms": (4,),
    "energy_std": (),
    "forces_std": (4, 3),
    "stress_std": (6,),
}


def filled(folder: Path, names: list[str], **others: tuple[int, ...]) -> TargetStore:
    """Return a store of random targets."""
    shapes = {**SHAPES, **others}
    store = TargetStore.create(folder, Manifest("EMT", "ase.emt", default_dtypes(shapes)))
    generator = np.random.default_rng(0)
    for name in names:
        cell = 7.0 * np.eye(3) + generator.normal(size=(3, 3)) * 0.2
        positions = generator.random((4, 3)) @ cell
        structure = Structure(generator.integers(1, 90, 4), positions, cell, [True, False, True])
        values = {
            quantity: torch.tensor(generator.normal(size=shape))
            for quantity, shape in shapes.items()
        }
        store.append([Record(name, structure, values)])
    return store


IDS = ["mp-1-0-2", "random7/12", "007", "1e5", "T", "two words", "a/b/c", 'say "x"', "ü", "run:3"]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Every quantity and every id; numbers of atoms to ASE's eight decimals, others exactly."""
    store = filled(tmp_path / "store", IDS)
    export_extxyz(store, tmp_path / "out.extxyz")
    structures = {
        structure.structure_id: structure
        for structure in read_structures([tmp_path / "out.extxyz"])
    }
    assert sorted(structures) == sorted(IDS)
    for name, structure in structures.items():
        values = store.read(name, to_structure(structure.atoms)).values
        assert set(structure.labels) == set(SHAPES)
        for quantity, shape in SHAPES.items():
            expected = values[quantity].double().numpy().reshape(shape)
            atol = 1e-8 if shape[:1] == (4,) else 0.0
            np.testing.assert_allclose(structure.labels[quantity], expected, rtol=0, atol=atol)


def test_exported_and_imported_again(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Real labels go through both and come back."""
    source = shared_file("metals/mlearn_Cu_test.extxyz.xz")
    first = import_labels([source], tmp_path / "first", "VASP")
    export_extxyz(first, tmp_path / "out.xyz")
    again = import_labels([tmp_path / "out.xyz"], tmp_path / "again", "VASP")
    assert sorted(first.ids()) == sorted(again.ids())
    for name in first.ids():
        for quantity, value in first.record(name).values.items():
            torch.testing.assert_close(
                again.record(name).values[quantity], value, rtol=0.0, atol=2e-8
            )


def test_chosen_ids_are_written_in_their_order(tmp_path: Path) -> None:
    """One that is not there is named, and nothing is overwritten."""
    store = filled(tmp_path / "store", ["a", "b", "c"])
    path = tmp_path / "out.extxyz"
    export_extxyz(store, path, ["c", "a"])
    assert [structure.structure_id for structure in read_structures([path])] == ["c", "a"]
    before = path.read_text()
    with pytest.raises(KeyError, match="has no structure 'd'"):
        export_extxyz(store, path, ["b", "d"])
    assert path.read_text() == before


def test_the_file_does_not_depend_on_the_order_of_labelling(tmp_path: Path) -> None:
    """Which depends on the workers; a student trained on the file should not."""
    whole = filled(tmp_path / "whole", IDS)
    for name, shards in (("one", "abcab"), ("two", "babbc")):
        store = TargetStore.create(tmp_path / name, whole.manifest)
        for place, structure_id in enumerate(IDS):
            store.append([whole.record(structure_id)], shards[place % 5])
        export_extxyz(store, tmp_path / f"{name}.xyz")
    assert (tmp_path / "one.xyz").read_bytes() == (tmp_path / "two.xyz").read_bytes()


def test_ids_are_also_written_as_fairchems_sid_and_fid(tmp_path: Path) -> None:
    """``sid`` and ``fid`` for ids of the form that fairchem's data sets give."""
    store = filled(tmp_path / "store", ["random7/12", "slab/x", "mp-1"])
    export_extxyz(store, tmp_path / "out.extxyz", ["random7/12", "slab/x", "mp-1"])
    infos = [atoms.info for atoms in ase.io.read(tmp_path / "out.extxyz", ":")]
    assert [(info.get("sid"), info.get("fid")) for info in infos] == [
        ("random7", 12),
        ("slab", "x"),
        (None, None),
    ]


def test_missing_quantities_stay_missing(tmp_path: Path) -> None:
    """A record that has only forces has no energy in the file."""
    store = filled(tmp_path / "store", [])
    structure = Structure([29], [[0.0, 0.0, 0.0]], np.zeros((3, 3)), [False] * 3)
    store.append([Record("bare", structure, {"forces": torch.ones(1, 3)})])
    export_extxyz(store, tmp_path / "out.extxyz")
    (read,) = read_structures([tmp_path / "out.extxyz"])
    assert set(read.labels) == {"forces"}
    assert to_structure(read.atoms).difference(structure) is None


def test_embeddings_are_left_out(tmp_path: Path) -> None:
    """With a warning."""
    store = filled(tmp_path / "store", ["a"], node_embeddings=(4, 8))
    with pytest.warns(UserWarning, match=r"out\.extxyz goes without node_embeddings"):
        export_extxyz(store, tmp_path / "out.extxyz")
    (structure,) = read_structures([tmp_path / "out.extxyz"])
    assert set(structure.labels) == set(SHAPES)


@pytest.mark.parametrize("name", ["out.xyz.gz", "out.db", "out"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    """Readers go by the suffix."""
    with pytest.raises(ValueError, match=r"expected a name that ends in \.extxyz or \.xyz"):
        export_extxyz(filled(tmp_path / "store", ["a"]), tmp_path / name)


def test_ids_that_extended_xyz_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A line break would end the line of keys."""
    store = filled(tmp_path / "store", ["a\nb"])
    with pytest.raises(ValueError, match="cannot be written into an extended xyz"):
        export_extxyz(store, tmp_path / "out.extxyz")
    assert not (tmp_path / "out.extxyz").exists()
