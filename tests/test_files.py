"""Files of our own: whole or not there, and read strictly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_plugins.files import FolderInUse, folder_lock, read_json, write_bytes, write_json


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[1]", "expected a mapping, got a list"),
        (b"null", "expected a mapping, got a NoneType"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1e400}', "1e400 is not a number"),
        (b'{"a": ' + b"9" * 400 + b"}", "the integer 99999999999999999999... of 400 digits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "of 5000 digits is beyond 64 bits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_record(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: .*{says}"):
        read_json(path)


def test_the_file_of_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was there before stays."""
    path = write_json(tmp_path / "a.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        write_bytes(path, b"b")
    assert read_json(path) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_text_that_is_no_unicode_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json: .*caf.udce9.* is not Unicode"):
        write_json(tmp_path / "a.json", {"file": "caf\udce9"})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_locked_for_every_other_process(tmp_path: Path) -> None:
    """By work of the same name only, and until the process ends, however it does."""
    code = """
import sys
from pathlib import Path
from kd_plugins.files import folder_lock
with folder_lock(Path(sys.argv[1]), "training"):
    print("locked", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        with (
            pytest.raises(FolderInUse, match=r"another process holds training\.writer; wait"),
            folder_lock(tmp_path, "training"),
        ):
            pass
        with folder_lock(tmp_path, "evaluation"):
            pass
    finally:
        other.kill()
        other.communicate()
    with folder_lock(tmp_path, "training"):
        pass


def test_a_shared_lock_keeps_only_exclusive_ones_out(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "reading", shared=True):
        with folder_lock(tmp_path, "reading", shared=True):
            pass
        with pytest.raises(FolderInUse), folder_lock(tmp_path, "reading", patience=0.05):
            pass
    with folder_lock(tmp_path, "reading"):
        pass


def test_a_missing_folder_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), folder_lock(tmp_path / "nowhere", "training"):
        pass
