"""Structures come in from any file, each under its own name and with the labels beside it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from kd_plugins.store.structure import Structure
from kd_plugins.structures import readers
from kd_plugins.structures.readers import LabelledStructure, read_structures, to_atoms, to_structure

FIELDS = ("atomic_numbers", "positions", "cell", "pbc")


def labelled(index: int, **info: object) -> Atoms:
    """Return a random labelled slab of 3 to 6 atoms whose first atom is fixed."""
    generator = np.random.default_rng(index)
    n_atoms = 3 + index % 4
    cell = 6.0 * np.eye(3) + generator.normal(size=(3, 3)) * 0.3
    atoms = Atoms(
        generator.integers(1, 80, n_atoms),
        scaled_positions=generator.random((n_atoms, 3)).round(3),
        cell=cell.round(4),
        pbc=[True, True, False],
        info=info,
    )
    atoms.set_constraint(FixAtoms([0]))
    labels = {"forces": (n_atoms, 3), "stress": 6, "magmoms": n_atoms}
    results = {name: generator.normal(size=shape).round(6) for name, shape in labels.items()}
    atoms.calc = SinglePointCalculator(atoms, energy=generator.normal(), **results)
    return atoms


def names(paths: list[Path] | Path, ids: str = "auto") -> list[str]:
    """Return the identities in the order of reading."""
    return [structure.structure_id for structure in read_structures(paths, ids)]


def check(structure: LabelledStructure, atoms: Atoms) -> None:
    """Compare a frame with what was written."""
    assert to_structure(structure.atoms).difference(to_structure(atoms)) is None
    assert set(structure.labels) == set(atoms.calc.results)
    for name, value in atoms.calc.results.items():
        assert structure.labels[name].dtype == np.float64
        np.testing.assert_allclose(structure.labels[name], value, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", ["some.extxyz", "some.xyz", "some.traj", "some.db", "some.json"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    """Labels are those computed, constraints or not; the calculator is left behind."""
    written = [labelled(index) for index in range(5)]
    ase.io.write(tmp_path / name, written)
    read = list(read_structures([tmp_path / name]))
    for structure, atoms in zip(read, written, strict=True):
        check(structure, atoms)
        assert structure.atoms.calc is None
        assert (structure.atoms.constraints[0].index == [0]).all()
        assert np.abs(structure.labels["forces"][0]).min() > 0


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
@pytest.mark.parametrize("name", ["some.extxyz", "some.db"])
def test_compressed_files_read_the_same(
    tmp_path: Path,
    temporary: Path,
    name: str,
    suffix: str,
    pack: Callable[[bytes], bytes],
) -> None:
    """Under the same names, and nothing stays behind."""
    plain = tmp_path / name
    ase.io.write(plain, [labelled(index) for index in range(3)])
    packed = tmp_path / "packed" / f"{name}{suffix}"
    packed.parent.mkdir()
    packed.write_bytes(pack(plain.read_bytes()))
    found = list(read_structures([packed]))
    assert not list(temporary.iterdir())
    for structure, expected in zip(found, read_structures([plain]), strict=True):
        assert structure.structure_id == expected.structure_id
        assert np.array_equal(structure.atoms.positions, expected.atoms.positions)


def test_a_reader_that_stops_early_cleans_up(tmp_path: Path, temporary: Path) -> None:
    """The temporary copy goes with the generator."""
    ase.io.write(tmp_path / "some.extxyz", [labelled(index) for index in range(3)])
    packed = tmp_path / "some.extxyz.gz"
    packed.write_bytes(gzip.compress((tmp_path / "some.extxyz").read_bytes()))
    structures = read_structures([packed])
    next(structures)
    assert list(temporary.iterdir())
    del structures
    assert not list(temporary.iterdir())


def test_structures_go_there_and_back() -> None:
    """Atoms to Structure to Atoms."""
    for index in range(4):
        structure = to_structure(labelled(index))
        back = to_structure(to_atoms(structure))
        for field in FIELDS:
            assert np.array_equal(getattr(back, field), getattr(structure, field))


def test_auto_names_by_info(tmp_path: Path) -> None:
    """structure_id before frame_id before sid and fid."""
    infos = [
        {"structure_id": "s", "frame_id": "f", "sid": "a", "fid": 1},
        {"frame_id": "mp-1-0-2", "sid": "a", "fid": 1},
        {"sid": "random7", "fid": 12},
        {"sid": "random7"},
        {"fid": 3},
    ]
    path = tmp_path / "run.3.extxyz"
    ase.io.write(path, [labelled(index, **info) for index, info in enumerate(infos)])
    assert names(path) == ["s", "mp-1-0-2", "random7/12", "random7/0", "run.3:4"]


@pytest.mark.parametrize(("count", "expected"), [(1, ["run"]), (3, ["run:0", "run:1", "run:2"])])
def test_auto_names_by_the_file(tmp_path: Path, count: int, expected: list[str]) -> None:
    """By its stem, with an index where there are several."""
    ase.io.write(tmp_path / "run.extxyz", [labelled(index) for index in range(count)])
    assert names(tmp_path / "run.extxyz") == expected
    assert names(tmp_path / "run.extxyz", "path") == [str(tmp_path / name) for name in expected]


def test_a_database_names_by_row(tmp_path: Path) -> None:
    """Key-value pairs and data are info, as for fairchem; else by the row's id, even if alone."""
    with ase.db.connect(tmp_path / "some.db") as database:
        database.write(labelled(0), structure_id="by-key")
        database.write(labelled(1), data={"sid": "slab1", "fid": 4})
        database.write(labelled(2))
        database.write(labelled(3))
        del database[3]
    assert names(tmp_path / "some.db") == ["by-key", "slab1/4", "some:4"]
    assert names(tmp_path / "some.db", "path")[-1] == str(tmp_path / "some:4")
    ase.io.write(tmp_path / "one.json", labelled(0))
    assert names(tmp_path / "one.json") == ["one:1"]


