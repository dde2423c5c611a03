"""Data sets that the tests of the doctor share: DFT labels with a real teacher's targets."""

from __future__ import annotations

import pytest

from kd_plugins.doctor.inputs import DoctorInput
from tests.doctor.labelled import COPPER, ORGANIC, SMALL, SharedFile, labelled
from tests.hosts import is_installed


@pytest.fixture(scope="session")
def organic(shared_file: SharedFile) -> list[DoctorInput]:
    """DFT and CHGNet on structures of MPtrj: ten elements, energies corrected as CHGNet's are."""
    if not is_installed("chgnet"):
        pytest.skip("chgnet is not installed")
    return list(labelled(shared_file(ORGANIC), "chgnet", SMALL))


@pytest.fixture(scope="session")
def copper(shared_file: SharedFile) -> list[DoctorInput]:
    """DFT and a poor teacher with another zero, EMT, on copper: one element."""
    return list(labelled(shared_file(COPPER), "emt"))
