"""Ranks of a distributed test, each a process of `torch.multiprocessing.spawn`."""

from __future__ import annotations

import os

import torch.distributed as dist


def end_rank() -> None:
    """End this rank's process when all ranks have come here; its process group stays as it is.

    The destructor of torch 2.4's Gloo group waits for the group's thread. That thread may still
    need the interpreter, to free the last collective's tensor, and the destructor holds it. Of a
    thousand groups taken down right after an `all_reduce` one or more hang so, for ever.
    """
    dist.barrier()
    os._exit(0)