def test_ids_of_chosen_keys(tmp_path: Path) -> None:
    """Joined by a slash; one that is missing is named."""
    path = tmp_path / "run.extxyz"
    ase.io.write(path, [labelled(0, run="a", step=7), labelled(1, run="b")])
    assert names(path, "run")[1] == "b"
    with pytest.raises(KeyError, match=r"run\.extxyz: structure 'run:1' has no 'step'.*it has run"):
        names(path, "run, step")


def test_order_follows_the_paths(tmp_path: Path) -> None:
    """And the order of reading changes no name."""
    paths = [tmp_path / name for name in ("b.extxyz", "a.extxyz")]
    for path in paths:
        ase.io.write(path, [labelled(0), labelled(1)])
    assert names(paths) == ["b:0", "b:1", "a:0", "a:1"]
    assert sorted(names(paths)) == sorted(names(paths[::-1]))


def test_other_quantities_by_their_names(tmp_path: Path) -> None:
    """Atomic energies under our name or ASE's, energy per atom in info; NaN stays."""
    atoms = labelled(0, energy_per_atom=-3.5)
    atoms.calc.results["energies"] = np.arange(len(atoms), dtype=float)
    atoms.calc.results["stress"] = np.full(6, np.nan)
    ase.io.write(tmp_path / "some.extxyz", atoms)
    (structure,) = read_structures([tmp_path / "some.extxyz"])
    assert structure.labels["atomic_energies"].tolist() == list(range(len(atoms)))
    assert structure.labels["energy_per_atom"] == -3.5
    assert np.isnan(structure.labels["stress"]).all()


def test_unlabelled_structures_have_no_labels(tmp_path: Path) -> None:
    """Nothing is computed or made up."""
    ase.io.write(tmp_path / "POSCAR", Atoms("CuPt", cell=[3, 3, 6], pbc=True), format="vasp")
    (structure,) = read_structures([tmp_path / "POSCAR"])
    assert structure.structure_id == "POSCAR"
    assert structure.labels == {}


