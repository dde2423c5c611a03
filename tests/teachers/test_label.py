"""Labelling: the records it writes, how it resumes, and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT

from kd_plugins.store import ShardBusy, StoreError
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import (
    CalculatorTeacher,
    LabelReport,
    TeacherError,
    failures,
    label,
    load_teacher,
)
from tests.house import ROOT
from tests.teachers import fixtures


def quietly(
    folder: Path, frames: Iterator[LabelledStructure] | list[LabelledStructure], **settings: object
) -> LabelReport:
    """Label without a bar."""
    return label(frames, fixtures.SLOW_EMT, folder, progress=False, **settings)


def test_stored_targets_equal_the_calculator(tmp_path: Path) -> None:
    """To the precision of the store, for every quantity."""
    quietly(tmp_path / "store", fixtures.copper_cells(5))
    store = TargetStore.open(tmp_path / "store")
    assert set(store.manifest.dtypes) == {"energy", "forces", "stress", "atomic_energies"}
    for frame in fixtures.copper_cells(5):
        atoms, targets = frame.atoms, store[frame.structure_id].values
        atoms.calc = EMT()
        assert targets["energy"].item() == atoms.get_potential_energy()
        assert np.array_equal(targets["forces"].numpy(), atoms.get_forces().astype(np.float32))
        assert np.array_equal(targets["stress"][0].numpy(), atoms.get_stress().astype(np.float32))
        assert np.array_equal(targets["atomic_energies"].numpy(), atoms.get_potential_energies())
    assert store.verify() == []


def test_targets_do_not_depend_on_the_order_of_structures(tmp_path: Path) -> None:
    """A structure's targets are the same whatever the teacher labelled before."""
    frames = list(fixtures.copper_cells(12))
    quietly(tmp_path / "forwards", frames)
    quietly(tmp_path / "backwards", frames[::-1])
    assert fixtures.packed_records(tmp_path / "forwards") == fixtures.packed_records(
        tmp_path / "backwards"
    )


@pytest.mark.parametrize("engine", ["process", "ray"])
def test_engines_write_equal_records(tmp_path: Path, engine: str) -> None:
    """Content for content, failures included, whichever worker did it."""
    if engine == "ray":
        pytest.importorskip("ray")
    frames = [*fixtures.copper_cells(30), fixtures.crystal_of("Ag", "silver")]
    serial = quietly(tmp_path / "serial", frames)
    report = quietly(tmp_path / engine, frames, engine=engine, workers=2)
    assert fixtures.packed_records(tmp_path / engine) == fixtures.packed_records(
        tmp_path / "serial"
    )
    assert (report.labelled, report.failed) == (serial.labelled, serial.failed)
    # Of Ray's the first may have done all before the second runs.
    n_shards = len(list((tmp_path / engine).glob("*.lmdb")))
    assert n_shards == 2 or (n_shards == 1 and engine == "ray")


def test_labelled_ids_are_skipped(tmp_path: Path) -> None:
    """The second run does the rest only, with the store's own quantities."""
    quietly(tmp_path, fixtures.copper_cells(5), quantities=["energy"])
    report = quietly(tmp_path, fixtures.copper_cells(8))
    assert (report.labelled, report.skipped, report.failed) == (3, 5, {})
    assert set(TargetStore.open(tmp_path)["cu-7"].values) == {"energy"}


def test_failures_are_recorded_and_tried_again(tmp_path: Path) -> None:
    """With their reason and without stopping the run, until the structure is labelled."""
    broken = LabelledStructure("nowhere", molecule("H2"))
    broken.atoms.positions[0] = np.nan
    frames = [fixtures.crystal_of("Ag", "silver"), *fixtures.copper_cells(3), broken]
    for _ in range(2):
        report = quietly(tmp_path, frames)
        assert report.failed["silver"] == "RuntimeError: no silver"
        assert "positions holds NaN" in report.failed["nowhere"]
        assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 2
    assert len(TargetStore.open(tmp_path)) == 3
    quietly(tmp_path, [fixtures.crystal_of("Cu", "silver")])
    assert set(failures(TargetStore.open(tmp_path))) == {"nowhere"}


def test_structure_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    """It is found, tried twice and recorded; all others are labelled."""
    frames = [
        *fixtures.copper_cells(9),
        fixtures.crystal_of("Au", "gold"),
        *(fixtures.crystal_of("Cu", f"x{i}") for i in range(9)),
    ]
    report = quietly(tmp_path, frames, engine="process", workers=2)
    assert report.failed == {"gold": "its worker died, twice (out of memory?)"}
    assert len(TargetStore.open(tmp_path)) == report.labelled == 18


