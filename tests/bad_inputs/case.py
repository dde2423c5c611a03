"""One bad input, how it is given, and what the refusal must say; `complaint` judges the refusal.

A refusal is clear if it is one message of a few lines that holds the words of the case, comes from
our own code, is no traceback, has an exit code that is not 0, and leaves every file as it was.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib
import io
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_plugins.store.store import StoreError
from kd_plugins.teachers import TeacherError

COMMANDS = {
    "kd-plugins": "kd_plugins.cli",
    "kd-chgnet": "kd_plugins.chgnet.__main__",
    "kd-fairchem": "kd_plugins.fairchem.__main__",
}
"""First word of a call to the module whose ``main`` takes the others."""
PARTS = {"chgnet": ("command",), "hippynn": ("calculator", "targets"), "fairchem": ("trainer",)}
"""Of each host's adapter, what imports all of it."""
KINDS = (StoreError, TeacherError, ValueError, KeyError, TypeError, OSError, ImportError)
"""Exceptions that a user may meet; TypeError only where our own code raises it."""
LOCKS = ("*.lmdb-lock", "*.writer", "*.lmdb.written")
"""Locks, which hold nothing, and the journal in which a store notes how it looked when read."""
ACCEPTED = "accepted"
"""What is answered where nothing is refused."""
LONGEST, MOST_LINES = 900, 6
PATIENCE = 60
"""Seconds that a case may take."""
OURS = os.sep + "kd_plugins" + os.sep


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        name: of the test.
        call: a command line that begins with one of `COMMANDS`, or Python.
        says: what the message must hold; ``a|b`` is one or the other.
        files: written, or in place of those that are there, before the call; a function gets the
            path and does the damage itself, and None takes a file away.
        code: exit code of a command, or those that it may have.
        leaves: patterns of files that may be new or changed all the same.
        needs: host that must be installed.
    """

    name: str
    call: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes | Callable[[Path], object] | None] = field(default_factory=dict)
    code: int | tuple[int, ...] = 2
    leaves: tuple[str, ...] = ()
    needs: str | None = None


def complaint(case: Case, names: Mapping[str, Any]) -> str | None:
    """Run a case in the current folder; return why its refusal is not clear, None if it is.

    Args:
        case: the bad input.
        names: of the Python of a case.
    """
    found = answered(case, names)
    return "accepted in silence" if found == ACCEPTED else found


def answered(case: Case, names: Mapping[str, Any]) -> str | None:
    """Return None for a clear refusal, `ACCEPTED` for none, and else what is wrong with it."""
    _write(case)
    before = snapshot(Path.cwd())
    command = case.call.partition(" ")[0] in COMMANDS
    if case.needs:
        _imported(case.needs)
    with _in_time(), _quiet() as said:
        problem, message = _command(case, said) if command else _python(case.call, dict(names))
    most_lines = MOST_LINES if case.code == 2 else 10 * MOST_LINES  # 1 comes after results
    return problem or unclear(message, case.says, most_lines) or _left(case, before)


def unclear(message: str, says: tuple[str, ...] = (), most_lines: int = MOST_LINES) -> str | None:
    """Return what is wrong with a message, None if nothing is."""
    missing = [
        words for words in says if not any(word in message for word in words.split("|") if word)
    ]
    if missing:
        return f"does not say {', '.join(map(repr, missing))}: {message[:600]!r}"
    n_lines = len(message.strip().splitlines())
    if " errors in " in message.partition("\n")[0]:
        most_lines *= 3  # a YAML's, each on its line
    if n_lines > most_lines or len(message) > LONGEST * most_lines / MOST_LINES:
        return f"{n_lines} lines, {len(message)} letters: {message[:600]!r}"
    if len(message.split()) < 3:
        return f"says too little: {message!r}"
    for bad in ("Traceback", "[Errno", " object at 0x", "Error(", "not foreseen"):
        if bad in message:
            return f"holds {bad!r}: {message[:600]!r}"
    return None


def snapshot(folder: Path) -> dict[str, str]:
    """Return every path in a folder, with the hash of its content if it is a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in name:
            continue
        content = hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[name] = content
    return found


def _write(case: Case) -> None:
    for name, content in case.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)


def _imported(host: str) -> None:
    """Import a host's part of ours: seconds that are no hanging, and not to be cut in two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if host == "fairchem":
            importlib.import_module("kd_plugins.fairchem.compat").install()
        for module in PARTS[host]:
            importlib.import_module(f"kd_plugins.{host}.{module}")


class Hangs(BaseException):
    """A case took longer than `PATIENCE`."""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """End what waits for ever."""

    def stop(*_: object) -> None:
        raise Hangs(f"no end after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Catch output and errors, and let warnings be what they are for a user: no errors."""
    out, err, path = io.StringIO(), io.StringIO(), list(sys.path)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield out, err
    finally:
        sys.path[:] = path


def _command(case: Case, said: tuple[io.StringIO, io.StringIO]) -> tuple[str | None, str]:
    """Run a command line here; return what is wrong with its end, and its message."""
    first, *words = shlex.split(case.call)
    main = importlib.import_module(COMMANDS[first]).main
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            said[1].write(f"error: {code}")
            code = 1
    except BaseException as error:  # whatever escapes is what is looked for
        return f"a traceback: {_where(error)}", ""
    out, err = (stream.getvalue() for stream in said)
    expected = (case.code,) if isinstance(case.code, int) else case.code
    if code == 0:
        return ACCEPTED, ""
    if code not in expected:
        return f"exit code {code}, not {expected}; said {(out + err)[-500:]!r}", ""
    if code == 1:
        return None, "\n".join([out, err, *_reasons()])
    if "error: " not in err:
        return f"no error in what it said: {err[-500:]!r}", ""
    return None, err[err.index("error: ") + len("error: ") :]


def _reasons() -> list[str]:
    """Return why structures failed, which label tells in a file."""
    files = [path for path in sorted(Path.cwd().rglob("failures.jsonl")) if path.is_file()]
    return [path.read_text(encoding="utf-8", errors="replace")[:500] for path in files]


def _python(code: str, names: dict[str, Any]) -> tuple[str | None, str]:
    """Run Python; return what is wrong with its error, and its message."""
    try:
        exec(compile(code, "case", "exec"), names)
    except BaseException as error:
        if not isinstance(error, KINDS):
            return f"not a refusal: {_where(error)}", ""
        if not _is_ours(error):
            return f"not raised by our code: {_where(error)}", ""
        return None, str(error.args[0]) if isinstance(error, KeyError) else str(error)
    return ACCEPTED, ""


def _is_ours(error: BaseException) -> bool:
    """Return whether the error was raised in our package, not in what it calls."""
    return OURS in traceback.extract_tb(error.__traceback__)[-1].filename


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})"


def _left(case: Case, before: Mapping[str, str]) -> str | None:
    """Return which files are new, gone or changed, if any are."""
    after = snapshot(Path.cwd())
    changed = [
        name
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
        and not any(fnmatch.fnmatch(name, pattern) for pattern in (*LOCKS, *case.leaves))
    ]
    return f"left or changed: {', '.join(changed)}" if changed else None
