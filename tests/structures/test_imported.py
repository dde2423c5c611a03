"""Labels that were made elsewhere become targets, all of them or none of a batch, once each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from kd_plugins.store import StoreError
from kd_plugins.store.manifest import DEFAULT_DTYPES, default_dtypes
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import imported
from kd_plugins.structures.imported import import_labels
from kd_plugins.structures.readers import read_structures, to_structure
from tests.structures.test_readers import labelled

PFP = "PFP v5.0.0 CRYSTAL_PLUS_D3"


def content(store: TargetStore) -> dict[str, dict[str, list[Any]]]:
    """Return id to values."""
    return {
        name: {quantity: value.tolist() for quantity, value in store.record(name).values.items()}
        for name in store.ids()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An extended xyz of five structures with four quantities."""
    ase.io.write(tmp_path / "run.extxyz", [labelled(index) for index in range(5)])
    return tmp_path / "run.extxyz"


@pytest.mark.parametrize("suffix", [".extxyz", ".db"])
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    """Value for value, in the store's precision, and found by the structure."""
    path = tmp_path / f"run{suffix}"
    ase.io.write(path, [labelled(index) for index in range(5)])
    store = import_labels([path], tmp_path / "store", PFP)
    assert store.verify() == []
    for structure in read_structures([path]):
        targets = store.read(structure.structure_id, to_structure(structure.atoms))
        for name, label in structure.labels.items():
            dtype = getattr(torch, DEFAULT_DTYPES[name])
            expected = torch.tensor(label).to(dtype)
            assert torch.equal(targets.values[name].reshape(expected.shape), expected)
    assert store.manifest.teacher == PFP
    assert store.manifest.fingerprint == f"labels made elsewhere: {PFP}"


def test_default_dtypes() -> None:
    """Energies in double precision, all else in single; every quantity has one."""
    double = {name for name, dtype in DEFAULT_DTYPES.items() if dtype == "float64"}
    assert double == {"energy", "energy_per_atom", "atomic_energies"}
    assert set(DEFAULT_DTYPES.values()) == {"float32", "float64"}
    with pytest.raises(KeyError, match="did you mean 'forces'"):
        default_dtypes(["force"])


def test_importing_again_changes_nothing(source: Path, tmp_path: Path) -> None:
    """And what is new is added, whatever the order."""
    first = import_labels([source], tmp_path / "store", PFP)
    before = content(first)
    more = tmp_path / "more.extxyz"
    ase.io.write(more, [labelled(index) for index in range(5, 8)])
    second = import_labels([more, source, source], tmp_path / "store", PFP)
    after = content(second)
    assert {name: after[name] for name in before} == before
    assert len(after) == 8
    other = import_labels([source, more], tmp_path / "other", PFP)
    assert content(other) == after