def test_workers_that_only_die_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_plugins.teachers.labelling.MOST_DEATHS", 2)
    deadly = [fixtures.crystal_of("Au", f"gold-{number}") for number in range(3)]
    with pytest.raises(TeacherError, match="workers died 3 times in a row: out of memory"):
        quietly(tmp_path, deadly, engine="process", workers=2)


def test_nan_from_the_teacher_is_a_failure(tmp_path: Path) -> None:
    class GivesNaN(EMT):
        """Gives NaN."""

        def calculate(self, *args: object, **kwargs: object) -> None:
            """Compute, then spoil one force."""
            super().calculate(*args, **kwargs)
            self.results["forces"][0, 0] = np.nan

    report = label(
        fixtures.copper_cells(2), CalculatorTeacher(GivesNaN()), tmp_path, progress=False
    )
    assert "forces: the teacher target of an atom of structure" in report.failed["cu-0"]
    assert len(TargetStore.open(tmp_path)) == 0


def test_stress_of_a_molecule_is_left_out(tmp_path: Path) -> None:
    label([LabelledStructure("water", molecule("H2O"))], "emt", tmp_path, progress=False)
    assert set(TargetStore.open(tmp_path)["water"].values) == {
        "energy",
        "forces",
        "atomic_energies",
    }


def test_one_id_for_two_structures_is_refused(tmp_path: Path) -> None:
    """Refused, in one batch and in another run; what was committed stays."""
    twice = [fixtures.crystal_of("Cu", "metal"), fixtures.crystal_of("Ni", "metal")]
    with pytest.raises(ValueError, match="'metal' stands for two structures: atom 0 is element 28"):
        quietly(tmp_path, twice)
    quietly(tmp_path, twice[:1])
    with pytest.raises(ValueError, match="'metal' is not the one that was labelled: atom 0"):
        quietly(tmp_path, twice[1:])
    assert list(TargetStore.open(tmp_path).ids()) == ["metal"]
    assert quietly(tmp_path, [twice[0], twice[0]]).skipped == 2


def test_refusals_leave_no_store(tmp_path: Path) -> None:
    """A quantity that the teacher lacks or nobody knows, no name for a parallel engine."""
    cases = [
        ({"quantities": ["node_embeddings"]}, TeacherError, "gives no 'node_embeddings'; it gives"),
        ({"quantities": ["enrgy"]}, KeyError, "did you mean 'energy'"),
        ({"quantities": []}, TeacherError, "expected one or more different names"),
        ({"quantities": {"energy": "float8"}}, ValueError, "unknown dtype 'float8'"),
        ({"workers": 0}, ValueError, "workers: engine 'serial' cannot have 0"),
        ({"workers": 2}, ValueError, "workers: engine 'serial' cannot have 2"),
    ]
    for settings, error, message in cases:
        with pytest.raises(error, match=message):
            quietly(tmp_path / "store", fixtures.copper_cells(1), **settings)
    with pytest.raises(TeacherError, match="give the teacher by name"):
        label(fixtures.copper_cells(1), load_teacher("emt"), tmp_path / "store", engine="process")
    assert not (tmp_path / "store").exists()


def test_structures_by_their_old_keyword(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="label: the argument frames is structures now"):
        report = label(
            frames=fixtures.copper_cells(1), teacher="emt", store=tmp_path, progress=False
        )
    assert report.labelled == 1


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    """One store holds one teacher's targets."""
    quietly(tmp_path, fixtures.copper_cells(1))
    with pytest.raises(StoreError, match="was made with another teacher"):
        label(fixtures.copper_cells(2), "emt", tmp_path, progress=False)


def test_run_survives_150_failures(tmp_path: Path) -> None:
    frames = [
        *(fixtures.crystal_of("Ag", f"ag-{index}") for index in range(150)),
        fixtures.crystal_of("Cu", "cu"),
    ]
    report = quietly(tmp_path, frames)
    assert (report.labelled, len(report.failed)) == (1, 150)


def test_store_without_records_accepts_other_quantities(tmp_path: Path) -> None:
    """A quantity that the calculator lists but does not compute leaves an empty store."""
    with pytest.raises(TeacherError, match="promises but does not give"):
        quietly(tmp_path, fixtures.copper_cells(1), quantities=["magmoms"])
    assert quietly(tmp_path, fixtures.copper_cells(1), quantities=["energy"]).labelled == 1


