"""As many structures are counted as are read."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.structures import readers
from kd_plugins.structures.readers import count_structures, read_structures
from tests.shared import shared_folder

SUFFIXES = (".extxyz", ".extxyz.xz", ".json", ".json.xz", ".cif")
SHARED = sorted(
    path for path in shared_folder().rglob("*") if path.name.endswith(SUFFIXES) and path.is_file()
)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def n_read(path: Path) -> int:
    """Return how many structures are read."""
    return sum(1 for _ in read_structures([path]))


def random_atoms(index: int) -> Atoms:
    """Return a labelled structure of one to five atoms, some of them periodic."""
    generator = np.random.default_rng(index)
    n_atoms = 1 + index % 5
    atoms = Atoms(generator.integers(1, 80, n_atoms), generator.normal(size=(n_atoms, 3)))
    if index % 2:
        atoms.set_cell(np.eye(3) * 9)
        atoms.pbc = True
    atoms.info["note"] = ["7", "lattice", "a b", 12][index % 4]
    atoms.calc = SinglePointCalculator(atoms, energy=float(index))
    return atoms


@pytest.mark.skipif(not SHARED, reason="no reference data (KD_SHARED_DATA names their folder)")
def test_counts_of_real_files_are_those_read() -> None:
    """Every file of it; the larger ones are read by ASE in another test."""
    small = [path for path in SHARED if path.stat().st_size < 60_000]
    assert len(small) > 20
    for path in small:
        assert count_structures([path]) == n_read(path), path.name


def test_counts_of_large_real_files(shared_file: Callable[[str], Path]) -> None:
    """Of the larger ones."""
    expected = {
        "mptrj/mptrj_random_1k.extxyz.xz": 1000,
        "oc20/s2ef_train.extxyz.xz": 644,
        "metals/mlearn_Cu_train.extxyz.xz": 262,
        "metals/Al_aimd300K_train.extxyz.xz": 200,
        "mptrj/mptrj_organic_elements.json.xz": 68,
        "mptrj/mptrj_format_sample.json": 11,
    }
    paths = [shared_file(name) for name in expected]
    assert [count_structures([path]) for path in paths] == list(expected.values())
    assert count_structures(paths) == sum(expected.values())


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["some.extxyz", "some.xyz", "some.db", "some.json"])
def test_counts_of_written_files(tmp_path: Path, name: str, suffix: str) -> None:
    """Whatever the format, packed or not, of one structure or several."""
    for count in (1, 7):
        plain = tmp_path / f"{count}{name}"
        ase.io.write(plain, [random_atoms(index) for index in range(count)])
        path = tmp_path / "packed" / f"{count}{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PACKERS[suffix](plain.read_bytes()))
        assert count_structures([path]) == n_read(path) == count


XYZ = {
    "plain": "1\n\nH 0 0 0\n2\ncomment\nH 0 0 0\nH 0 0 1\n",
    "comment is a number": "1\n12\nH 0 0 0\n1\n 3 \nH 0 0 0\n",
    "padded": '  2 \nLattice="9 0 0 0 9 0 0 0 9"\nH 0 0 0\n H 0 0 1\n1\n\nH 0 0 0\n\n\n',
    "carriage returns": "1\r\n\r\nH 0 0 0\r\n1\r\n\r\nH 0 0 0\r\n",
    "numbers for symbols": "2\nProperties=numbers:I:1:pos:R:3\n1 0 0 0\n1 0 0 1\n",
    "no last newline": "1\n\nH 0 0 0",
}


@pytest.mark.parametrize("name", XYZ)
def test_counts_of_unusual_xyz(tmp_path: Path, name: str) -> None:
    """As ASE reads it."""
    path = tmp_path / "some.xyz"
    path.write_bytes(XYZ[name].encode())
    assert count_structures([path]) == n_read(path)


@pytest.mark.parametrize("chunk", [1, 3, 8, 9, 10, 64])
def test_a_key_across_two_chunks_is_counted_once(
    shared_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk: int
) -> None:
    """A word that two chunks share is counted once."""
    text = b'{"lattice": 1, "lattice_": "lattice"}' * 9
    path = tmp_path / "some.bin"
    path.write_bytes(text)
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk)
    with path.open("rb") as file:
        assert readers.count_lattices(file) == text.count(b'"lattice"')


def test_what_cannot_be_counted_counts_as_one(tmp_path: Path) -> None:
    """Reading it names what is wrong."""
    contents = {
        "cut.extxyz.xz": lzma.compress(b"1\n\nH 0 0 0\n" * 99)[:-20],
        "cut.xyz.gz": gzip.compress(b"1\n\nH 0 0 0\n" * 99)[:-9],
        "no.extxyz.xz": b"hello",
        "no.xyz.bz2": b"hello",
        "text.db": b"hello" * 1000,
        "text.json": b"hello",
        "notes.txt": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert count_structures([tmp_path / name]) == 1, name
    assert count_structures([tmp_path / name for name in contents]) == len(contents)
    assert count_structures([tmp_path / "nowhere.xyz"]) == 1


def test_a_single_path_and_no_path(tmp_path: Path) -> None:
    """A path by itself is not taken for a list of letters."""
    path = tmp_path / "some.xyz"
    path.write_text("1\n\nH 0 0 0\n" * 3)
    assert count_structures(str(path)) == count_structures(path) == 3
    assert count_structures([]) == 0
