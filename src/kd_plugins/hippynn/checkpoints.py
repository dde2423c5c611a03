"""Going on with a training that was stopped, from the last checkpoint that hippynn wrote whole."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from hippynn.experiment import load_checkpoint

from kd_plugins.hippynn.folder import STRUCTURE
from kd_plugins.hippynn.schedule import LossSchedule


def load_last_checkpoint(
    folder: str | Path, *, trust_pickle: bool, **settings: Any
) -> tuple[Any, Any, Any] | None:
    """Return modules, controller and metrics of a stopped training, for ``train_model``.

    hippynn writes ``checkpoint_epoch_N.pt`` every ``store_every`` epochs. The last one counts that
    is whole, since a kill can cut the newest, and after which training goes on. The database, its
    targets and its pairs are to be made anew; see `cache_pairs`. The training then ends as an
    uninterrupted one, bit for bit, a `LossSchedule` with ``best_of_last_row`` included.

    Args:
        folder: of the training.
        trust_pickle: must be True: hippynn's checkpoints are pickles, which can run any code, so
            that they are for folders that you trust, such as those that your own script wrote.
        settings: of hippynn's ``load_checkpoint``, such as ``model_device``.

    Returns:
        None where there is no such checkpoint yet.

    Raises:
        ValueError: without ``trust_pickle=True``.
    """
    if trust_pickle is not True:
        raise ValueError(
            f"{folder}: hippynn's checkpoints are pickles, which can run any code; expected "
            f"trust_pickle=True for a folder that you trust, got {trust_pickle!r}"
        )

    folder = Path(folder).expanduser()
    structure = folder / STRUCTURE
    for path in sorted(folder.glob("checkpoint_epoch_*.pt"), key=_epoch, reverse=True):
        # The directory of a zip file is written last, so a file that was cut has none.
        if not (zipfile.is_zipfile(path) and zipfile.is_zipfile(structure)):
            continue

        run = load_checkpoint(str(structure), str(path), weights_only=False, **settings)
        controller, metrics = run["controller"], run["metric_tracker"]
        # train_model trains an epoch more, also where the controller has ended the training.
        if controller.current_epoch >= controller.max_epochs:
            continue

        for scheduler in controller.scheduler_list:
            if isinstance(scheduler, LossSchedule):
                scheduler.best_of_last_row(metrics)
        return run["training_modules"], controller, metrics
    return None


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.stem.rpartition("_")[2])
