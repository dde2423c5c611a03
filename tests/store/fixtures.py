"""Records, stores and processes for the tests of the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record, pack
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure

MANIFEST = Manifest(
    "EMT",
    "ase.calculators.emt.EMT()",
    {"energy": "float64", "forces": "float32", "node_embeddings": "float16"},
    versions={"ase": "3.29.0"},
)
OTHER_MANIFEST = replace(MANIFEST, teacher="MACE", fingerprint="another one")


def structure(index: int) -> Structure:
    """Return a random structure of 2 to 5 atoms in a tilted cell."""
    generator = np.random.default_rng(index)
    cell = 5.0 * np.eye(3) + generator.normal(size=(3, 3)) * 0.3
    n_atoms = 2 + index % 4
    positions = generator.uniform(size=(n_atoms, 3)) @ cell
    return Structure(generator.integers(1, 90, n_atoms), positions, cell, [True, True, True])


def record(index: int) -> Record:
    """Return a record that is a pure function of its index."""
    generator = torch.Generator().manual_seed(index)
    shape = structure(index)
    values = {
        "energy": torch.randn((), generator=generator, dtype=torch.float64),
        "forces": torch.randn(shape.n_atoms, 3, generator=generator),
        "node_embeddings": torch.randn(shape.n_atoms, 4, generator=generator),
    }
    return Record(f"structure-{index}", shape, values)


def content(store: TargetStore) -> dict[str, bytes]:
    """Return id to the packed record."""
    return {name: pack(store.record(name), store.manifest) for name in store.ids()}


def file_contents(folder: Path) -> dict[str, bytes]:
    """Return what each file holds, but for LMDB's lock, which readers write, too."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-lock")
    }


def in_a_fork(work: Callable[[], Any]) -> Any:
    """Return what something gives in a forked process, or the signal that ended it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            answer = work()
        except BaseException as error:  # the parent is to see it, whatever it is
            answer = {"raised": f"{type(error).__name__}: {error}"}
        with os.fdopen(write, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"signal": os.WTERMSIG(status)}


def in_another_process(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python code on a store elsewhere, where nothing of this process is open."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
