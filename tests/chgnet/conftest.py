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


@pytest.fixture
def config(salts: Labelled, tmp_path: Path) -> Path:
    """A YAML for two epochs on four salts."""
    import ase.io
    import yaml
    from ase.calculators.singlepoint import SinglePointCalculator

    from tests.chgnet import fixtures

    for structure in salts.structures:
        atoms = structure.atoms.copy()
        atoms.info["structure_id"] = structure.structure_id
        labels = {name: structure.labels[name] for name in ("forces", "stress")}
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(structure.labels["energy"]), **labels
        )
        ase.io.write(tmp_path / "salts.extxyz", atoms, append=True)

    data = {"structures": [str(tmp_path / "salts.extxyz")], "store": str(salts.store.folder)}
    settings = {
        "train": data,
        "validation": data,
        "loss": {"soft": dict(fixtures.ALL_SOFT)},
        "optim": {"learning_rate": 0.01, "batch_size": 2, "epochs": 1, "seed": 0},
        "out": str(tmp_path / "run"),
        "cache": str(tmp_path / "trunk"),
        "allow": list(fixtures.ALLOW),
    }
    path = tmp_path / "training.yml"
    path.write_text(yaml.safe_dump(settings))
    return path
