"""Worker processes: a share of the cores each, and an end when the command ends."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process


def threads_each(workers: int) -> int:
    """Return a worker's share of the cores, at least one."""
    return max(1, (os.cpu_count() or 1) // workers)


def end_with_parent() -> None:
    """End this process when its parent does, even if that is killed: it would wait for ever."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
