"""Pickles whose loading runs a command, planted in every file that a command or function opens.

None may run, and each ends in one clear error; see docs/security.md.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from kd_plugins import cli
from tests.hosts import is_installed


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        """Return the call."""
        return os.system, (f"touch {self.path}",)


def bare(code: Touches) -> bytes:
    """A pickle as Python writes it."""
    return pickle.dumps(code)


def text(code: Touches) -> bytes:
    """A pickle that is text."""
    return pickle.dumps(code, 0)


def torch_file(code: Touches) -> bytes:
    """A pickle as torch writes it."""
    buffer = io.BytesIO()
    torch.save({"model": code, "config": code, "state_dict": {}}, buffer)
    return buffer.getvalue()


def older_torch_file(code: Touches) -> bytes:
    """The same in torch's older format."""
    buffer = io.BytesIO()
    torch.save({"model": code}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def npz(code: Touches) -> bytes:
    """An array of objects, as numpy writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, energy=np.array([code], dtype=object), structure_id=np.array(["a"]))
    return buffer.getvalue()


def npy(code: Touches) -> bytes:
    """The same without an archive."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([code], dtype=object))
    return buffer.getvalue()


def trajectory(code: Touches) -> bytes:
    """ASE's trajectory of before 2015."""
    return b"PickleTrajectory" + pickle.dumps({"version": 1, "a": code}, 2)


def yaml(code: Touches) -> bytes:
    """A tag that yaml.load follows."""
    return f'!!python/object/apply:os.system ["touch {code.path}"]\n'.encode()


def json(code: Touches) -> bytes:
    """JSON of ASE with an object of a type that there is not."""
    return f'{{"__ase_objtype__": "os.system", "a": "touch {code.path}"}}'.encode()


FORMS = (bare, text, torch_file, older_torch_file, npz, npy, trajectory, yaml, json)
SUFFIXES = (
    *("extxyz", "xyz", "traj", "cif", "vasp", "db", "json", "aselmdb", "xyz.gz", "pkl", "gpw"),
    *("npz", "cell", "castep", "in", "out", "log", "con", "pdb", "nc", "h5", "py", "yml", "trj"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with structures, labels, a store and an evaluation."""
    monkeypatch.chdir(tmp_path)
    crystals = []
    for index in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=index)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.info["structure_id"] = f"cu{index}"
        crystals.append(atoms)
    ase.io.write("train.extxyz", crystals)
    assert cli.main(["label", "train.extxyz", "--teacher", "emt", "--store", "targets"]) == 0
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], line: str | list[str]) -> str:
    """Run a command that must not succeed; return its one complaint."""
    capsys.readouterr()
    code = cli.main(line.split() if isinstance(line, str) else line)
    said = capsys.readouterr()
    assert code != 0, said.out
    assert "Traceback" not in said.err + said.out
    return said.err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_structures(folder: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    """Under the suffixes of ASE's readers, in every form."""
    mark, path = folder / "mark", folder / f"theirs.{suffix}"
    for form in FORMS:
        path.write_bytes(form(Touches(mark)))
        lines = (
            f"label {path.name} --teacher emt --store out",
            f"import {path.name} --teacher X --store out2",
            f"doctor --labels {path.name} --store targets",
            f"evaluate --student emt --reference {path.name} --out out3",
        )
        for line in lines if form is bare else lines[:1]:  # all read by one function
            assert path.name in refused(capsys, line)
            assert not mark.exists(), (form.__name__, line)


def every_file(top: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in top.rglob("*") if path.is_file())


def planted(top: Path, mark: Path, do: Callable[[], object]) -> None:
    """Put each form of a pickle into each file of a folder, one at a time, and use the folder."""
    for path in every_file(top):
        whole = path.read_bytes()
        for form in (bare, torch_file, npz):
            path.unlink(missing_ok=True)  # what this process has mapped of it stays whole
            path.write_bytes(form(Touches(mark)))
            do()
            assert not mark.exists(), (path, form.__name__)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)


def test_stores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever of a store is replaced, by whichever command it is opened."""
    lines = (
        "verify targets",
        "doctor --labels train.extxyz --store targets --ask-teacher",
        "export targets out.extxyz",
        "merge targets --into merged",
        "label train.extxyz --teacher emt --store targets",
    )

    def use() -> None:
        for line in lines:
            cli.main(line.split())
            assert "Traceback" not in capsys.readouterr().err
            shutil.rmtree("merged", ignore_errors=True)

    shutil.copytree("targets", "whole")
    for path in every_file(Path("targets")):
        for form in FORMS:
            path.unlink()  # what this process has mapped of it stays whole
            path.write_bytes(form(Touches(folder / "mark")))
            use()
            assert not (folder / "mark").exists(), (path, form.__name__)
            shutil.rmtree("targets", ignore_errors=True)
            shutil.copytree("whole", "targets")


def test_folders_of_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured, and what is reported."""
    evaluate = "evaluate --student emt --reference train.extxyz --out evaluated"
    assert cli.main(evaluate.split()) == 0

    def use() -> None:
        for line in (evaluate, "report evaluated -o page.html"):
            cli.main(line.split())
            assert "Traceback" not in capsys.readouterr().err

    planted(folder / "evaluated", folder / "mark", use)


@pytest.mark.parametrize("form", FORMS)
def test_experiments(folder: Path, capsys: pytest.CaptureFixture[str], form: Any) -> None:
    """A YAML or a folder that is no experiment."""
    (folder / "experiment.yml").write_bytes(form(Touches(folder / "mark")))
    assert "experiment.yml" in refused(capsys, "compare experiment.yml --out runs")
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "experiment.json").write_bytes(form(Touches(folder / "mark")))
    refused(capsys, "report runs -o page.html")
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("form", FORMS)
def test_tables(folder: Path, capsys: pytest.CaptureFixture[str], form: Any) -> None:
    """Tables of labels, which `import` refuses unread."""
    (folder / "labels.csv").write_text("structure_id,energy\na,1.0\n", encoding="utf-8")
    (folder / "labels.npz").write_bytes(form(Touches(folder / "mark")))
    refused(capsys, "import labels.csv --teacher X --store out")
    refused(capsys, "import labels.csv labels.npz --teacher X --store out")
    assert not (folder / "mark").exists()


TEACHERS = [
    pytest.param(f"{name} {key}={{}}", marks=pytest.mark.skipif(not there, reason=f"no {host}"))
    for name, key, host in (
        ("chgnet", "model", "chgnet"),
        ("chgnet+d3", "model", "chgnet"),
        ("eqv2", "checkpoint", "fairchem-core"),
        ("fairchem", "checkpoint", "fairchem-core"),
        ("sevenn", "model", "sevenn"),
    )
    for there in (is_installed(host),)
]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str], teacher: str) -> None:
    """By every command that takes a teacher, quoted or not; each names the file."""
    mark, spec = folder / "mark", teacher.format("theirs.pt")
    for form in FORMS:
        (folder / "theirs.pt").write_bytes(form(Touches(mark)))
        for words in ([spec], spec.split()):
            for line in (
                ["label", "train.extxyz", "--store", "out", "--teacher", *words],
                ["evaluate", "--reference", "train.extxyz", "--out", "o", "--student", *words],
                ["doctor", "--store", "targets", "--ask-teacher", *words],
            ):
                assert "theirs.pt" in refused(capsys, line)
                assert not mark.exists(), (form.__name__, line)


