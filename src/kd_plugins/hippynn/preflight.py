"""Checks of a database's labels and of a teacher's targets, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.hippynn.convert import (
    ArrayNames,
    DataError,
    check_floats,
    is_finite,
    is_gradient,
    refuse_rows,
    to_structures,
)
from kd_plugins.hippynn.providers import Predictions
from kd_plugins.hippynn.sums import total_energies
from kd_plugins.preflight import PreflightPart, evenly_spaced, preflight

# The doctor takes about 1 ms a structure; 400 are half a second.
EXAMINED = 400
"""Structures of which the targets are compared with the labels, at most."""


def check_labels(split: str, arrays: Mapping[str, torch.Tensor], names: ArrayNames) -> None:
    """Refuse labels that are not finite, or not laid out as hippynn needs them.

    Raises:
        DataError: naming split, array and rows.
    """
    where = f"split {split!r}: "
    present = [name for name in (names.energy, names.forces) if name in arrays]
    check_floats(arrays, present, where)

    energy, forces, species = (
        arrays.get(name) for name in (names.energy, names.forces, names.species)
    )
    if energy is not None and energy.numel() != len(energy):
        raise DataError(
            f"{where}{names.energy!r}: expected one a structure, got {tuple(energy.shape)}"
        )
    if forces is not None and species is not None and forces.shape != (*species.shape, 3):
        raise DataError(
            f"{where}{names.forces!r}: expected {(*species.shape, 3)} as of {names.species!r}, got "
            f"{tuple(forces.shape)}"
        )

    for name in present:
        bad = ~is_finite(arrays[name], arrays[names.species])
        refuse_rows(bad, f"{where}{name!r} is NaN or inf", "take them out")


def check_targets(
    splits: Mapping[str, Mapping[str, torch.Tensor]],
    predictions: Mapping[str, Predictions],
    names: ArrayNames,
    allow: Sequence[str],
) -> None:
    """Refuse targets of another unit, sign or scope than the labels', or that are not finite.

    Args:
        splits: of a database.
        predictions: split to a teacher's targets of it.
        names: of the arrays.
        allow: names of errors that are logged as warnings.

    Raises:
        DataError: with everything that is certainly wrong.
    """
    for split, of_split in predictions.items():
        # As the database will hold them: what float64 still holds may be inf in float32.
        is_single = splits[split][names.positions].dtype == torch.float32
        dtype = np.float32 if is_single else np.float64
        for name, value in of_split.values.items():
            bad = ~np.isfinite(value.astype(dtype)).reshape(len(value), -1).all(axis=1)
            what = f"split {split!r}: the teacher's {name} is NaN, inf or too large"
            refuse_rows(bad, what, "mend the teacher, or take these structures out")

    # All quantities and structures count, since nothing is known yet of a loss. The doctor's
    # warnings are no news here: the table of `TargetsReport` has the differences.
    inputs = list(_to_inputs(splits["train"], predictions["train"], names))
    preflight([PreflightPart(inputs, log_level=logging.INFO)], allow, DataError)


def _to_inputs(
    arrays: Mapping[str, torch.Tensor], predictions: Predictions, names: ArrayNames
) -> Iterator[DoctorInput]:
    """Yield some of the structures that have targets, without the padding of their arrays."""
    structures, total = to_structures(arrays, names), total_energies(predictions)
    labels = {
        quantity: arrays[name].detach().cpu().double().numpy()
        for quantity, name in (("energy", names.energy), ("forces", names.forces))
        if name in arrays
    }
    if "forces" in labels and is_gradient(names.forces):
        labels["forces"] = -labels["forces"]

    rows = np.flatnonzero(predictions.present)
    for row in rows[evenly_spaced(EXAMINED, len(rows))]:
        is_atom = arrays[names.species][row].cpu().numpy() != 0

        teacher: dict[str, Any] = {} if total is None else {"energy": total[row]}
        for name, value in predictions.values.items():
            teacher[name] = value[row] if name == "energy" else value[row][is_atom]

        label: dict[str, Any] = {}
        if "energy" in labels:
            label["energy"] = labels["energy"][row].item()
        if "forces" in labels and "forces" in teacher:
            label["forces"] = labels["forces"][row][is_atom]
        yield DoctorInput(f"row {row}", structures[row], label, teacher)
