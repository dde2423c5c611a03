"""Files that torch.save wrote: read without running anything, and named for what they are."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_plugins.torch_files import load_torch_file, pickled_names

REMEDY = "set trust_pickle: true"


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def load(path: Path, trust: bool = False):
    return load_torch_file(path, trust_pickle=trust, remedy=REMEDY)


PLAIN = {
    "state": OrderedDict(w=torch.ones(3), h=torch.ones(2).half(), e=torch.empty(0)),
    "numbers": [1, 2.5, None, True, "text", (1, 2)],
    "parameter": torch.nn.Parameter(torch.zeros(2)),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_plain_tensors_are_read(tmp_path: Path, zipped: bool) -> None:
    """In both of torch's formats."""
    torch.save(PLAIN, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = load(tmp_path / "a.pt")
    assert found["numbers"] == PLAIN["numbers"]
    assert torch.equal(found["state"]["w"], PLAIN["state"]["w"])


def test_home_is_expanded(tmp_path: Path, monkeypatch) -> None:
    """A path may begin with ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"a": 1}, tmp_path / "a.pt")
    assert load(Path("~/a.pt")) == {"a": 1}


def _zip(content, path: Path) -> None:
    torch.save(content, path)


def _older(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _protocol(content, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


@pytest.mark.parametrize("save", [_zip, _older, _protocol])
@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: {"a": [one], **PLAIN}])
def test_pickled_code_is_named_and_not_run(tmp_path: Path, save, wrap) -> None:
    """One error with the function's name and what to do if it is trusted; then it runs."""
    path, mark = tmp_path / "a.pt", tmp_path / "mark"
    save(wrap(Touches(mark)), path)
    with pytest.raises(ValueError, match="a.pt: holds more than plain tensors") as caught:
        load(path)
    assert "posix.system" in str(caught.value)
    assert str(caught.value).endswith(REMEDY)
    assert not mark.exists()

    load(path, trust=True)
    assert mark.exists()


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("trust", [False, True])
def test_a_bare_pickle_is_never_run(tmp_path: Path, protocol: int, trust: bool) -> None:
    """It is no torch file, so that trusting it would give nothing."""
    mark = tmp_path / "mark"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Touches(mark), protocol))
    with pytest.raises(ValueError, match=r"a.pt: is a bare pickle, of posix.system") as caught:
        load(tmp_path / "a.pt", trust)
    assert REMEDY not in str(caught.value)
    assert not mark.exists()


class Scripted(torch.nn.Module):
    """The least that TorchScript takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what came."""
        return x


def test_torchscript_is_refused(tmp_path: Path) -> None:
    """torch 2.4 would hand it to torch.jit, weights only or not."""
    torch.jit.script(Scripted()).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: is a TorchScript archive, which is code"):
        load(tmp_path / "a.pt")


def test_the_tar_format_is_refused(tmp_path: Path) -> None:
    """torch before 2.6 runs pickles of it, weights only or not."""
    mark = tmp_path / "mark"
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Touches(mark), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(ValueError, match="a.pt: is in torch's oldest format, a tar file"):
        load(tmp_path / "a.pt")
    assert not mark.exists()


def _saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(PLAIN, buffer)
    return buffer.getvalue()


def _older_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(PLAIN, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _repacked() -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_saved())) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def _zip_of(**content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, one in content.items():
            archive.writestr(name, one)
    return buffer.getvalue()


def _without_storage() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved())) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if not name.endswith("data/0"):
                new.writestr(name, old.read(name))
    return buffer.getvalue()


WRONG = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "its first 512 bytes are zero"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", r"is a web page \(HTML\)"),
    "HTML after a mark": (b"\xef\xbb\xbf \n<HTML lang='en'>", r"is a web page \(HTML\)"),
    "HTML after a comment": (b"<!-- saved -->\n<html>", r"is a web page \(HTML\)"),
    "XML": (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', r"is a web page \(HTML\)"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "text": (b"Not found", "is text, beginning with 'Not found'"),
    "JSON": (b'{"error": "no access"}', "is text, beginning with"),
    "noise": (bytes(range(1, 256)) * 8, "is no torch file"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(60), "is compressed with gzip"),
    "safetensors": ((64).to_bytes(8, "little") + b'{"a": 1}'.ljust(64), "safetensors"),
    "npz": (_zip_of(**{"a.npy": b"123"}), "is a zip archive of something else"),
    "cut short": (_saved()[:-200], "is cut short"),
    "cut to a head": (_saved()[:40], "is cut short"),
    "older, cut short": (_older_saved()[:-30], "is damaged"),
    "older, cut early": (_older_saved()[:60], "is damaged"),
    "compressed": (_repacked(), "compressed parts"),
    "a part missing": (_without_storage(), "is damaged"),
    "a pickle of nothing": (pickle.dumps({"a": 1}), "is no torch file"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("trust", [False, True])
def test_what_is_no_torch_file_is_named(tmp_path: Path, name: str, trust: bool) -> None:
    """And nobody is told to trust it."""
    content, expected = WRONG[name]
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt: .*{'' if trust else expected}") as caught:
        load(tmp_path / "a.pt", trust)
    assert "trust" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_locked_files_are_named(tmp_path: Path) -> None:
    """Each as its own kind of error."""
    with pytest.raises(FileNotFoundError, match="a.pt: no such file"):
        load(tmp_path / "a.pt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: is no ordinary file"):
        load(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_file_is_named(tmp_path: Path) -> None:
    """It is not taken for a damaged one."""
    torch.save(PLAIN, tmp_path / "a.pt")
    (tmp_path / "a.pt").chmod(0)
    with pytest.raises(PermissionError, match="a.pt: may not be read"):
        load(tmp_path / "a.pt")


def test_every_cut_is_one_error(tmp_path: Path) -> None:
    """Whatever the length, no other exception comes through."""
    for content in (_saved(), _older_saved()):
        for length in range(0, len(content) - 1, 37):
            (tmp_path / "a.pt").write_bytes(content[:length])
            with pytest.raises(ValueError, match="a.pt: ") as caught:
                load(tmp_path / "a.pt")
            assert "trust" not in str(caught.value), length


def test_changed_bytes_are_an_error_or_plain(tmp_path: Path) -> None:
    """No byte of a file turns into another kind of exception."""
    random = np.random.default_rng(0)
    for content in (_saved(), _older_saved()):
        for _ in range(200):
            changed = bytearray(content)
            changed[random.integers(len(content))] ^= 1 << int(random.integers(8))
            (tmp_path / "a.pt").write_bytes(changed)
            try:
                load(tmp_path / "a.pt")
            except ValueError as error:
                assert str(error).startswith(f"{tmp_path / 'a.pt'}: ")


def test_names_are_found_whatever_the_protocol(tmp_path: Path) -> None:
    """Without making anything."""
    for protocol in range(2, 5):
        torch.save({"a": Touches(tmp_path / "mark")}, tmp_path / "a.pt", pickle_protocol=protocol)
        assert list(pickled_names(tmp_path / "a.pt")) == ["posix.system"]
    assert not (tmp_path / "mark").exists()