def test_a_killed_import_goes_on(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Batches before the one in flight are kept."""
    monkeypatch.setattr(imported, "BATCH", 2)
    spoilt = tmp_path / "spoilt" / "run.extxyz"
    spoilt.parent.mkdir()
    structures = [labelled(index) for index in range(5)]
    structures[3].calc.results["energy"] = np.nan
    ase.io.write(spoilt, structures)
    with pytest.raises(ValueError, match="structure 'run:3': its energy holds NaN or inf"):
        import_labels([spoilt], tmp_path / "store", PFP)
    store = TargetStore.open(tmp_path / "store")
    assert sorted(store.ids()) == ["run:0", "run:1"]
    import_labels([source], tmp_path / "store", PFP)
    whole = import_labels([source], tmp_path / "whole", PFP)
    assert content(store) == content(whole)


def changed(source: Path, folder: Path, change: Callable[[Atoms], object]) -> Path:
    """Write the structures again under the same name, the last one changed."""
    structures = [labelled(index) for index in range(5)]
    change(structures[-1])
    folder.mkdir()
    ase.io.write(folder / source.name, structures)
    return folder / source.name


def shift_energy(atoms: Atoms) -> None:
    atoms.calc.results["energy"] += 1.0


def move_atom(atoms: Atoms) -> None:
    results, atoms.positions[1] = atoms.calc.results, atoms.positions[1] + 0.5
    atoms.calc = type(atoms.calc)(atoms, **results)


@pytest.mark.parametrize(
    ("change", "message"),
    [(shift_energy, "its energy is not the same"), (move_atom, "atom 1 is 0.8660 Å away")],
)
@pytest.mark.parametrize("together", [True, False])
def test_one_id_for_two_structures_or_labels_is_refused(
    source: Path, tmp_path: Path, change: Any, message: str, together: bool
) -> None:
    """Other labels and other structures are refused, in one run or in two."""
    other = changed(source, tmp_path / "changed", change)
    if not together:
        import_labels([source], tmp_path / "store", PFP)
    paths = [source, other] if together else [other]
    with pytest.raises(ValueError, match=f"'run:4' was imported already, and diff.*{message}"):
        import_labels(paths, tmp_path / "store", PFP)


def test_another_teacher_is_refused(source: Path, tmp_path: Path) -> None:
    """And so are other quantities."""
    import_labels([source], tmp_path / "store", PFP)
    with pytest.raises(StoreError, match="made with another teacher"):
        import_labels([source], tmp_path / "store", "PFP v6")
    with pytest.raises(StoreError, match="made with another dtypes"):
        import_labels([source], tmp_path / "store", PFP, ["energy"])
    with pytest.raises(ValueError, match="teacher is empty"):
        import_labels([source], tmp_path / "store", " ")


def drop(name: str) -> Callable[[Atoms], object]:
    return lambda atoms: atoms.calc.results.pop(name)


def spoil(name: str, number: float) -> Callable[[Atoms], object]:
    return lambda atoms: atoms.calc.results.update({name: atoms.calc.results[name] * number})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("stress"), "'run:4' has no stress; it has energy, forces, magmoms: leave that out"),
        (spoil("forces", np.nan), "'run:4': its forces holds NaN or inf"),
        (spoil("stress", np.inf), "'run:4': its stress holds NaN or inf"),
        (lambda atoms: atoms.info.update(energy_per_atom=1.0), "has energy_per_atom and the first"),
        (lambda atoms: atoms.info.update(energy_per_atom="x"), "expected real numbers, got 'x'"),
    ],
)
def test_bad_labels_leave_no_trace(source: Path, tmp_path: Path, change: Any, message: str) -> None:
    """One error that names the structure and the quantity, before a store is made."""
    with pytest.raises(ValueError, match=message):
        import_labels([changed(source, tmp_path / "bad", change)], tmp_path / "store", PFP)
    assert not (tmp_path / "store").exists()


def test_chosen_and_optional_quantities(source: Path, tmp_path: Path) -> None:
    """The others do not matter then; optional ones may lack."""
    path = changed(source, tmp_path / "less", drop("magmoms"))
    store = import_labels([path], tmp_path / "store", PFP, ["energy", "forces"], ["magmoms"])
    assert set(store["run:0"].values) == {"energy", "forces", "magmoms"}
    assert set(store["run:4"].values) == {"energy", "forces"}
    with pytest.raises(KeyError, match="did you mean 'forces'"):
        import_labels([path], tmp_path / "other", PFP, ["force"])
    bare = tmp_path / "bare.extxyz"
    ase.io.write(bare, Atoms("Cu"))
    with pytest.raises(ValueError, match="'bare' has no labels; nothing to import"):
        import_labels([bare], tmp_path / "other", PFP)


def test_real_frames_of_mptrj(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Real records, of which some have magnetic moments."""
    path = shared_file("mptrj/mptrj_format_sample.json")
    with pytest.raises(ValueError, match="'mp-1095441-0-1' has no magmoms"):
        import_labels([path], tmp_path / "store", "MP")
    quantities = ["energy", "forces", "stress"]
    store = import_labels([path], tmp_path / "store", "MP", quantities, ["magmoms"])
    assert len(store) == 11
    assert "magmoms" in store["mp-1393488-0-0"].values
    assert store["mp-1393488-0-0"].values["energy"].item() == pytest.approx(-220.4579485)


def test_tables_are_refused_with_another_way(source: Path, tmp_path: Path) -> None:
    """A CSV with an npz, which earlier versions took in."""
    for paths in ([tmp_path / "labels.csv"], [tmp_path / "labels.npz", source]):
        with pytest.raises(ValueError, match=r"tables .* are no longer imported.*as extended xyz"):
            import_labels(paths, tmp_path / "store", PFP)
    assert not (tmp_path / "store").exists()


def test_importing_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paths: expected one file with structures or more"):
        import_labels([], tmp_path / "store", PFP)
    assert not (tmp_path / "store").exists()
