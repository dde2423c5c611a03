"""A stopped training goes on from its last whole checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hippynn.tools import active_directory

from kd_plugins.hippynn import LossSchedule, load_last_checkpoint
from tests.hippynn import fixtures
from tests.hippynn.test_schedule import prepare


def test_the_last_whole_checkpoint_with_its_schedule(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """That training then equals an uninterrupted one is tested with the docs and a recipe."""
    _, modules, data, controller, metrics = prepare(shared_file)
    assert load_last_checkpoint(tmp_path, trust_pickle=True) is None
    with active_directory(str(tmp_path)):
        fixtures.train_model(
            modules, data, controller, metrics, None, None, store_every=2, quiet=True
        )
    whole = (tmp_path / "checkpoint_epoch_4.pt").read_bytes()
    (tmp_path / "checkpoint_epoch_10.pt").write_bytes(whole[: len(whole) // 2])  # cut by a kill

    found = load_last_checkpoint(tmp_path, trust_pickle=True)
    assert found is not None
    _, controller, metrics = found
    # The whole one of epoch 4 was the training's last, after which there is nothing to go on with.
    assert controller.current_epoch == metrics.current_epoch == 3
    (schedule,) = (one for one in controller.scheduler_list if isinstance(one, LossSchedule))
    assert schedule.last_epoch == 3 and schedule._metrics is metrics


def test_pickles_are_read_of_trusted_folders_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected trust_pickle=True for a folder that you trust"):
        load_last_checkpoint(tmp_path, trust_pickle=False)
