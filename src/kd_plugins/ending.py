"""How a command ends: with an exit code and one sentence, whatever was raised."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = "stopped; what was written is kept, the same command goes on"
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
        # a full disk tells no file's name; an error without a number is one that we raised
        whole = error.filename is not None or error.errno is None
        return text if whole else f"{text} ({_where(error)})"
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
