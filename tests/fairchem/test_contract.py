"""fairchem's adapter keeps the contract of `kd_plugins.testing` on fairchem's own trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_plugins.testing import CHECKS


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_adapter_keeps_the_contract(
    check, databases: tuple[Path, Path], teacher: Path, labelled: Path, tmp_path: Path
) -> None:
    from tests.fairchem.contract import FairchemAdapter

    check(FairchemAdapter(databases, teacher, labelled), tmp_path)
