"""The energies of atoms that a student starts from, where some structures have no label."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hippynn.graphs.nodes.base import _BaseNode
from hippynn.graphs.nodes.inputs import SpeciesNode
from hippynn.pretraining import hierarchical_energy_initialization

from kd_plugins.hippynn.convert import DataError, check_present
from kd_plugins.hippynn.coverage import TEACHER, check_splits, has_value

TOTALS = (TEACHER + "energy", TEACHER + "atomic_energies")
"""Arrays of which a structure's energy by the teacher is read, or summed."""


def initialize_energies(energy_node: Any, database: Any, **settings: Any) -> None:
    """Call hippynn's ``hierarchical_energy_initialization`` with the energies that there are.

    That function fits an energy for each element to the labels of all training structures, and
    would take the zero in place of a missing label for one. Here a structure without a label has
    its teacher's energy, if `add_teacher_targets` has added ``energy`` or ``atomic_energies``, and
    is left out otherwise. With all labels, the result is that of hippynn's function.

    Args:
        energy_node: the student's ``HEnergyNode``, with the ``db_name`` of the energy labels.
        database: a hippynn ``Database`` that has been split.
        settings: further arguments of hippynn's function, such as ``trainable_after``.

    Raises:
        DataError: if no training structure has an energy.
    """
    if not isinstance(energy_node, _BaseNode) or energy_node.main_output.db_name is None:
        raise DataError(
            "energy_node: expected the node of a student's energy with a db_name, got "
            f"{type(energy_node).__name__}"
        )
    check_splits(database, needed=("train",))

    arrays = database.splits["train"]
    label = energy_node.main_output.db_name
    species = energy_node.find_unique_relative(lambda node: isinstance(node, SpeciesNode)).db_name
    check_present(arrays, [species, label])

    energies, kept = arrays[label].clone(), has_value(arrays, label)
    target = next((name for name in TOTALS if name in arrays), None)
    if target is not None:
        by_teacher = ~kept & has_value(arrays, target)
        # The padding of atomic energies is 0.
        totals = arrays[target].reshape(len(energies), -1).sum(dim=1).reshape(energies.shape)
        energies[by_teacher] = totals[by_teacher]
        kept = kept | by_teacher

    if not bool(kept.any()):
        raise DataError(
            f"no training structure has an energy, neither a label {label!r} nor a teacher's; add "
            "energy or atomic_energies by add_teacher_targets before"
        )
    train = {species: arrays[species][kept], label: energies[kept]}
    hierarchical_energy_initialization(
        energy_node, SimpleNamespace(splits={"train": train}), **settings
    )