@pytest.mark.skipif(not is_installed("hippynn"), reason="no hippynn")
@pytest.mark.parametrize("name", ["experiment_structure.pt", "best_model.pt"])
def test_folders_of_hippynn(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Both of their files; tests/hippynn/test_folder.py has more."""
    (folder / "run").mkdir()
    torch.save({}, folder / "run" / "experiment_structure.pt")
    torch.save({}, folder / "run" / "best_model.pt")
    for form in FORMS:
        (folder / "run" / name).write_bytes(form(Touches(folder / "mark")))
        line = "evaluate --reference train.extxyz --out o --student hippynn folder=run"
        assert "run" in refused(capsys, line)
        assert not (folder / "mark").exists(), form.__name__


STRANGERS = [
    "chgnet model=theirs.pt",
    "chgnet model=theirs.pt trust_pickle=true",
    "eqv2 checkpoint=theirs.pt",
    "fairchem checkpoint=theirs.pt",
    "hippynn folder=run",
    "hippynn folder=run trust_pickle=true",
    "sevenn model=theirs.pt trust_pickle=true",
    "theirs:make",
    "os:system",
    "emt & theirs:make",
    "emt & chgnet model=theirs.pt",
    "emt asap_cutoff=true",
    "nowhere",
    "PFP v5.0.0 CRYSTAL",
    "",
    " ",
    "emt &",
    "'",
    "\x1b[31memt",
]


@pytest.mark.parametrize("made_by", STRANGERS)
def test_what_a_store_names_is_not_opened(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    """Neither by the doctor nor by any other command; the whole to type is shown."""
    mark = folder / "mark"
    (folder / "theirs.py").write_text(f"open({str(mark)!r}, 'w')", encoding="utf-8")
    (folder / "theirs.pt").write_bytes(torch_file(Touches(mark)))
    (folder / "run").mkdir()
    for name in ("experiment_structure.pt", "best_model.pt"):
        (folder / "run" / name).write_bytes(torch_file(Touches(mark)))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    manifest = folder / "targets" / "manifest.json"
    import json as plain

    held = plain.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(plain.dumps({**held, "teacher": made_by}), encoding="utf-8")

    complaint = refused(capsys, "doctor --labels train.extxyz --store targets --ask-teacher")
    if made_by.strip() and made_by.isprintable() and ("=" in made_by or ":" in made_by):
        assert "--ask-teacher" in complaint
        assert made_by in complaint
    assert "\x1b" not in complaint
    for line in (
        "verify targets",
        "doctor --labels train.extxyz --store targets",
        "doctor --labels train.extxyz --store targets --fix fixed",
        "export targets out.extxyz",
        "merge targets --into merged",
        "label train.extxyz --teacher emt --store targets",
    ):
        cli.main(line.split())
    assert not mark.exists()
    assert "theirs" not in sys.modules


def test_a_bare_installed_name_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `label --teacher emt` has written it."""
    code = cli.main(["doctor", "--labels", "train.extxyz", "--store", "targets", "--ask-teacher"])
    said = capsys.readouterr()
    assert "is neither" not in said.err and code in (0, 1)


def test_zip_bombs_and_duplicates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive that has two tables, one harmless."""
    if not is_installed("chgnet"):
        pytest.skip("no chgnet")
    mark, path = folder / "mark", folder / "theirs.pt"
    torch.save({"model": 1}, path)
    with zipfile.ZipFile(path) as archive:
        harmless = {name: archive.read(name) for name in archive.namelist()}
    evil = io.BytesIO(torch_file(Touches(mark)))
    with zipfile.ZipFile(evil) as archive:
        (pickled,) = (archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    for order in (False, True):
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
            for name, content in harmless.items():
                held = [content, pickled] if name.endswith("data.pkl") else [content]
                for one in held[::-1] if order else held:
                    archive.writestr(name, one)
        refused(
            capsys, "evaluate --reference train.extxyz --out o --student chgnet model=theirs.pt"
        )
        assert not mark.exists()
