"""One training a folder, checkpoints that are whole, and sentences for what is not."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kd_plugins.chgnet import CachedData, DistillData, DistillTrainer, FitSettings, FrozenTrunk
from kd_plugins.chgnet.run_folder import (
    check_not_in_use,
    check_run_folder,
    lock_run_folder,
    write_checkpoint,
)
from tests.chgnet import fixtures
from tests.chgnet.test_distill import LOADS, prefer, run
from tests.house import ROOT

# The lock itself, without torch and CHGNet, whose import takes seconds.
HOLDS = """
import sys, time
from pathlib import Path
from kd_plugins.files import folder_lock

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
with folder_lock(folder, "run"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process train in a folder, as far as its lock goes."""
    words = [sys.executable, "-W", "ignore", "-c", HOLDS, str(folder)]
    other = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    assert other.stdout is not None

    try:
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(data: DistillData, folder: Path) -> None:
    made = fixtures.trainer(epochs=1)
    made.train(fixtures.loader(data, 2), fixtures.loader(data, 2), save_dir=folder / "out")


def featured(data: DistillData, folder: Path) -> None:
    fixtures.fitted(data, folder / "cache", folder / "out", epochs=1)


def distilled(data: DistillData, folder: Path) -> None:
    run(data, folder, settings=FitSettings(epochs=1, batch_size=2))


@pytest.mark.parametrize("way", [trained, featured, distilled])
def test_a_second_training_is_refused_and_the_lock_of_a_killed_one_is_free(
    data: DistillData, tmp_path: Path, way: Callable[[DistillData, Path], None]
) -> None:
    part = data.part([0, 1])
    with held_by_another(tmp_path / "out") as other:
        before = contents(tmp_path / "out")
        with pytest.raises(FileExistsError, match="out: another training is writing there"):
            way(part, tmp_path)
        assert contents(tmp_path / "out") == before

        other.send_signal(signal.SIGKILL)
        other.wait()
        way(part, tmp_path)
    assert (tmp_path / "out" / "last.pth.tar").exists()


def test_the_lock_is_reentrant_and_freed(tmp_path: Path) -> None:
    check_not_in_use(tmp_path / "out")
    assert not (tmp_path / "out").exists()

    for _ in range(2):
        with lock_run_folder(tmp_path / "out"), lock_run_folder(tmp_path / "out" / ".." / "out"):
            check_not_in_use(tmp_path / "out")

    with held_by_another(tmp_path / "out"), pytest.raises(FileExistsError):
        check_not_in_use(tmp_path / "out")


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("way", ["plain", "cached"])
@pytest.mark.parametrize("left", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_sentence(
    data: DistillData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    left: float,
) -> None:
    prefer(monkeypatch, way)
    part = data.part([0, 1])
    distilled(part, tmp_path)
    last = tmp_path / "out" / "last.pth.tar"
    whole = last.read_bytes()
    last.write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    before = contents(tmp_path)

    with pytest.raises(ValueError, match=f"{last}: .*; to train anew, remove {last}$"):
        distilled(part, tmp_path)
    with pytest.raises(ValueError, match=f"{last}: .*; to train anew, remove {last}$"):
        DistillTrainer.load(last)
    assert contents(tmp_path) == before

    last.write_bytes(whole)
    distilled(part, tmp_path)


@pytest.mark.filterwarnings(LOADS)
def test_a_checkpoint_that_lacks_something_is_named(data: DistillData, tmp_path: Path) -> None:
    part = data.part([0, 1])
    for way, lost in ((trained, "best"), (featured, "optimizer")):
        folder = tmp_path / way.__name__
        way(part, folder)
        last = folder / "out" / "last.pth.tar"
        state = torch.load(last, weights_only=True)
        del state.get("distillation", state)[lost]
        torch.save(state, last)

        with pytest.raises(ValueError, match="last.pth.tar: is damaged .*remove it"):
            DistillTrainer.load(last) if way is trained else way(part, folder)
    for other in ([1.0], {"weights": 1.0}):
        torch.save(other, tmp_path / "other.pth.tar")
        with pytest.raises(ValueError, match="other.pth.tar: holds no model.*remove"):
            DistillTrainer.load(tmp_path / "other.pth.tar")


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond some bytes; what is written beyond is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(
    data: DistillData, tmp_path: Path
) -> None:
    path = tmp_path / "last.pth.tar"
    write_checkpoint(path, {"model": {}})
    before = contents(tmp_path)
    big = {"model": {"weights": torch.zeros(100_000)}}

    with full_disk(50_000), pytest.raises(OSError, match=f"{path}: could not be written .*room"):
        write_checkpoint(path, big)
    assert contents(tmp_path) == before

    trunk, part = FrozenTrunk(fixtures.frozen()), data.part([0, 1])
    with full_disk(1_000), pytest.raises(OSError, match="safetensors: could not be written .*room"):
        CachedData(part, trunk, tmp_path / "cache", progress=False)
    assert contents(tmp_path / "cache") == {}

    with full_disk(50_000), pytest.raises(OSError, match="last.pth.tar: could not be written"):
        trained(part, tmp_path)
    assert not list((tmp_path / "out").glob("*.tar*"))

    trained(part, tmp_path)


def test_chgnets_own_files_are_not_left_half_written(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = importlib.import_module("chgnet.trainer.trainer")

    def copy(source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", source)

    with monkeypatch.context() as patch:
        patch.setattr(host.shutil, "copyfile", copy)
        with pytest.raises(OSError, match="files of epoch 0 could not be written .No space"):
            trained(data.part([0, 1]), tmp_path)

    assert not list((tmp_path / "out").glob("bestE*"))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a file": (lambda p: p / "file", NotADirectoryError, "out: .*file is a file"),
    "in a file": (lambda p: p / "file" / "run", NotADirectoryError, "out: .*file is a file"),
    "nothing": (lambda p: "", ValueError, "out: expected the path of a folder, got ''"),
    "a number": (lambda p: 3, ValueError, "out: expected the path of a folder, got 3"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_are_refused(data: DistillData, tmp_path: Path, name: str) -> None:
    folder, error, message = BAD_FOLDERS[name]
    (tmp_path / "file").write_text("x")

    with pytest.raises(error, match=message):
        check_run_folder(folder(tmp_path), "out")
    with pytest.raises(error, match=message.replace("out:", "save_dir:")):
        made = fixtures.trainer()
        made.train(fixtures.loader(data, 2), fixtures.loader(data, 2), save_dir=folder(tmp_path))
    with pytest.raises(error, match=message):
        run(data, tmp_path, out=folder(tmp_path))
    with pytest.raises(error, match=message.replace("out:", "cache:")):
        run(data, tmp_path, cache=folder(tmp_path))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="may not be written"):
        check_run_folder(tmp_path / "out", "out")


def test_home_is_expanded(
    data: DistillData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prefer(monkeypatch, "cached")
    run(data.part([0, 1]), tmp_path, out="~/out", cache="~/cache")

    assert (tmp_path / "out" / "best.pth.tar").exists()
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert not Path("~").exists()
