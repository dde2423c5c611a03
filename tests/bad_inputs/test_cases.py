"""Every bad input ends in one clear refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs import commands, experiments, functions, hosts, records
from tests.bad_inputs.case import Case, complaint
from tests.hosts import ABSENT_HOSTS, in_one_environment

TABLES = (commands, records, experiments, functions, hosts)
READ_FILES = (commands, records, experiments)
"""Of files and words alone, whatever the version of torch."""
CASES: list[Case] = [case for table in TABLES for case in table.CASES]
PARAMETERS = [
    pytest.param(
        case,
        id=case.name,
        marks=in_one_environment if table in READ_FILES and case.needs is None else (),
    )
    for table in TABLES
    for case in table.CASES
]


@pytest.mark.parametrize("case", PARAMETERS)
def test_it_is_refused_clearly(case: Case, folder: Path, names: dict[str, Any]) -> None:
    """By a message that names what is wrong; nothing is left behind."""
    if case.needs in ABSENT_HOSTS:
        pytest.skip(f"{case.needs} is not installed")
    found = complaint(case, names)
    assert found is None


@pytest.fixture(scope="session")
def names() -> dict[str, Any]:
    """What the Python of a case may use."""
    return functions.names()


def test_names_are_used_once() -> None:
    found = [case.name for case in CASES]
    assert len(set(found)) == len(found)
    assert len(found) >= 200
