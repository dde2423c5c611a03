"""Calculators with known errors and failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT


class Pressed(Calculator):
    """Energy ``scale`` times a power of the volume: explodes below zero, collapses above."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, scale: float, power: int) -> None:
        super().__init__()
        self.scale, self.power = scale, power

    def calculate(self, atoms: Atoms, properties: Any, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        volume = atoms.get_volume()
        slope = self.scale * self.power * volume ** (self.power - 1)
        self.results = {
            "energy": self.scale * volume**self.power,
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.array([slope] * 3 + [0.0] * 3),
        }


class Failing(Pressed):
    """Fails, or returns ``value``, after ``good_calls`` calls."""

    def __init__(self, good_calls: int, value: float | None = None) -> None:
        super().__init__(scale=200.0, power=-1)
        self.left, self.value = good_calls, value

    def calculate(self, atoms: Atoms, properties: Any, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.left -= 1
        if self.left < 0 and self.value is None:
            raise RuntimeError("out of memory")
        if self.left < 0:
            self.results["energy"] = self.value


class Softer(EMT):
    """ASE's EMT, energies, forces and stress scaled by 0.9."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.results = {name: 0.9 * np.asarray(value) for name, value in self.results.items()}


class Stressless(EMT):
    """ASE's EMT without stress."""

    implemented_properties = ("energy", "forces")


def stressless() -> Stressless:
    """Return EMT without stress."""
    return Stressless()


def softer() -> Softer:
    """Return EMT scaled by 0.9."""
    return Softer()


def unreadable(folder: str) -> EMT:
    """Fail as a potential does whose folder is missing."""
    raise FileNotFoundError(f"{folder}: no such folder")


class Springs(Calculator):
    """A spring for each atom, computed by torch; ``wrong`` is added to the forces."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = wrong

    def calculate(self, atoms: Any = None, properties: Any = None, changes: Any = None) -> None:
        super().calculate(atoms, properties, changes)
        positions = torch.tensor(atoms.positions, requires_grad=True)
        energy = (positions**2).sum() + positions.exp().sum() * 0
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        forces = -gradient.detach().numpy() + self.wrong
        self.results = {"energy": energy.item(), "forces": forces}
