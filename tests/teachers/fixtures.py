"""A calculator that takes two milliseconds, structures for it, and what a store holds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
from ase.build import bulk
from ase.calculators.emt import EMT

from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import pack
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import load_teacher

SLOW_EMT = "tests.teachers.fixtures:SlowEMT"


class SlowEMT(EMT):
    """EMT that takes two milliseconds, fails on silver, and kills its process on gold."""

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        """Compute after a pause."""
        time.sleep(0.002)
        if "Au" in atoms.symbols:
            os.kill(os.getpid(), 9)
        if "Ag" in atoms.symbols:
            raise RuntimeError("no silver")
        super().calculate(atoms, *args, **kwargs)


def copper_cells(count: int) -> Iterator[LabelledStructure]:
    """Yield rattled copper cells."""
    for index in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=index)
        yield LabelledStructure(f"cu-{index}", atoms)


def crystal_of(symbol: str, structure_id: str) -> LabelledStructure:
    """Return a crystal of one element."""
    return LabelledStructure(structure_id, bulk(symbol))


def packed_records(folder: Path) -> dict[str, bytes]:
    """Return id to the bytes of its record, whatever shard it lies in."""
    store = TargetStore.open(folder)
    return {name: pack(store.record(name), store.manifest) for name in store.ids()}


def make_manifest() -> Manifest:
    """Return the manifest that the labeller gives a store of energies and forces."""
    teacher = load_teacher(SLOW_EMT)
    dtypes = {"energy": "float64", "forces": "float32"}
    return Manifest(SLOW_EMT, teacher.fingerprint, dtypes, versions=teacher.versions)


def write_copper_cells(path: Path, count: int) -> None:
    """Write copper cells with their ids as extended xyz."""
    for frame in copper_cells(count):
        frame.atoms.info["structure_id"] = frame.structure_id
        ase.io.write(path, frame.atoms, append=True)
