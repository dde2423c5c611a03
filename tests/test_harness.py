"""The tests' own machinery does what it says."""

from __future__ import annotations

from pathlib import Path

import jaxtyping
import pytest
import torch

from kd_plugins.core import crack_loss
from tests.hosts import is_installed
from tests.shared import require_shared, shared_folder


def test_shapes_are_checked_in_core() -> None:
    embeddings = torch.randn(4, 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="edge_index"):
        crack_loss(embeddings, embeddings, torch.zeros(3, 5, dtype=torch.long))


def test_missing_reference_data_skip_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_SHARED_DATA", str(tmp_path))
    assert require_shared(shared_folder()) == tmp_path
    monkeypatch.delenv("KD_REQUIRE_SHARED", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no reference data"):
        require_shared(tmp_path / "gone")
    monkeypatch.setenv("KD_REQUIRE_SHARED", "1")
    with pytest.raises(pytest.fail.Exception, match="no reference data"):
        require_shared(tmp_path / "gone")


def test_a_folder_of_tests_does_not_pass_for_a_framework() -> None:
    assert is_installed("pytest")
    assert not is_installed("no-such-host-framework")
