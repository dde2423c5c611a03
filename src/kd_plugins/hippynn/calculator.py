"""A HIPNN that was trained, as an ASE calculator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ase import Atoms, units
from hippynn.graphs import find_relatives
from hippynn.graphs.nodes.tags import Energies
from hippynn.interfaces.ase_interface import HippynnCalculator

from kd_plugins.hippynn.folder import load_model
from kd_plugins.teachers.teacher import TeacherError

SKIN = 0.5
"""Å beyond the cutoff within which neighbours are kept; hippynn's 1 Å triples a solid's pairs."""
ENERGY_UNITS: Mapping[str, float] = {"eV": units.eV, "kcal/mol": units.kcal / units.mol}


class ElementsCalculator(HippynnCalculator):
    """hippynn's calculator that refuses an element which the model takes for padding."""

    def calculate(self, atoms: Atoms | None = None, *args: Any, **kwargs: Any) -> None:
        """Compute everything; see ASE.

        Raises:
            ValueError: for an element that the model does not know.
        """
        numbers = set((self.atoms if atoms is None else atoms).numbers.tolist())
        known = {int(number) for number in self.species_set} - {0}
        if numbers - known:
            raise ValueError(
                f"the model does not know element {min(numbers - known)}; it knows "
                f"{', '.join(map(str, sorted(known)))}"
            )
        super().calculate(atoms, *args, **kwargs)


def hippynn(
    folder: str, energy_unit: str = "eV", skin: float = SKIN, trust_pickle: bool = False
) -> ElementsCalculator:
    """Return the potential ``hippynn``: energy, forces and stress of a model that was trained.

    Args:
        folder: that hippynn trained in, or that `export_student` made.
        energy_unit: of the model: ``eV`` or ``kcal/mol``; its lengths are in Å.
        skin: Å beyond the cutoff; more pairs a step, fewer new lists.
        trust_pickle: let the folder's files run any code, which parts that are not hippynn's own
            need; for folders that you trust.

    Raises:
        TeacherError: for a folder without a model that can be read, one with no or several
            energies, or an unknown unit.
    """
    if energy_unit not in ENERGY_UNITS:
        raise TeacherError(
            f"energy_unit: expected {' or '.join(ENERGY_UNITS)}, got {energy_unit!r}"
        )
    remedy = f"say so: hippynn folder={folder} trust_pickle=true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = load_model(Path(folder), trust_pickle=trust_pickle, remedy=remedy)
        except (OSError, ValueError) as error:
            raise TeacherError(str(error)) from error
        energies = list(find_relatives(model.nodes_to_compute, Energies))
        if len(energies) != 1:
            raise TeacherError(f"{folder}: expected a model with one energy, got {len(energies)}")
        made = ElementsCalculator(energies[0], skin=skin, en_unit=ENERGY_UNITS[energy_unit])
    made.to(torch.float32)
    return made
