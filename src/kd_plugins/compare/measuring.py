"""Several models measured at a time, in all that does not depend on the clock."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch
from tqdm import tqdm

from kd_plugins.evaluate.measured import Evaluator
from kd_plugins.evaluate.settings import Measure


def measure_at_once(
    models: Iterable[tuple[str, Path]], settings: Measure, workers: int, progress: bool = True
) -> None:
    """Measure models into their folders, each in a process of its own: all but speed and memory.

    Args:
        models: potential, as `Evaluator` takes it, and folder.
        settings: what to measure.
        workers: processes at a time, which share the cores.
        progress: show a bar.

    Raises:
        ValueError: what the first of them that fails says; the others end what they are at.
    """
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (threads_each(workers),))
    try:
        waiting = [pool.submit(_measure, name, settings, folder) for name, folder in models]
        shown = tqdm(
            as_completed(waiting),
            "measuring",
            len(waiting),
            unit=" models",
            disable=not (progress and waiting),
        )
        for one in shown:
            one.result()
    except BrokenProcessPool:
        raise ValueError(
            "a process that measured a model was killed, perhaps for want of memory; the same "
            "command goes on, with fewer --workers in less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _measure(potential: str, settings: Measure, folder: Path) -> None:
    Evaluator(potential, folder, settings, progress=False).all_but_speed()


def _begin(threads: int) -> None:
    """Take a share of the cores, and end when the command does, however that ends."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def threads_each(workers: int) -> int:
    """Return a worker's share of the cores."""
    return max(1, (os.cpu_count() or 1) // workers)
