"""Peaks of torch's memory, against tensors of known size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from kd_plugins.evaluate import autograd_bytes, peak_bytes
from tests.evaluate.calculators import Springs


class Steps(Calculator):
    """Holds some tensors at once, several times one after another."""

    implemented_properties = ["forces"]

    def __init__(self, at_once: int, times: int) -> None:
        super().__init__()
        self.at_once, self.times = at_once, times

    def calculate(self, atoms: Any = None, properties: Any = None, changes: Any = None) -> None:
        super().calculate(atoms, properties, changes)
        for _ in range(self.times):
            held = [torch.empty(len(atoms), 1000, dtype=torch.float64) for _ in range(self.at_once)]
            del held
        self.results = {"forces": np.zeros((len(atoms), 3))}


def test_memory_grows_with_the_structure() -> None:
    sizes = [autograd_bytes(Atoms(f"Cu{n}", positions=np.ones((n, 3))), Springs()) for n in (8, 16)]
    assert sizes[1] - sizes[0] >= 8 * 3 * 8
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)
    assert autograd_bytes(Atoms("Cu8", positions=np.ones((8, 3))), Springs()) == sizes[0]


@pytest.mark.parametrize(("at_once", "times"), [(1, 1), (1, 5), (3, 1), (3, 4)])
def test_peak_counts_tensors_that_exist_at_once(at_once: int, times: int) -> None:
    atoms = Atoms("Cu4", positions=np.ones((4, 3)))
    assert peak_bytes(atoms, Steps(at_once, times)) == at_once * 4 * 1000 * 8
    assert atoms.calc is None


def test_a_calculator_without_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="EMT keeps no tensor"):
        autograd_bytes(bulk("Cu"), EMT())
    with pytest.raises(ValueError, match="EMT makes no tensor"):
        peak_bytes(bulk("Cu"), EMT())
