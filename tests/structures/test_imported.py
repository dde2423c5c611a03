"""Labels that were made elsewhere become targets, all of them or none of a batch, once each."""

from __future__ import annotations

import csv
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
from kd_plugins.structures.table import COLUMNS
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
    for frame in read_structures([path]):
        targets = store.read(frame.structure_id, to_structure(frame.atoms))
        for name, label in frame.labels.items():
            dtype = getattr(torch, DEFAULT_DTYPES[name])
            expected = torch.tensor(label).to(dtype)
            assert torch.equal(targets.values[name].reshape(expected.shape), expected)
    assert store.manifest.teacher == PFP
    assert store.manifest.fingerprint == f"labels made elsewhere: {PFP}"


def test_default_precision() -> None:
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
    frames = [labelled(index) for index in range(5)]
    frames[3].calc.results["energy"] = np.nan
    ase.io.write(spoilt, frames)
    with pytest.raises(ValueError, match="structure 'run:3': its energy holds NaN or inf"):
        import_labels([spoilt], tmp_path / "store", PFP)
    store = TargetStore.open(tmp_path / "store")
    assert sorted(store.ids()) == ["run:0", "run:1"]
    import_labels([source], tmp_path / "store", PFP)
    whole = import_labels([source], tmp_path / "whole", PFP)
    assert content(store) == content(whole)


