"""Checkpoints are whole or not there, and one that cannot be used is named."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpointing import CheckpointError
from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2
from tests.fairchem.test_refusals import Code

Settings = dict[str, Any]


def full_at(name: str, error: Exception) -> Callable[..., None]:
    """Return a `torch.save` for which the disk is full in the middle of files of a name."""
    write = torch.save

    def save(state: Any, file: Any, *words: Any, **named: Any) -> None:
        path = Path(file if isinstance(file, str) else file.name)
        if path.name.startswith(name):
            path.write_bytes(b"half")
            raise error
        write(state, file, *words, **named)

    return save


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
OF_TORCH = RuntimeError(
    "[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed write"
)


@pytest.mark.parametrize("name", ["kd_checkpoint", "checkpoint", "kd_step_state"])
@pytest.mark.parametrize("error", [NO_SPACE, OF_TORCH], ids=["disk", "torch"])
def test_a_full_disk(
    make_config: Callable[..., Settings],
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Exception,
) -> None:
    """Ends the run in one sentence with the file; what was there before is whole, and resumes."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))
    tiny.run(settings)
    folder = Path(settings["run_dir"]) / "checkpoints" / "run"
    before = {path.name: path.read_bytes() for path in folder.glob("*checkpoint.pt")}
    settings["optim"].update(max_epochs=2, checkpoint_every=1, eval_every=3)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_at(name, error))
        with pytest.raises(CheckpointError, match=rf"{name}\S* could not be written"):
            tiny.run(settings)
    assert not list(folder.glob("*partial*"))
    if name != "kd_step_state":  # which is written after the next checkpoint is whole
        assert {path.name: path.read_bytes() for path in folder.glob("*checkpoint.pt")} == before
    assert tiny.run(settings, lambda trainer: trainer.step) == 6


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def web_page(path: Path) -> None:
    """Put what a failed download leaves."""
    path.write_text("<!DOCTYPE html><html><body>Not found</body></html>")


def of_another_size(path: Path) -> None:
    """Take a layer away."""
    state = tiny.load(path)
    state["state_dict"] = {k: v for k, v in state["state_dict"].items() if ".blocks.1." not in k}
    torch.save(state, path)


def of_another_kind(path: Path) -> None:
    """Put a file of tensors that no trainer wrote."""
    torch.save({"model": torch.ones(3)}, path)


def with_code(path: Path) -> None:
    """Add an object that runs code when it is read."""
    torch.save({**tiny.load(path), "extra": Code()}, path)


def with_another_file(path: Path) -> None:
    """Name a file of scale factors, which fairchem would unpickle."""
    torch.save({**tiny.load(path), "scale_dict": "scales.pt"}, path)


BAD = {
    "another file": ("checkpoint.pt", with_another_file, "scale_dict: expected numbers by name"),
    "cut": ("checkpoint.pt", cut, r"checkpoint .*checkpoint.pt: is (cut short|damaged)"),
    "a web page": ("checkpoint.pt", web_page, "checkpoint.pt: is a web page"),
    "empty": ("checkpoint.pt", lambda path: path.write_bytes(b""), "checkpoint.pt: is empty"),
    "another model": ("checkpoint.pt", of_another_size, "checkpoint.pt does not fit this run"),
    "another kind": (
        "checkpoint.pt",
        of_another_kind,
        "not of a fairchem trainer, it has no state",
    ),
    "code": ("checkpoint.pt", with_code, "set task.distill.student.trust_pickle: true"),
    "what lies beside it": ("kd_checkpoint.pt", cut, "kd_checkpoint.pt: is (cut short|damaged)"),
    "the random state": ("kd_step_state_rank0.pt", cut, "rank0.pt: is (cut short|damaged)"),
}


@pytest.fixture(scope="module")
def finished(
    teacher: Path, databases: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    settings = tiny.config(folder, *databases, trainer=EQV2, task=tiny.distill(teacher))
    settings["optim"].update(checkpoint_every=2)
    tiny.run(settings)
    return folder / "checkpoints" / "run"


@pytest.mark.parametrize(("name", "change", "message"), BAD.values(), ids=BAD.keys())
def test_files_that_cannot_be_resumed_from(
    make_config: Callable[..., Settings],
    teacher: Path,
    finished: Path,
    name: str,
    change: Callable[[Path], Any],
    message: str,
) -> None:
    """Are named with what is wrong; nothing is trained anew."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))
    folder = Path(settings["run_dir"]) / "checkpoints" / "run"
    shutil.copytree(finished, folder)
    change(folder / name)
    before = (folder / name).read_bytes()
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)
    assert (folder / name).read_bytes() == before


def test_a_checkpoint_that_is_not_there(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """Is named as the option has it."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher), checkpoint="nowhere.pt")
    with pytest.raises(ConfigError, match="--checkpoint: there is no file 'nowhere.pt'"):
        tiny.run(settings)


def test_code_that_is_trusted(make_config: Callable[..., Settings], teacher: Path) -> None:
    """The way out that the error names works; a checkpoint of the plain host starts a student."""
    settings = make_config()
    tiny.run(settings)
    path = Path(settings["run_dir"]) / "checkpoints" / "run" / "checkpoint.pt"
    with_code(path)
    student = {"initialize": "scratch", "trust_pickle": True}
    task = tiny.distill(teacher, student=student)
    settings.update(trainer=EQV2, task=task, checkpoint=str(path), timestamp_id="next")
    settings["optim"]["max_epochs"] = 2
    assert tiny.run(settings, lambda trainer: trainer.step) == 6
