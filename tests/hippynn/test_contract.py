"""hippynn's adapter keeps the contract of `kd_plugins.testing` in hippynn's own training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_plugins.testing import CHECKS
from tests.hippynn.contract import HippynnAdapter


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_adapter_keeps_the_contract(
    check, shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    check(HippynnAdapter(shared_file, tmp_path / "store"), tmp_path / "check")