def changed(source: Path, folder: Path, change: Callable[[Atoms], object]) -> Path:
    """Write the structures again under the same name, the last one changed."""
    frames = [labelled(index) for index in range(5)]
    change(frames[-1])
    folder.mkdir()
    ase.io.write(folder / source.name, frames)
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
def test_one_id_for_two_things(
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


def test_only_what_is_asked_for(source: Path, tmp_path: Path) -> None:
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


def test_mptrj(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Real records, of which some have magnetic moments."""
    path = shared_file("mptrj/mptrj_format_sample.json")
    with pytest.raises(ValueError, match="'mp-1095441-0-1' has no magmoms"):
        import_labels([path], tmp_path / "store", "MP")
    quantities = ["energy", "forces", "stress"]
    store = import_labels([path], tmp_path / "store", "MP", quantities, ["magmoms"])
    assert len(store) == 11
    assert "magmoms" in store["mp-1393488-0-0"].values
    assert store["mp-1393488-0-0"].values["energy"].item() == pytest.approx(-220.4579485)


class Table:
    """A CSV and an npz that say the same as an extended xyz, to be spoilt."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.csv, self.npz = folder / "labels.csv", folder / "labels.npz"
        frames = list(read_structures([source]))
        structure_quantities = ("energy", "stress")
        self.header = ["structure_id", *(c for q in structure_quantities for c in COLUMNS[q])]
        self.rows = [
            [f.structure_id, *(n for q in structure_quantities for n in f.labels[q].ravel())]
            for f in frames
        ]
        atoms = [frame.atoms for frame in frames]
        self.arrays: dict[str, Any] = {
            "structure_id": np.array([frame.structure_id for frame in frames]),
            "n_atoms": np.array([len(each) for each in atoms]),
            "atomic_numbers": np.concatenate([each.numbers for each in atoms]),
            "positions": np.concatenate([each.positions for each in atoms]),
            "cell": np.stack([each.cell[:] for each in atoms]),
            "pbc": np.stack([each.pbc for each in atoms]),
            "forces": np.concatenate([frame.labels["forces"] for frame in frames]),
        }

    def write(self) -> list[Path]:
        """Write both and return their paths."""
        with self.csv.open("w", newline="") as file:
            csv.writer(file).writerows([self.header, *self.rows])
        np.savez(self.npz, **self.arrays)
        return [self.csv, self.npz]


@pytest.fixture
def table(source: Path, tmp_path: Path) -> Table:
    """The labels of `source`."""
    return Table(source, tmp_path)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_table_says_the_same(source: Path, table: Table, tmp_path: Path, reverse: bool) -> None:
    """Rows are matched by id, so their order does not matter; nor that of the files."""
    expected = import_labels([source], tmp_path / "xyz", PFP, ["energy", "forces", "stress"])
    paths = table.write()
    if reverse:
        table.rows.reverse()
        paths = table.write()[::-1]
    assert content(import_labels(paths, tmp_path / "store", PFP)) == content(expected)


def test_an_empty_cell_is_a_missing_label(table: Table, tmp_path: Path) -> None:
    """All six of a stress, or none."""
    table.rows[1][2:] = [""] * 6
    paths = table.write()
    with pytest.raises(ValueError, match="'run:1' has no stress"):
        import_labels(paths, tmp_path / "store", PFP)
    store = import_labels(paths, tmp_path / "store", PFP, ["energy", "forces"], ["stress"])
    assert "stress" not in store["run:1"].values
    table.rows[1][2] = 0.5
    with pytest.raises(ValueError, match="line 3: stress is no number"):
        import_labels(table.write(), tmp_path / "other", PFP)


def set_array(name: str, change: Callable[[Any], Any]) -> Callable[[Table], object]:
    return lambda table: table.arrays.update({name: change(table.arrays.get(name))})


def set_cell(row: int, column: int, value: Any) -> Callable[[Table], object]:
    return lambda table: table.rows[row].__setitem__(column, value)


SPOILT: dict[str, tuple[Callable[[Table], object], type[Exception], str]] = {
    "missing in csv": (lambda t: t.rows.pop(), ValueError, r"'run:4' stands in .*npz and not in"),
    "missing in npz": (
        lambda t: t.rows.append(["run:9", *t.rows[0][1:]]),
        ValueError,
        r"'run:9' stands in .*csv and not in .*npz",
    ),
    "twice in csv": (lambda t: t.rows.append(t.rows[0]), ValueError, "line 7: .*'run:0' comes twi"),
    "twice in npz": (
        set_array("structure_id", lambda ids: np.array([*ids[:4], ids[0]])),
        ValueError,
        "'run:0' comes 2 times",
    ),
    "unknown column": (
        lambda t: t.header.__setitem__(1, "energie"),
        KeyError,
        "unknown column 'energie'; did you mean 'energy'",
    ),
    "column twice": (
        lambda t: (t.header.append("energy"), [row.append(0.0) for row in t.rows]),
        ValueError,
        "column 'energy' comes twice",
    ),
    "no id": (
        lambda t: (t.header.pop(0), [row.pop(0) for row in t.rows]),
        KeyError,
        "has no column 'structure_id'",
    ),
    "half a stress": (
        lambda t: (t.header.pop(), [row.pop() for row in t.rows]),
        KeyError,
        "has no column 'stress_xy'",
    ),
    "short row": (lambda t: t.rows[2].pop(), ValueError, "line 4: expected 8 cells"),
    "long row": (lambda t: t.rows[2].append(1), ValueError, "line 4: expected 8 cells"),
    "no number": (set_cell(0, 1, "-3,5"), ValueError, "line 2: energy is no number"),
    "nan": (set_cell(0, 1, "nan"), ValueError, "'run:0': its energy holds NaN"),
    "nan in npz": (
        set_array("forces", lambda forces: forces * np.nan),
        ValueError,
        "'run:0': its forces holds NaN",
    ),
    "nan in positions": (
        set_array("positions", lambda positions: positions * np.nan),
        ValueError,
        "'run:0': positions holds NaN",
    ),
    "unknown array": (set_array("force", lambda _: np.zeros(1)), KeyError, "did you mean 'forces'"),
    "energy in npz": (
        set_array("energy", lambda _: np.zeros(5)),
        KeyError,
        "unknown array 'energy'; it belongs in the CSV",
    ),
    "no cell": (lambda t: t.arrays.pop("cell"), KeyError, "has no array 'cell'"),
    "objects": (
        set_array("forces", lambda forces: forces.astype(object)),
        ValueError,
        "plain arrays, without objects",
    ),
    "text": (
        set_array("forces", lambda forces: forces.astype(str)),
        ValueError,
        "forces is of type <U.*; expected numbers",
    ),
    "floats": (
        set_array("n_atoms", lambda counts: counts * 1.0),
        ValueError,
        "n_atoms is of type float64; expected whole numbers",
    ),
    "shape": (
        set_array("forces", lambda forces: forces[:-1]),
        ValueError,
        r"forces: expected \(21, 3\), got \(20, 3\)",
    ),
    "flat": (
        set_array("forces", lambda forces: forces.ravel()),
        ValueError,
        r"forces: expected \(21, 3\), got \(63,\)",
    ),
    "negative": (
        set_array("n_atoms", lambda counts: counts - 4),
        ValueError,
        "n_atoms holds -1; expected 1 or more",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), SPOILT.values(), ids=SPOILT)
def test_spoilt_tables(
    table: Table, tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    """One clear error each, and no store."""
    change(table)
    with pytest.raises(error, match=message):
        import_labels(table.write(), tmp_path / "store", PFP)
    assert not (tmp_path / "store").exists()


def test_files_that_are_no_table(table: Table, source: Path, tmp_path: Path) -> None:
    """A half, too many, a damaged one."""
    paths = table.write()
    for given in ([paths[0]], paths[1], [*paths, source], [paths[0], source], paths * 2):
        with pytest.raises(ValueError, match=r"expected one \.csv with one \.npz"):
            import_labels(given, tmp_path / "store", PFP)
    with pytest.raises(ValueError, match="no paths"):
        import_labels([], tmp_path / "store", PFP)
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"labels\.npz cannot be read"):
        import_labels(paths, tmp_path / "store", PFP)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.npz: no such file"):
        import_labels(paths, tmp_path / "store", PFP)
