"""Damaged, hostile or wrong files are refused in one sentence that names file and structure."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from kd_plugins import cli
from kd_plugins.structures import formats, limits
from kd_plugins.structures.readers import count_structures, read_structures
from tests.hosts import in_one_environment

GOOD = b'1\nLattice="3 0 0 0 3 0 0 0 3" pbc="T T T" energy=-1.0\nCu 0.0 0.0 0.0\n'
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def one_atom(lattice: str = "3 0 0 0 3 0 0 0 3", atom: str = "Cu 0 0 0", more: str = "") -> bytes:
    return f'1\nLattice="{lattice}" pbc="T T T" {more}\n{atom}\n'.encode()


WRONG = {
    "promise": (b"100000000\n\nCu 0 0 0\n", "promises 100000000 atoms.*ends after 1 of them"),
    "400 digits": (b"9" * 400 + b"\n\nCu 0 0 0\n", "promises .* atoms.*ends after 1 of them"),
    "cut": (b"2\n\nCu 0 0 0\n", "promises 2 atoms"),
    "no number": (b"two\n\nCu 0 0 0\n", "line 4: expected a number of atoms, got 'two'"),
    "negative": (b"-1\n\nCu 0 0 0\n", "line 4: expected a number of atoms, got '-1'"),
    "element": (one_atom(atom="Qq 0 0 0"), "frame 1, which starts in line 4: 'Qq' is no element"),
    "dummy": (one_atom(atom="X 0 0 0"), "atomic_numbers"),
    "nan": (one_atom(atom="Cu nan 0 0"), "positions"),
    "inf": (one_atom(atom="Cu 0 inf 0"), "positions"),
    "letters": (one_atom(atom="Cu a b c"), "frame 1, which starts in line 4"),
    "columns": (one_atom(atom="Cu 0"), "frame 1, which starts in line 4"),
    "no atoms": (b"0\n\n", "atomic_numbers"),
    "flat cell": (one_atom("3 0 0 3 0 0 0 0 3"), "its cell .* has no volume there"),
    "no cell": (b'1\npbc="T T T"\nCu 0 0 0\n', "has no volume there"),
    "nan cell": (one_atom("nan 0 0 0 3 0 0 0 3"), "cell"),
    "latin": (one_atom(more='note="K\xf6ln"').replace(b"\xc3\xb6", b"\xf6"), "not UTF-8 text"),
    "text energy": (one_atom(more="energy=low"), "energy: expected real numbers, got 'low'"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_wrong_frame_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    """With its file, place and what is wrong, at once, and after the sound ones."""
    content, message = WRONG[name]
    path = tmp_path / f"some.extxyz{suffix}"
    path.write_bytes((PACKERS[suffix] if suffix else bytes)(GOOD + content))
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        list(read_structures([path]))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


def test_a_left_handed_cell_is_read(tmp_path: Path) -> None:
    """It is a valid cell."""
    (tmp_path / "some.extxyz").write_bytes(one_atom("0 3 0 3 0 0 0 0 3"))
    (structure,) = read_structures([tmp_path / "some.extxyz"])
    assert np.linalg.det(structure.atoms.cell.array) < 0


def test_lines_after_the_atoms_may_hold_the_lattice(tmp_path: Path) -> None:
    """As ASE allows."""
    content = b"1\n\nCu 0 0 0\nVEC1 3 0 0\nVEC2 0 3 0\nVEC3 0 0 4\n"
    (tmp_path / "some.xyz").write_bytes(content * 2)
    structures = list(read_structures([tmp_path / "some.xyz"]))
    assert [structure.atoms.cell[2, 2] for structure in structures] == [4.0, 4.0]


def test_utf8_is_read_whatever_the_locale(tmp_path: Path) -> None:
    """And with the mark that some editors put in front."""
    content = one_atom(more='structure_id="Köln"')
    (tmp_path / "some.extxyz").write_bytes(b"\xef\xbb\xbf" + content)
    ase.io.write(tmp_path / "POSCAR", Atoms("Cu", cell=[3] * 3, pbc=True), format="vasp")
    text = (tmp_path / "POSCAR").read_text(encoding="utf-8").splitlines()
    (tmp_path / "POSCAR").write_text("\n".join(["Köln", *text[1:]]) + "\n", encoding="utf-8")
    code = (
        "from kd_plugins.structures.readers import read_structures as r; "
        "print(*[ascii(f.structure_id) for f in r(['some.extxyz', 'POSCAR'])])"
    )
    settings = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert done.stdout.split() == [ascii("Köln"), "'POSCAR'"], done.stderr


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In names of files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some.extxyz").write_bytes(GOOD * 2)
    assert len(list(read_structures(["~/some.extxyz"]))) == 2
    assert count_structures(["~/some.extxyz"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("a\0b", "no name of a file"), ("n" * 300, "expected a file"), ("some.extxyz/x", "expected")],
)
def test_what_is_no_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    """Whatever error the system gives."""
    (tmp_path / "some.extxyz").write_bytes(GOOD)
    with pytest.raises((OSError, ValueError), match=message):
        read_structures([tmp_path / name])


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """Reading it would wait without end."""
    os.mkfifo(tmp_path / "pipe.extxyz")
    with pytest.raises(ValueError, match="is a pipe or device"):
        read_structures([tmp_path / "pipe.extxyz"])


def test_a_label_in_capitals_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once a file, since names count letter by letter."""
    (tmp_path / "some.extxyz").write_bytes(one_atom(more="Energy=-3.0") * 3)
    with caplog.at_level(logging.WARNING):
        structures = list(read_structures([tmp_path / "some.extxyz"]))
    assert structures[0].labels == {}
    (record,) = caplog.records
    assert "'Energy' is not read; if it is the label, call it 'energy'" in record.message


