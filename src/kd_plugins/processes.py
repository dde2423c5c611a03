"""Worker processes: a share of cores and GPUs each, and an end when the command ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from typing import Any


def threads_each(workers: int) -> int:
    """Return a worker's share of the cores, at least one."""
    return max(1, (os.cpu_count() or 1) // workers)


def device_of_worker(device: str, worker: int, n_gpus: int) -> str:
    """Return where a worker computes: worker k of several has GPU k modulo their number.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``, which is then that of every worker.
        worker: its number, from 0.
        n_gpus: of this machine.

    >>> [device_of_worker("auto", worker, 2) for worker in range(3)]
    ['cuda:0', 'cuda:1', 'cuda:0']
    >>> device_of_worker("cuda:1", 2, 2), device_of_worker("auto", 2, 0)
    ('cuda:1', 'cpu')
    """
    if device not in ("auto", "cuda"):
        return device
    return f"cuda:{worker % n_gpus}" if n_gpus else "cpu"


def take_share(device: str, worker: int, workers: int) -> None:
    """Take a worker's share of the cores and its GPU, in the process of that worker.

    ``cuda`` without a number is then its GPU, for whatever this process loads on ``auto`` or
    ``cuda``.

    Args:
        device: see `device_of_worker`.
        worker: its number, from 0.
        workers: how many there are.
    """
    import torch

    torch.set_num_threads(threads_each(workers))  # or all workers together would have too many
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = device_of_worker(device, worker, n_gpus)
    if own.startswith("cuda:"):
        torch.cuda.set_device(own)


@contextmanager
def worker_pool(
    workers: int,
    doing: str,
    start: Callable[..., object] | None = None,
    *arguments: Any,
    device: str | None = None,
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool whose processes end with this one; what has not begun at its end is cancelled.

    Args:
        workers: number of processes.
        doing: what a process did, for the error if it is killed.
        start: called once in each process.
        arguments: of ``start``.
        device: each process first takes its share of the cores and GPUs, see `take_share`; left
            out for work without torch.

    Raises:
        ValueError: in place of `BrokenProcessPool`, if a process is killed.
    """
    # Spawned and not forked: a fork of a process with threads, such as torch's, may hang.
    context = get_context("spawn")
    # A process takes its number from here: the pool gives it none.
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    share = None if device is None else (device, workers)
    pool = ProcessPoolExecutor(workers, context, _start, (numbers, share, start, arguments))
    try:
        yield pool
    except BrokenProcessPool:
        raise ValueError(
            f"a process that {doing} was killed, perhaps for want of memory; the same command goes "
            "on, with fewer --workers in less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(
    numbers: SimpleQueue[int],
    share: tuple[str, int] | None,
    start: Callable[..., object] | None,
    arguments: tuple[Any, ...],
) -> None:
    end_with_parent()
    if share is not None:
        device, workers = share
        take_share(device, numbers.get(), workers)
    if start is not None:
        start(*arguments)


def end_with_parent() -> None:
    """End this process when its parent does, even if that is killed: it would wait for ever."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
