"""A pool is whole or not there, and one that was stopped ends as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from kd_plugins.cli import main
from kd_plugins.files import FolderInUse, folder_lock
from kd_plugins.sampling import MolecularDynamics, Sampling, Strain, pool, sample, write_pool
from kd_plugins.sampling.sampler import Sampler
from kd_plugins.structures import LabelledStructure, read_structures
from tests.hosts import in_one_environment

pytestmark = in_one_environment

COPPER = LabelledStructure("cu 1", bulk("Cu", cubic=True))
SETTINGS = Sampling(
    strain=Strain(3), md=MolecularDynamics(4, (1500, 800), interval=3, equilibration=5)
)


def make(path: Path, settings: Sampling = SETTINGS, seed: int = 0) -> bytes:
    """Make a pool, or go on with one."""
    write_pool([COPPER], path, settings, seed, "emt", progress=False)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("whole") / "pool.extxyz")


def test_pool_is_read_back_as_it_was_sampled(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "pool.extxyz").write_bytes(whole)
    read = list(read_structures([tmp_path / "pool.extxyz"]))
    made = list(sample([COPPER], SETTINGS, 0, "emt"))

    assert [one.structure_id for one in read] == [one.structure_id for one in made]
    for one, two in zip(read, made, strict=True):
        assert np.allclose(one.atoms.positions, two.atoms.positions, atol=1e-8)
        assert {key: str(one.atoms.info[key]) for key in two.atoms.info} == {
            key: str(value) for key, value in two.atoms.info.items()
        }


@pytest.mark.parametrize("stop", range(8))
def test_stopped_pool_ends_as_an_uninterrupted_one(
    tmp_path: Path, whole: bytes, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Sampler.draws

    def stopping(self, progress=None):  # type: ignore[no-untyped-def]
        for structure, reached in draws(self, progress):
            if reached.structures > stop:
                raise KeyboardInterrupt
            yield structure, reached
        raise KeyboardInterrupt

    path = tmp_path / "pool.extxyz"
    monkeypatch.setattr(pool, "SECONDS_TO_LOSE", 0.3 * (stop % 2))
    monkeypatch.setattr(Sampler, "draws", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(path)
    assert not path.exists()
    # A frame that was begun and not noted is made again.
    with (tmp_path / "pool.extxyz.partial" / "structures.extxyz").open("ab") as file:
        file.write(b"4\nLattice=")
    monkeypatch.undo()

    assert make(path) == whole
    assert sorted(one.name for one in tmp_path.iterdir()) == ["pool.extxyz", "pool.settings.json"]


def test_killed_command_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "s.yml").write_text("md: {equilibration: 20, count: 8, temperatures: [900, 500]}")
    words = ["sample", str(tmp_path / "cu.extxyz"), "--settings", str(tmp_path / "s.yml")]
    words += ["--potential", "emt", "--strain", "2"]
    b = [*words, "--out", str(tmp_path / "b.extxyz")]
    code = f"from kd_plugins.cli import main; raise SystemExit(main({b!r}))"

    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    made = tmp_path / "b.extxyz.partial" / "structures.extxyz"
    deadline = time.monotonic() + 60
    # Two strained cells and the first snapshots.
    while not made.exists() or made.read_bytes().count(b"method=md") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert not (tmp_path / "b.extxyz").exists()
    assert main(b) == 0
    assert main([*words, "--out", str(tmp_path / "a.extxyz")]) == 0
    assert (tmp_path / "a.extxyz").read_bytes() == (tmp_path / "b.extxyz").read_bytes()


def test_same_call_again_changes_nothing(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "pool.extxyz"
    assert make(path) == whole
    before = path.stat().st_mtime_ns
    assert make(path) == whole and path.stat().st_mtime_ns == before


def test_other_calls_are_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "pool.extxyz"
    before = make(path)
    with pytest.raises(ValueError, match=r"made by another call: seed was 0 and is 1 now"):
        make(path, seed=1)
    with pytest.raises(ValueError, match=r"settings\.md\.interval was 3 and is 4 now"):
        make(path, replace(SETTINGS, md=replace(SETTINGS.md, interval=4)))
    path.write_bytes(before + b" ")
    with pytest.raises(ValueError, match=r"is no pool that pool\.settings\.json describes"):
        make(path)
    assert path.read_bytes() == before + b" "


def test_half_made_pool_of_another_call_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self, progress=None):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    path = tmp_path / "pool.extxyz"
    monkeypatch.setattr(Sampler, "draws", stop)
    with pytest.raises(KeyboardInterrupt):
        make(path)
    with pytest.raises(ValueError, match=r"half-made pool of another call: seed was 0 and is 3"):
        make(path, seed=3)
    monkeypatch.undo()
    with folder_lock(tmp_path / "pool.extxyz.partial", "sample"), pytest.raises(FolderInUse):
        make(path)


def test_two_hundred_cells_take_seconds(tmp_path: Path) -> None:
    settings = Sampling(atoms=32, strain=Strain(200))
    start = time.process_time()
    write_pool([COPPER], tmp_path / "pool.extxyz", settings, 0, progress=False)
    assert time.process_time() - start < 4
