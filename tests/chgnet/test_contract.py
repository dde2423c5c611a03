"""CHGNet's adapter keeps the contract of `kd_plugins.testing`, with CHGNet's own Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_plugins.testing import CHECKS
from tests.chgnet.contract import ChgnetAdapter
from tests.chgnet.fixtures import Labelled
from tests.chgnet.test_trainer import LOADS


@pytest.mark.filterwarnings(LOADS)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_contract(
    check: Callable[[ChgnetAdapter, Path], None], salts: Labelled, tmp_path: Path
) -> None:
    check(ChgnetAdapter(salts), tmp_path)
