"""What the parts of `gpu_check` measure with: time, memory, waits of the host, errors."""

from __future__ import annotations

import math
import re
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

REPEATS = 11
Found = dict[str, Any]


class CheckFailed(Exception):
    """A part ran, and what it found is wrong."""


@dataclass
class Setup:
    """Where a part runs, and for how long.

    Args:
        device: that is checked.
        dry: everything tiny.
        until: of `time.perf_counter`, from which on a part takes no new repeats.
    """

    device: torch.device
    dry: bool
    until: float = math.inf

    @property
    def is_gpu(self) -> bool:
        """Whether there is anything to wait for."""
        return self.device.type == "cuda"


def finish(setup: Setup) -> None:
    """Wait for the device."""
    if setup.is_gpu:
        torch.cuda.synchronize()


def timed(call: Callable[[], object], setup: Setup, repeats: int = REPEATS) -> float:
    """Return the median of milliseconds over repeats, three or more, after a call to get warm."""
    times: list[float] = []
    call()
    finish(setup)
    least = 1 if setup.dry else 3
    while len(times) < least or (len(times) < repeats and time.perf_counter() < setup.until):
        start = time.perf_counter()
        call()
        finish(setup)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_memory(call: Callable[[], object], setup: Setup) -> float | None:
    """Return the MiB that a call takes on top of what is there; None on a CPU."""
    if not setup.is_gpu:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def waits(call: Callable[[], object], setup: Setup) -> Found:
    """Return how often the host waits for the device in a call, and on which lines."""
    call()
    if not setup.is_gpu:
        return {"count": None, "lines": {}}
    finish(setup)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [one for one in caught if "called a synchronizing" in str(one.message)]
    lines = Counter(f"{without_machine(one.filename)}:{one.lineno}" for one in said)
    return {"count": len(said), "lines": dict(lines.most_common())}


def without_machine(text: str) -> str:
    """Return a text in which paths start at their package."""
    return re.sub(r"[^\s'\"]*/(?=(kd_plugins|torch|hippynn|chgnet|benchmarks)/)", "", text)


def error_of(found: Tensor, expected: Tensor) -> float:
    """Return the length of the difference over that of the reference."""
    found, expected = (one.detach().double().cpu() for one in (found, expected))
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    """Return the loss's gradient."""
    return torch.autograd.grad(loss, student)[0]


def one_line(error: Exception) -> str:
    """Return an error as a line that tells of no machine."""
    said = " ".join(str(error).split())
    return without_machine(f"{type(error).__name__}: {said}")[:300]


def both(setup: Setup) -> tuple[str, ...]:
    """Return the CPU and the device, once each; the device last."""
    return tuple(dict.fromkeys(("cpu", setup.device.type)))


def check_errors(found: Found, limit: float) -> None:
    """Refuse a relative error above a limit, or one that is no number."""
    wrong = [
        f"{name} {one:.1e}" for name, one in found.items() if "error" in name and not one <= limit
    ]
    if wrong:
        raise CheckFailed(f"more than {limit:.0e}: {'; '.join(wrong)}")
