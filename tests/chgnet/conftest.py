"""Data that the tests of CHGNet have in common, labelled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kd_plugins.chgnet import DistillData
    from tests.chgnet.fixtures import Labelled


@pytest.fixture(scope="session")
def salts(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Four crystals of two atoms."""
    from tests.chgnet import fixtures

    return fixtures.labelled(list(fixtures.salts()), tmp_path_factory.mktemp("salts"))


@pytest.fixture(scope="session")
def crystals(
    tmp_path_factory: pytest.TempPathFactory, shared_file: Callable[[str], Path]
) -> Labelled:
    """Carbon dioxide (12 atoms) and a salt."""
    from tests.chgnet import fixtures

    structures = [*fixtures.molecular(shared_file, "co2"), next(fixtures.salts())]
    return fixtures.labelled(structures, tmp_path_factory.mktemp("crystals"))


@pytest.fixture(scope="session")
def data(salts: Labelled) -> DistillData:
    """The salts with targets, and labels that are not quite CHGNet's."""
    return salts.data(salts.noisy(), hard=("energy", "forces", "stress", "magmoms"))


@pytest.fixture(scope="session")
def trunk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of features that the tests fill together."""
    return tmp_path_factory.mktemp("trunk")
