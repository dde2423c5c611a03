"""What the tests of the core have in common."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as for a user: without the shape checks of beartype, our own messages are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
