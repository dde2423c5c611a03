"""fairchem's adapter keeps the contract of `kd_plugins.testing` on fairchem's own trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_plugins.testing import CHECKS

SLOW = ("two_ranks_equal_one", "exported_student_needs_no_kd_plugins")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, check in CHECKS.items()
    ],
)
def test_adapter_keeps_the_contract(
    check, databases: tuple[Path, Path], teacher: Path, labelled: Path, tmp_path: Path
) -> None:
    from tests.fairchem.contract import FairchemAdapter

    check(FairchemAdapter(databases, teacher, labelled), tmp_path)
