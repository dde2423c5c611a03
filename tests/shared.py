"""Where the real reference data lies, and what becomes of a test that misses it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.house import ROOT


def shared_folder() -> Path:
    """Return the folder that KD_SHARED_DATA names, or the one beside the repository."""
    return Path(os.environ.get("KD_SHARED_DATA", ROOT.parent / "shared" / "data"))


def require_shared(path: Path) -> Path:
    """Return ``path``; skip the test where it is missing, or fail it if KD_REQUIRE_SHARED is 1."""
    if not path.exists():
        reason = f"no reference data at {path} (KD_SHARED_DATA names their folder)"
        stop = pytest.fail if os.environ.get("KD_REQUIRE_SHARED") == "1" else pytest.skip
        stop(reason)
    return path
