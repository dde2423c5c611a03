"""A store of ten structures."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_plugins.store.store import TargetStore
from tests.store.fixtures import MANIFEST, record


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    """A store of ten structures."""
    store = TargetStore.create(tmp_path / "store", MANIFEST)
    store.append(record(index) for index in range(10))
    return store
