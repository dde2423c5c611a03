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

    hippynn writes ``checkpoint_epoch_N.pt`` every ``store_every`` epochs. The last one that is
    whole counts: a kill can cut the newest. The database, its targets and its pairs are to be made
    anew; see `cache_pairs`. The training then ends as an uninterrupted one, bit for bit, a
    `LossSchedule` with ``best_of_last_row`` included.

    Args:
        folder: of the training.
        trust_pickle: must be True: hippynn's checkpoints are pickles, which can run any code, so
            that they are for folders that you trust, such as those that your own script wrote.
        settings: of hippynn's ``load_checkpoint``, such as ``model_device``.

    Returns:
        None where there is no whole checkpoint yet.

    Raises:
        ValueError: without ``trust_pickle=True``.
    """
    if trust_pickle is not True:
        raise ValueError(
            f"{folder}: hippynn's checkpoints are pickles, which can run any code; expected "
            f"trust_pickle=True for a folder that you trust, got {trust_pickle!r}"
        )

    folder = Path(folder).expanduser()
    # The directory of a zip file is written last, so a file that was cut has none.
    whole = [path for path in folder.glob("checkpoint_epoch_*.pt") if zipfile.is_zipfile(path)]
    if not whole or not zipfile.is_zipfile(folder / STRUCTURE):
        return None

    last = max(whole, key=lambda path: int(path.stem.rpartition("_")[2]))
    run = load_checkpoint(str(folder / STRUCTURE), str(last), weights_only=False, **settings)
    controller, metrics = run["controller"], run["metric_tracker"]
    for scheduler in controller.scheduler_list:
        if isinstance(scheduler, LossSchedule):
            scheduler.best_of_last_row(metrics)
    return run["training_modules"], controller, metrics