def test_databases_are_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their size, every row comes once."""
    monkeypatch.setattr(readers, "ROWS_AT_ONCE", 2)
    ase.io.write(tmp_path / "some.db", [labelled(index) for index in range(5)])
    assert names(tmp_path / "some.db") == [f"some:{row}" for row in range(1, 6)]


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return name to a file that cannot be read, and the message."""
    good = folder / "good.extxyz"
    ase.io.write(good, [labelled(0), labelled(1)])
    contents = {
        "empty.extxyz": b"",
        "blank.extxyz": b"\n",
        "notes.txt": b"hello",
        "nosuffix": b"hello",
        "cut.extxyz": good.read_bytes()[:-60],
        "cut.extxyz.xz": lzma.compress(good.read_bytes())[:-60],
        "hollow.extxyz.gz": gzip.compress(b""),
        "text.db": b"hello" * 100,
        "other.json": b'{"a": {"b": {"c": 1}}}',
        "list.json": b"[1, 2]",
        "cut.json": b'{"mp-1": {"mp-1-0": {"structure": {',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    messages = {
        "nowhere.extxyz": "no such file",
        "empty.extxyz": "is empty",
        "blank.extxyz": "holds no structure",
        "notes.txt": "ASE knows no format",
        "nosuffix": "ASE knows no format",
        "cut.extxyz": "beyond its first 1 structures",
        "cut.extxyz.xz": "beyond its first 0 structures",
        "hollow.extxyz.gz": "(holds no structure|ASE knows no format)",
        "text.db": "beyond its first 0 structures",
        "other.json": "ASE knows no format",
        "list.json": "ASE knows no format",
        "cut.json": "beyond its first 0 structures",
        ".": "is a folder",
    }
    return {name: (folder / name, message) for name, message in messages.items()}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """One error with the path in it."""
    for name, (path, message) in broken(tmp_path).items():
        expected = FileNotFoundError if name == "nowhere.extxyz" else ValueError
        with pytest.raises(expected, match=message) as caught:
            list(read_structures([path]))
        assert str(path) in str(caught.value)


def test_a_missing_path_is_found_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong tenth path should not cost the hours of the nine before."""
    ase.io.write(tmp_path / "run.extxyz", labelled(0))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_structures([tmp_path / "run.extxyz", tmp_path / "nowhere"])


def test_disordered_crystals_are_refused(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """ASE would take the commonest element of a mixed site without a warning."""
    assert names(shared_file("molecular_crystals/x23/urea.cif")) == ["urea"]
    for occupancy in ({"Cu": 1.0}, {"Cu": 0.7, "Au": 0.3}):
        crystal = Atoms("Cu", cell=[3.6] * 3, pbc=True, info={"occupancy": {"0": occupancy}})
        crystal.set_array("spacegroup_kinds", np.array([0]))
        ase.io.write(tmp_path / f"{len(occupancy)}.cif", crystal)
    assert names(tmp_path / "1.cif") == ["1"]
    with pytest.raises(ValueError, match=r"2\.cif.*a site is disordered \({'Cu': 0\.7"):
        names(tmp_path / "2.cif")


@pytest.mark.parametrize(
    ("name", "count", "first", "quantities"),
    [
        ("oc20/s2ef_Ostar_all.extxyz.xz", 153, "random1000100/0", {"energy", "forces"}),
        ("metals/mlearn_Cu_test.extxyz.xz", 31, "mlearn_Cu_test:0", {"energy", "forces", "stress"}),
        ("molecular_crystals/x23/hexamine_dftH.extxyz", 1, "hexamine_dftH", set()),
    ],
)
def test_real_files_have_as_many_structures_as_documented(
    shared_file: Callable[[str], Path], name: str, count: int, first: str, quantities: set[str]
) -> None:
    """As many as the files have, each with an id of its own."""
    structures = list(read_structures([shared_file(name)]))
    assert len({structure.structure_id for structure in structures}) == len(structures) == count
    assert structures[0].structure_id == first
    assert set(structures[0].labels) == quantities


def test_fixed_atoms_keep_their_forces(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    """OC20's lower layers are fixed, and the labels are the forces on them all the same."""
    packed = shared_file("oc20/s2ef_Ostar_all.extxyz.xz")
    with lzma.open(packed, "rb") as source, (tmp_path / "plain.extxyz").open("wb") as target:
        shutil.copyfileobj(source, target)
    expected = ase.io.read(tmp_path / "plain.extxyz", ":")
    for structure, atoms in zip(read_structures([packed]), expected, strict=True):
        fixed = structure.atoms.constraints[0].index
        assert len(fixed) and np.abs(structure.labels["forces"][fixed]).max() > 0
        computed = atoms.get_forces(apply_constraint=False)
        assert np.array_equal(structure.labels["forces"], computed)
        assert isinstance(to_structure(structure.atoms), Structure)


def test_frames_after_a_blank_line_are_not_lost(tmp_path: Path) -> None:
    """ASE stops reading there, which is an error with the number of frames."""
    frame = "1\nProperties=species:S:1:pos:R:3\nH 0.0 0.0 0.0\n"
    (tmp_path / "gap.extxyz").write_text(f"{frame}{frame}\n{frame}")
    with pytest.raises(ValueError, match="beyond its first 2 structures: .*it holds 3"):
        list(read_structures([tmp_path / "gap.extxyz"]))
