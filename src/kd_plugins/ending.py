"""How a command ends: with an exit code and one sentence, whatever was raised."""

from __future__ import annotations

import errno
import locale
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = "stopped; what was written is kept, the same command goes on"
REMEDIES = {
    errno.ENOSPC: "no room on the disk is left; make some, and the same command goes on",
    errno.EDQUOT: "your quota of the disk is used up; make room, and the same command goes on",
    errno.EACCES: "it may not be read or written by you; choose another place",
    errno.EPERM: "it may not be changed by you; choose another place",
    errno.EROFS: "it can only be read; choose another place",
    errno.ENOENT: "there is no such file or folder, and it cannot be made there; look at its name",
    errno.EISDIR: "it is a folder; expected a file",
    errno.ENOTDIR: "a file stands where a folder is expected; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n), or take fewer workers",
}
"""Of errors of the system, by number."""
OURS = __name__.partition(".")[0]


def ended(run: Callable[[], int], debug: bool = False) -> int:
    """Run a command and return its exit code: its own, 2 for an error, 130 for Ctrl-C.

    Args:
        run: the command; import what takes time inside it, so that Ctrl-C is met from the start.
        debug: show whole tracebacks.
    """
    with _interrupts() as were_there:
        try:
            return run()
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # who reads has gone, as `head` does; else Python complains again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if debug:
                traceback.print_exc()
            if not were_there:
                print(f"error: {sentence(error)}", file=sys.stderr)
                return 2
        print(STOPPED, file=sys.stderr)
        return 130


def speak_utf_8() -> None:
    """Start anew where the locale is not UTF-8: others open files by the locale, too, as ASE does.

    What a terminal cannot show is written as an escape.
    """
    encoding = locale.getpreferredencoding(False).lower().replace("-", "")
    if encoding != "utf8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for trainings and workers
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def sentence(error: BaseException) -> str:
    """Return what to tell of an error; of one that was not foreseen, also where it came from.

    >>> sentence(ValueError("steps: expected 1 or more, got 0")).split(" (")[0]
    'steps: expected 1 or more, got 0'
    """
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    if type(error).__module__.partition(".")[0] == OURS:
        return text
    if isinstance(error, OSError):
        # an error without a number is one that we raised, with words of its own
        return text if error.errno is None else _of_the_system(error)
    if isinstance(error, MemoryError):
        return f"out of memory{text and f': {text}'} ({_where(error)})"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read: {text} ({_where(error)})"
    if isinstance(error, ImportError):
        return text
    if isinstance(error, (ValueError, KeyError)):
        words = text if " " in text else f"{type(error).__name__}: {text}"
        return words if _module(error) == OURS else f"{words} ({_where(error)})"
    return (
        f"{type(error).__name__}: {text} ({_where(error)}); this was not foreseen: the same "
        "command with --debug shows how it came about, for a bug report"
    )


def _of_the_system(error: OSError) -> str:
    """Say what the system has refused, of which file, and what to do."""
    name = error.filename2 if error.filename2 is not None else error.filename
    where = _where(error) if name is None else str(name)
    said = str(error.strerror)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{where}: {remedy} ({said})" if remedy else f"{where}: {said}"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Give a list that holds something once Ctrl-C was pressed.

    A module whose import is interrupted may raise an error of its own in its place.
    """
    were_there: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        were_there.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and callable(before)
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield were_there
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _module(error: BaseException) -> str:
    """Return the package in which an error was raised."""
    return _raised(error)[0].partition(".")[0]


def _where(error: BaseException) -> str:
    module, line = _raised(error)
    return f"raised in {module}, line {line}" if module else "raised nowhere"


def _raised(error: BaseException) -> tuple[str, int]:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return "", 0
    frame, line = frames[-1]
    return str(frame.f_globals.get("__name__", frame.f_code.co_filename)), line