def test_other_versions_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When a store made with others is added to."""
    quietly(tmp_path, fixtures.copper_cells(1))
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    content["versions"]["ase"] = "3.0.0"
    path.write_text(json.dumps(content))
    quietly(tmp_path, fixtures.copper_cells(2))
    assert "the store was made with ase 3.0.0, now" in caplog.text


@pytest.mark.parametrize("engine", ["process", "ray"])
def test_worker_that_cannot_start_ends_the_run(tmp_path: Path, engine: str) -> None:
    """With the worker's reason, and without starting it again."""
    if engine == "ray":
        pytest.importorskip("ray")
    name = f"tests.teachers.test_label:only_here process={os.getpid()}"
    with pytest.raises(TeacherError, match="cannot be made: RuntimeError: no licence"):
        label(fixtures.copper_cells(2), name, tmp_path, engine=engine, workers=2, progress=False)


def only_here(process: int) -> EMT:
    """Return a calculator, in one process only."""
    if process != os.getpid():
        raise RuntimeError("no licence")
    return EMT()


def test_second_labeller_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused while the first is at work."""
    monkeypatch.setattr("kd_plugins.teachers.labelling.PATIENCE", 0.0)
    quietly(tmp_path, fixtures.copper_cells(1))
    store = TargetStore.open(tmp_path)
    with store.only_writer(), pytest.raises(ShardBusy, match="being written by another command"):
        quietly(tmp_path, fixtures.copper_cells(2))
    with store.writer("worker-0"):
        pass
    with (
        store.writer("worker-0"),
        pytest.raises(ShardBusy, match=r"worker-0.lmdb is being written"),
    ):
        quietly(tmp_path, fixtures.copper_cells(2))
    assert quietly(tmp_path, fixtures.copper_cells(2)).labelled == 1


def in_a_small_world(script: str, folder: Path) -> str:
    """Run a shell script that may mount, in namespaces of its own; return what it prints."""
    words = ["unshare", "-Urm", "sh", "-ec", script, "sh", sys.executable, str(folder)]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"]).returncode:
        pytest.skip("mounting in a namespace of one's own is not allowed here")
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout + done.stderr


MAIN = 'from kd_plugins.cli import main; print("code", main())'


def test_full_disk_is_one_error_and_resumes(tmp_path: Path) -> None:
    """What was committed is whole, and with more room the same command labels the rest."""
    (tmp_path / "disk").mkdir()
    structures = tmp_path / "copper.extxyz"
    fixtures.write_copper_cells(structures, 300)
    label_it = f'"$1" -c \'{MAIN}\' label {structures} --teacher emt --store "$2/store"'
    verify = f'"$1" -c \'{MAIN}\' verify "$2/store"'
    output = in_a_small_world(
        f"""
        mount -t tmpfs -o size=256k tmpfs "$2"
        {label_it}; {verify}
        mount -o remount,size=8m "$2"
        {label_it}; {verify}
        """,
        tmp_path / "disk",
    )
    assert "could not be written" in output
    assert "make room and go on" in output
    assert output.count("every record is whole") == 2
    assert [line for line in output.splitlines() if line.startswith("code")] == [
        *("code 2", "code 0", "code 0", "code 0")
    ]
    assert "structures:  300" in output


def test_read_only_folder_is_one_error(tmp_path: Path) -> None:
    """It is read as ever; labelling into it is one error, and nothing changes."""
    fixtures.write_copper_cells(tmp_path / "copper.extxyz", 3)
    quietly(tmp_path / "store", fixtures.copper_cells(2))
    before = fixtures.packed_records(tmp_path / "store")
    output = in_a_small_world(
        f"""
        mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"
        "$1" -c '{MAIN}' label {tmp_path}/copper.extxyz --teacher {fixtures.SLOW_EMT} --store "$2"
        "$1" -c '{MAIN}' verify "$2"
        """,
        tmp_path / "store",
    )
    assert "cannot be written: Read-only file system" in output
    assert "code 2" in output
    assert "every record is whole" in output
    assert fixtures.packed_records(tmp_path / "store") == before


def test_manifest_names_teacher_versions_units_and_dtypes(tmp_path: Path) -> None:
    """Teacher, fingerprint, versions, units and precision, for whoever opens it in five years."""
    quietly(
        tmp_path, fixtures.copper_cells(1), quantities={"energy": "float64", "forces": "float16"}
    )
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["teacher"] == fixtures.SLOW_EMT
    assert "SlowEMT" in content["fingerprint"]
    assert {"ase", "torch", "numpy"} <= set(content["versions"])
    assert content["units"] == {"energy": "eV", "forces": "eV/Å"}
    assert content["dtypes"] == {"energy": "float64", "forces": "float16"}
    assert "receptive_field" not in content


def test_manifest_has_the_receptive_field_of_a_teacher_that_has_one(tmp_path: Path) -> None:
    near = EMT()
    near.receptive_field = 5.5
    label(fixtures.copper_cells(1), CalculatorTeacher(near), tmp_path, progress=False)
    assert TargetStore.open(tmp_path).manifest.receptive_field == 5.5
