"""Run a command: an exit code, and one sentence for whatever error was raised."""

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
"""What to do about an error of the operating system, by its number."""
PACKAGE = __name__.partition(".")[0]


def run_command(run: Callable[[], int], debug: bool = False) -> int:
    """Run a command and return its exit code.

    Args:
        run: the command. Slow imports belong inside it, so that Ctrl-C works from the start.
        debug: print whole tracebacks.

    Returns:
        the command's own code; 2 for an error, 130 for Ctrl-C, 141 if the reader of its output
        has ended.
    """
    with _count_interrupts() as interrupts:
        try:
            return run()
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # `head` has ended. Without this, Python fails again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if debug:
                traceback.print_exc()
            if not interrupts:
                print(f"error: {describe_error(error)}", file=sys.stderr)
                return 2

        print(STOPPED, file=sys.stderr)
        return 130


def use_utf_8() -> None:
    """Restart Python in UTF-8 mode where the locale is not UTF-8.

    Libraries such as ASE open text files in the locale's encoding. Characters that the terminal
    cannot show are printed as escapes.
    """
    encoding = locale.getpreferredencoding(False).lower().replace("-", "")
    if encoding != "utf8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # child processes inherit it: trainings and workers
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def describe_error(error: BaseException) -> str:
    """Return one sentence for an error; for an unforeseen one, also where it was raised.

    >>> describe_error(ValueError("steps: expected 1 or more, got 0")).split(" (")[0]
    'steps: expected 1 or more, got 0'
    """
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str(KeyError) puts the message in quotes

    if type(error).__module__.partition(".")[0] == PACKAGE:
        return text
    if isinstance(error, OSError):
        # An OSError without a number was raised by our code, with a message of its own.
        return text if error.errno is None else _describe_os_error(error)
    if isinstance(error, MemoryError):
        return f"out of memory{text and f': {text}'} ({_place(error)})"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read: {text} ({_place(error)})"
    if isinstance(error, ImportError):
        return text
    if isinstance(error, (ValueError, KeyError)):
        # A bare word, such as KeyError('cell'), needs the error's type to be understood.
        message = text if " " in text else f"{type(error).__name__}: {text}"
        is_ours = _raised_in(error)[0].partition(".")[0] == PACKAGE
        return message if is_ours else f"{message} ({_place(error)})"

    return (
        f"{type(error).__name__}: {text} ({_place(error)}); this was not foreseen: the same "
        "command with --debug shows how it came about, for a bug report"
    )


def _describe_os_error(error: OSError) -> str:
    """Return which file the system has refused, why, and what to do."""
    name = error.filename2 if error.filename2 is not None else error.filename
    place = _place(error) if name is None else str(name)
    reason = str(error.strerror)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{place}: {remedy} ({reason})" if remedy else f"{place}: {reason}"


@contextmanager
def _count_interrupts() -> Iterator[list[int]]:
    """Collect the signals of Ctrl-C while a command runs.

    The list tells an interrupt from an error: a module whose import is interrupted may replace
    KeyboardInterrupt by an error of its own.
    """
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    # Python allows handlers in its main thread alone; SIGINT may also be ignored, as under nohup.
    can_handle = threading.current_thread() is threading.main_thread() and callable(previous)
    if can_handle:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        if can_handle:
            signal.signal(signal.SIGINT, previous)


def _place(error: BaseException) -> str:
    module, line = _raised_in(error)
    return f"raised in {module}, line {line}" if module else "raised nowhere"


def _raised_in(error: BaseException) -> tuple[str, int]:
    """Return the module and the line in which an error was raised."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return "", 0
    frame, line = frames[-1]
    return str(frame.f_globals.get("__name__", frame.f_code.co_filename)), line
