"""A trained HIPNN as an ASE calculator, and as a teacher that predicts in batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from hippynn.graphs import find_relatives
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.tags import Energies, Network
from hippynn.interfaces.ase_interface import HippynnCalculator

from kd_plugins.hippynn.convert import energy_factor
from kd_plugins.hippynn.folder import load_model
from kd_plugins.hippynn.teacher import HippynnTeacher, resolve_dtype
from kd_plugins.teachers.calculator import CalculatorTeacher
from kd_plugins.teachers.teacher import TeacherError, resolve_device

SKIN = 0.5
"""Å beyond the cutoff within which neighbours are kept; hippynn's 1 Å triples a solid's pairs."""
LARGEST_IN_BATCH = 200
"""Atoms of the largest structure that is predicted in a batch. A batch's pair finder compares all
atoms with all; from about 200 on, ASE's neighbour lists, which grow linearly, are faster."""


# Stores hold a teacher's fingerprint, which contains the name and module of this class: renamed, it
# could not resume a store that version 0.1.0 has begun.
class ElementsCalculator(HippynnCalculator):
    """hippynn's calculator, with an error for an element that the model would take for padding.

    Attributes:
        make_batches: makes the teacher that predicts in batches; None where there is none.
        receptive_field: Å, the cutoff times the interaction layers; None if they are not known.
    """

    # A function, not the teacher itself: the fingerprint hashes all weights that a calculator
    # holds, and those of a second copy of the model would change it.
    make_batches: Callable[[], HippynnTeacher] | None = None
    receptive_field: float | None = None

    def reset(self) -> None:
        """Forget the last structure and its neighbour list, in whose order forces are summed."""
        super().reset()
        self.rebuild_neighbors()

    def calculate(self, atoms: Atoms | None = None, *args: Any, **kwargs: Any) -> None:
        """Compute all properties; see ASE.

        Raises:
            ValueError: for an element that the model does not have.
        """
        numbers = set((self.atoms if atoms is None else atoms).numbers.tolist())
        if numbers - self.elements:
            raise ValueError(
                f"the model does not know element {min(numbers - self.elements)}; it knows "
                f"{', '.join(map(str, sorted(self.elements)))}"
            )
        super().calculate(atoms, *args, **kwargs)

    @property
    def elements(self) -> frozenset[int]:
        """Atomic numbers that the model has."""
        return frozenset(int(number) for number in self.species_set) - {0}

    def as_teacher(self) -> CalculatorTeacher:
        """Return the teacher that labels with this calculator, in batches where it can."""
        if self.make_batches is None:
            return CalculatorTeacher(self)
        return CalculatorBatches(self, self.make_batches())


class CalculatorBatches(CalculatorTeacher):
    """An `ElementsCalculator` that labels, periodic structures of up to 200 atoms in batches.

    Molecules, larger structures and elements that the model does not have go through the calculator
    one by one. Both ways agree to rounding in float32.

    Args:
        calculator: for all other structures, and for molecular dynamics.
        batches: the same model.
    """

    def __init__(self, calculator: ElementsCalculator, batches: HippynnTeacher) -> None:
        super().__init__(calculator)
        self._batches = batches
        self.batch_size = batches.batch_size

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of each structure; see `kd_plugins.teachers.Teacher`."""
        rows = [row for row, atoms in enumerate(structures) if self._fits(atoms)]
        in_batches = iter(self._batches.predict([structures[row] for row in rows], quantities))

        predicted = []
        for row, atoms in enumerate(structures):
            if row in rows:
                predicted.append(self._convert(next(in_batches)))
            else:
                predicted += super().predict([atoms], quantities)
        return predicted

    def _fits(self, atoms: Atoms) -> bool:
        """Return whether a structure can be in a batch, and is faster there."""
        is_periodic = atoms.pbc.all() and atoms.cell.rank == 3
        has_elements = set(atoms.numbers.tolist()) <= self.calculator.elements
        is_small = 0 < len(atoms) <= LARGEST_IN_BATCH
        return bool(self._batches.has_cells and is_periodic and has_elements and is_small)

    def _convert(self, targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return targets in eV, from the model's unit of energy."""
        return {name: value * self.calculator.en_unit for name, value in targets.items()}


def hippynn(
    folder: str,
    energy_unit: str = "eV",
    skin: float = SKIN,
    trust_pickle: bool = False,
    device: str = "auto",
    dtype: str = "float32",
) -> ElementsCalculator:
    """Return the potential ``hippynn``: energy, forces and stress of a trained model.

    Args:
        folder: that hippynn trained in, or that `export_student` made.
        energy_unit: of the model: ``eV`` or ``kcal/mol``; its lengths are in Å.
        skin: Å beyond the cutoff; more pairs a step, fewer new neighbour lists.
        trust_pickle: let the folder's files run any code, which parts that are not hippynn's own
            need; for folders that you trust.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        dtype: of weights and of all that is computed: ``float32``, or ``float64`` for relaxations
            and curvatures below float32's rounding.

    Raises:
        TeacherError: for a folder without a model that can be read, one with no or several
            energies, an unknown unit or dtype, or a device that this machine does not have.
    """
    try:
        unit = energy_factor(energy_unit)
    except ValueError as error:
        raise TeacherError(str(error)) from error
    where, precision = resolve_device(device), resolve_dtype(dtype)
    remedy = f"say so: hippynn folder={folder} trust_pickle=true"

    with warnings.catch_warnings():
        # hippynn warns of kernels that are not installed and of models without charges.
        warnings.simplefilter("ignore")
        try:
            model = load_model(Path(folder), trust_pickle=trust_pickle, remedy=remedy)
        except (OSError, ValueError) as error:
            raise TeacherError(str(error)) from error

        model.to(precision)
        energies = list(find_relatives(model.nodes_to_compute, Energies))
        if len(energies) != 1:
            raise TeacherError(f"{folder}: expected a model with one energy, got {len(energies)}")
        calculator = ElementsCalculator(energies[0], skin=skin, en_unit=unit)

    # The dtype and the device of what hippynn makes of positions; its weights follow.
    calculator.to(precision)
    calculator.to(torch.device(where))
    calculator.receptive_field = receptive_field(energies[0])
    if hasattr(energies[0], "atom_energies"):  # which energies of atomization have not
        calculator.make_batches = lambda: HippynnTeacher(energies[0], device=where)
    return calculator


def receptive_field(energy: Any) -> float | None:
    """Return the cutoff times the interaction layers in Å; None for what is no HIPNN."""
    try:
        networks = [node.torch_module for node in find_relatives(energy, Network)]
    except NodeNotFound:
        return None
    if not all(hasattr(one, "interaction_layers") for one in networks):
        return None
    return max(one.dist_hard_max * len(one.interaction_layers) for one in networks)