BOMBS = {
    "one line.extxyz": lambda: b" " * (300 << 20),
    "lines.extxyz": lambda: b"100000000\n\n" + b"Cu 0 0 0\n" * (1 << 25),
    "lists.json": lambda: b'{"mp-1": {"mp-1-0": {"structure": [' + b"[]," * (1 << 25),
    "deep.json": lambda: b'{"mp-1": {"mp-1-0": {"structure": ' + b"[" * (1 << 26),
    "database.json": lambda: b"[" + b"[]," * (1 << 26),
    "deep database.json": lambda: b"[" * (1 << 26),
}


# The content matters to the readers, the suffix to the limit of unpacking: each is tried once.
PACKED_BOMBS = [*((name, ".gz") for name in BOMBS), ("lines.extxyz", ".xz"), ("deep.json", ".xz")]


@pytest.mark.slow
@in_one_environment
@pytest.mark.parametrize(("name", "suffix"), PACKED_BOMBS)
def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, name: str, suffix: str) -> None:
    """In a process that may take 1.5 GB, and with a way to lift the limit."""
    path = tmp_path / f"{name}{suffix}"
    content = BOMBS[name]()
    fastest = lzma.compress(content, preset=0) if suffix == ".xz" else gzip.compress(content, 1)
    path.write_bytes(fastest)
    code = (
        "from kd_plugins.structures.readers import count_structures as c\n"
        "from kd_plugins.structures.readers import read_structures as r\n"
        f"print(c([{str(path)!r}]))\n"
        f"try: list(r([{str(path)!r}]))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (3 << 29, 3 << 29)),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert str(path) in lines[1]
    assert "KD_LARGEST_GB" in lines[1] or "nested" in lines[1] or "MB" in lines[1], lines[1]


@pytest.mark.parametrize("suffix", PACKERS)
def test_the_limit_of_unpacking_can_be_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """By the variable that the message names."""
    monkeypatch.setattr("kd_plugins.structures.limits.UNPACKED_BYTES", 1000)
    path = tmp_path / f"some.extxyz{suffix}"
    path.write_bytes(PACKERS[suffix](GOOD * 20_000))
    with pytest.raises(ValueError, match=r"what it unpacks to takes more than .*KD_LARGEST_GB=20"):
        list(read_structures([path]))
    assert count_structures([path]) == 1

    monkeypatch.setenv(limits.VARIABLE, "1")
    assert count_structures([path]) == 20_000
    assert next(iter(read_structures([path]))).atoms.symbols[0] == "Cu"


@pytest.mark.parametrize("given", ["much", "0", "-1", "nan", "inf", ""])
def test_a_wrong_limit_is_named(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was expected."""
    monkeypatch.setenv(limits.VARIABLE, given)
    with pytest.raises(ValueError, match="KD_LARGEST_GB: expected a number of GB above 0"):
        limits.max_bytes(1)


def test_twice_compressed_is_named(tmp_path: Path) -> None:
    """ASE would unpack the inner one without a limit."""
    path = tmp_path / "some.cif.gz.gz"
    path.write_bytes(gzip.compress(gzip.compress(b"data_")))
    with pytest.raises(ValueError, match=r"some\.cif\.gz\.gz.*compressed twice"):
        list(read_structures([path]))


NOT_READ = {
    "inp": b"XYZCoordinates = 'other.xyz'\n",
    "some.cell": b"%BLOCK LATTICE_CART\n3 0 0\n0 3 0\n0 0 3\n%ENDBLOCK LATTICE_CART\n",
    "some.gpw": b"- of UlmGPAW" + b"\0" * 100,
}


@pytest.mark.parametrize("name", NOT_READ)
def test_readers_that_open_or_run_more_are_not_used(tmp_path: Path, name: str) -> None:
    """Octopus' opens other files, CASTEP's starts CASTEP, GPAW's is another package's."""
    (tmp_path / name).write_bytes(NOT_READ[name])
    with pytest.raises(ValueError, match="is not read here.*convert it to extended xyz"):
        list(read_structures([tmp_path / name]))


def test_formats_of_other_packages_are_not_read() -> None:
    """Only names that ASE itself has, none of a database or of pickles."""
    known = set(ase.io.formats.all_formats)
    assert known >= formats.FORMATS
    assert not formats.FORMATS & {"bundletrajectory", "postgresql", "mysql", "db", "json", "gpw"}


def test_an_id_that_comes_twice_is_named_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the doctor, with file and number; a wrong seed and limit are named by their option."""
    monkeypatch.chdir(tmp_path)
    named = [one_atom(f"{size} 0 0 0 3 0 0 0 3", more=f"structure_id={name} energy=-1.0")
             for name, size in (("a", 3), ("b", 4), ("c", 5))]  # fmt: skip
    Path("one.extxyz").write_bytes(b"".join(named))
    Path("two.extxyz").write_bytes(named[1])
    assert cli.main(["label", "one.extxyz", "--teacher", "emt", "--store", "targets"]) == 0
    doctor = "doctor --labels one.extxyz two.extxyz --store targets"
    capsys.readouterr()
    assert cli.main(doctor.split()) == 1
    assert "('b': one.extxyz:1 and two.extxyz:0)" in " ".join(capsys.readouterr().out.split())

    for option, value in (("limit", "0"), ("limit", "-1"), ("seed", "-1"), ("seed", "9" * 400)):
        assert cli.main([*doctor.split(), f"--{option}", value]) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"error: {option}: expected"), complaint
