"""A structure that cannot be trained on ends the run with its name, wherever it is met."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.config import ConfigError
from tests.fairchem import tiny
from tests.fairchem.test_datasets import oc20
from tests.fairchem.test_laws import EQV2
from tests.fairchem.test_refusals import with_nan

Settings = dict[str, Any]
CRACK = {"crack": {"weight": 1.0}}


def lone(name: str, cell: float = 12.0) -> ase.Atoms:
    """Return one atom in a cubic cell."""
    atoms = ase.Atoms("Cu", cell=[cell] * 3, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((1, 3)))
    atoms.info = {"sid": name, "fid": 0}
    atoms.set_tags([1])
    return atoms


def train_on(settings: Settings, path: Path, structures: list[ase.Atoms]) -> None:
    """Train on other structures, and validate on none."""
    path.mkdir()
    settings["dataset"]["train"]["src"] = str(tiny.write_database(path / "train.db", structures))
    settings["dataset"].pop("val")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_energy_that_is_missing_outside_the_sample(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path, workers: int
) -> None:
    """Is named, also from a worker of the loader, before its batch reaches the weights."""
    slabs = [tiny.slab(0), with_nan(tiny.slab(1), "energy"), tiny.slab(2)]  # ASE keeps it as none
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, preflight=1))
    settings["optim"]["num_workers"] = workers
    train_on(settings, tmp_path / "data", slabs)
    with pytest.raises(
        ConfigError, match=r"^dataset.train\[\d\] cannot be read: .*a missing label"
    ):
        tiny.run(settings)


def test_a_label_that_a_graph_lacks(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """In an LMDB, whose batches would be made without it."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, CRACK))
    path = oc20(tmp_path / "data" / "train.lmdb", range(4), energy=None)
    settings["dataset"] = {"train": {"src": str(path), "format": "lmdb"}}
    with pytest.raises(ConfigError, match=r"dataset.train\[\d\] .*'energy'"):
        tiny.run(settings)


def test_an_element_outside_the_sample(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """Is named, and does not index past a table."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, preflight=1))
    heavy = tiny.slab(1)
    labels = {"energy": heavy.get_potential_energy(), "forces": heavy.get_forces()}
    heavy.numbers[0] = 95
    heavy.calc = SinglePointCalculator(heavy, **labels)
    train_on(settings, tmp_path / "data", [tiny.slab(0), heavy, tiny.slab(2)])
    with pytest.raises(ConfigError, match=r"\(sid slab1\) holds element 95; the student knows"):
        tiny.run(settings)


def test_a_lone_atom_beside_others_trains_as_in_the_plain_host(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """The doctor leaves it out, as no model can compute it alone."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, preflight=4))
    settings["optim"].update(batch_size=4, max_epochs=2)
    settings["optim"]["scheduler_params"]["warmup_epochs"] = 1.0
    train_on(settings, tmp_path / "data", [*map(tiny.slab, range(3)), lone("alone")])
    assert tiny.run(settings, lambda trainer: trainer.step) == 2


def test_a_batch_of_lone_atoms_is_named(
    make_config: Callable[..., Settings], teacher: Path, tmp_path: Path
) -> None:
    """EquiformerV2 takes a minimum over no edge; plain fairchem's error says no more."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, CRACK))
    train_on(settings, tmp_path / "data", [lone(name) for name in "abcd"])
    with pytest.raises(
        ConfigError, match=r"no atom of a batch has a neighbour.*5.0 Å \(struct.*/0"
    ):
        tiny.run(settings)


def test_atoms_that_neighbour_only_themselves_have_no_relation(
    make_config: Callable[..., Settings],
    teacher: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So CRACK is 0 of them, and its mean in the log, over nothing, is no number."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, CRACK))
    train_on(settings, tmp_path / "data", [lone(name, 3.6) for name in "abcd"])
    with caplog.at_level(logging.INFO):
        found = tiny.run(settings, tiny.parameters)
    assert all(np.isfinite(value.numpy()).all() for value in found.values())
    assert "kd_crack: nan" in caplog.text
