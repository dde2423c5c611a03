"""Data and a teacher that the fairchem tests have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_plugins.fairchem import compat

compat.install()


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six slabs to train on and three to validate on."""
    from tests.fairchem import tiny

    train, val = tmp_path_factory.mktemp("train"), tmp_path_factory.mktemp("val")
    return (
        tiny.write_database(train / "train.db", [tiny.slab(index) for index in range(6)]),
        tiny.write_database(val / "val.db", [tiny.slab(index) for index in range(6, 9)]),
    )


@pytest.fixture(scope="session")
def teacher(databases: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-layer teacher, trained by the plain host."""
    from tests.fairchem import tiny

    folder = tmp_path_factory.mktemp("teacher")
    tiny.run(tiny.config(folder, *databases, model=tiny.model(num_layers=3)))
    return folder / "checkpoints" / "run" / "checkpoint.pt"


@pytest.fixture(scope="session")
def labelled(
    teacher: Path, databases: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with all targets of all structures."""
    from kd_plugins.structures import read_structures
    from kd_plugins.teachers import label
    from tests.fairchem import tiny

    folder = tmp_path_factory.mktemp("store") / "targets"
    single = dict.fromkeys(tiny.QUANTITIES, "float32")
    label(read_structures(databases), tiny.teacher_name(teacher), folder, single, progress=False)
    return folder


@pytest.fixture
def make_config(databases: tuple[Path, Path], tmp_path: Path) -> Any:
    """Return a run's configuration in a folder of its own."""
    from tests.fairchem import tiny

    return lambda **changes: tiny.config(
        tmp_path / changes.pop("folder", "run"), *databases, **changes
    )
