"""Worker processes: a share of the cores each, and an end when the command ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any


def threads_each(workers: int) -> int:
    """Return a worker's share of the cores, at least one."""
    return max(1, (os.cpu_count() or 1) // workers)


@contextmanager
def worker_pool(
    workers: int, doing: str, start: Callable[..., object], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool whose processes end with this one; what has not begun at its end is cancelled.

    Args:
        workers: number of processes.
        doing: what a process did, for the error if it is killed.
        start: called once in each process.
        arguments: of ``start``.

    Raises:
        ValueError: in place of `BrokenProcessPool`, if a process is killed.
    """
    # Spawned and not forked: a fork of a process with threads, such as torch's, may hang.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (start, arguments))
    try:
        yield pool
    except BrokenProcessPool:
        raise ValueError(
            f"a process that {doing} was killed, perhaps for want of memory; the same command goes "
            "on, with fewer --workers in less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(start: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    start(*arguments)


def end_with_parent() -> None:
    """End this process when its parent does, even if that is killed: it would wait for ever."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
