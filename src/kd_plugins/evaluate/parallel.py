"""Crystals of one potential in several processes."""

from __future__ import annotations

from concurrent.futures import Future, as_completed
from typing import Any

from ase import Atoms
from tqdm import tqdm

from kd_plugins.evaluate.crystals import measure_crystal
from kd_plugins.evaluate.evaluator import Evaluator
from kd_plugins.evaluate.settings import CrystalSettings
from kd_plugins.numbers import check_whole
from kd_plugins.processes import worker_pool
from kd_plugins.teachers.registry import load_teacher

_calculators: dict[str, Any] = {}
"""The calculator of a worker, which opens its potential once."""


def measure_crystals(evaluator: Evaluator, workers: int) -> None:
    """Measure the crystals that an evaluation lacks, several at a time; each is kept at once.

    Args:
        evaluator: of the potential; its settings have crystals.
        workers: processes, which share the cores and GPUs.

    Raises:
        ValueError: for no worker, or if a process was killed; then the same call goes on.
    """
    check_whole("workers", workers, least=1)
    missing, settings = evaluator.unmeasured_crystals, evaluator.settings.crystals
    n_workers = min(workers, len(missing))
    if n_workers < 2 or settings is None:
        evaluator.crystals()
        return

    device = evaluator.device
    opened = evaluator.potential, device
    with worker_pool(n_workers, "measured crystals", _open, *opened, device=device) as pool:
        futures: dict[Future[dict[str, Any]], str] = {
            pool.submit(_measure, one.atoms, settings): one.structure_id for one in missing
        }
        bar = tqdm(
            as_completed(futures),
            "crystals",
            len(futures),
            unit="",
            disable=not evaluator.progress,
        )
        for future in bar:
            evaluator.keep_crystal(futures[future], future.result())


def _measure(atoms: Atoms, settings: CrystalSettings) -> dict[str, Any]:
    return measure_crystal(atoms, _calculators["own"], settings)


def _open(potential: str, device: str) -> None:
    """Open the potential."""
    _calculators["own"] = getattr(load_teacher(potential, device), "calculator", None)
