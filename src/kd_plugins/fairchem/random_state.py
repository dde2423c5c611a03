"""fairchem's random numbers: left alone where we draw our own, and carried over a resume."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_plugins.fairchem.sidecar import read_own, write_atomically


def current(device: torch.device) -> Tensor:
    """Return the state of the generator that a device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def drawing_from(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw from a given state (or from seed 0), then give the outer state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if state is None:
            torch.manual_seed(0)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield


class StepState:
    """Carries over a resume what fairchem's checkpoint lacks.

    EquiformerV2 rolls every edge at random, so without the random state a resumed run is another
    run; and fairchem saves before it validates and steps its schedule, so its file holds the best
    metric and the learning rate of one step before. All are written at the first training step
    *after* a checkpoint and given back at that step of the resumed run.

    Args:
        folder: the checkpoint folder.
        rank: of this process; each has its own file.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.name = folder, f"kd_step_state_rank{rank}.pt"
        self._after: int | None = None
        self._restored: Mapping[str, Any] | None = None
        self._missing = False

    def checkpoint_written(self, step: int) -> None:
        """Note that the state has to be written before the next training step."""
        self._after = step

    def checkpoint_read(self, step: int, folder: Path) -> dict[str, Any] | None:
        """Return what belongs to a checkpoint of a step in a folder, if it is there."""
        path = folder / self.name
        if path.is_file():
            state = read_own(path)
            self._restored = state if state.get("after") == step else None
        self._missing = self._restored is None
        return self._restored["host"] if self._restored else None

    def at_step(self, host: Callable[[], dict[str, Any]]) -> None:
        """Call before each training step's forward.

        Args:
            host: gives fairchem's best metric and schedule; called only where they are written.
        """
        if self._restored is not None:
            _set_all(self._restored)
        elif self._missing:
            logging.warning(
                "no random state was kept for this checkpoint (its run stopped before the next "
                "step): training goes on, but not bit for bit as if it had not been stopped"
            )
        self._restored, self._missing = None, False
        if self._after is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            state = {"after": self._after, "host": host(), **_get_all()}
            write_atomically(state, self.folder / self.name)
            self._after = None


def _get_all() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), next_gauss],
    }


def _set_all(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers), next_gauss))
