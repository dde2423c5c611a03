"""What must be right of labels and targets before they are trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kd_plugins.doctor.examine import examine, split_allowed
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
from kd_plugins.hippynn.sums import energies

logger = logging.getLogger(__name__)

EXAMINED = 400
"""Structures that are looked at closely, at most."""


def check_labels(split: str, arrays: Mapping[str, torch.Tensor], names: ArrayNames) -> None:
    """Refuse labels that are not finite, or not laid out as hippynn needs them.

    Raises:
        DataError: naming split, array and rows.
    """
    where = f"split {split!r}: "
    held = [name for name in (names.energy, names.forces) if name in arrays]
    check_floats(arrays, held, where)
    energy, forces, species = (arrays.get(n) for n in (names.energy, names.forces, names.species))
    if energy is not None and energy.numel() != len(energy):
        raise DataError(
            f"{where}{names.energy!r}: expected one a structure, got {tuple(energy.shape)}"
        )
    if forces is not None and species is not None and forces.shape != (*species.shape, 3):
        raise DataError(
            f"{where}{names.forces!r}: expected {(*species.shape, 3)} as of {names.species!r}, got "
            f"{tuple(forces.shape)}"
        )
    for name in held:
        bad = ~is_finite(arrays[name], arrays[names.species])
        refuse_rows(bad, f"{where}{name!r} is NaN or inf", "take them out")


def check_targets(
    splits: Mapping[str, Mapping[str, torch.Tensor]],
    said: Mapping[str, Predictions],
    names: ArrayNames,
    allow: Sequence[str],
) -> None:
    """Refuse targets of another unit, sign or scope than the labels', or that are not finite.

    Args:
        splits: of a database.
        said: split to what a teacher says of it.
        names: what the arrays are called.
        allow: names of errors that are logged as warnings.

    Raises:
        DataError: with everything that is wrong for certain.
    """
    for split, one in said.items():
        for name, value in one.values.items():
            kept = value.astype(np.float32 if _is_single(splits[split], names) else np.float64)
            bad = ~np.isfinite(kept).reshape(len(kept), -1).all(axis=1)
            what = f"split {split!r}: the teacher's {name} is NaN, inf or too large"
            refuse_rows(bad, what, "mend the teacher, or take these structures out")

    cases = list(_cases(splits["train"], said["train"], names))
    refused, overruled = split_allowed(examine(cases), allow)
    for finding in overruled:
        logger.warning(finding.message)
    wrong = [finding.message for finding in refused]
    if wrong:
        raise DataError("\n  ".join(["the teacher's targets cannot be right:", *wrong]))


def _is_single(arrays: Mapping[str, torch.Tensor], names: ArrayNames) -> bool:
    return arrays[names.positions].dtype == torch.float32


def _cases(
    arrays: Mapping[str, torch.Tensor], said: Predictions, names: ArrayNames
) -> Iterator[DoctorInput]:
    held, total = to_structures(arrays, names), energies(said)
    labels = {
        quantity: arrays[name].detach().cpu().double().numpy()
        for quantity, name in (("energy", names.energy), ("forces", names.forces))
        if name in arrays
    }
    if "forces" in labels and is_gradient(names.forces):
        labels["forces"] = -labels["forces"]
    rows = np.flatnonzero(said.present)
    for row in rows[np.linspace(0, len(rows) - 1, min(EXAMINED, len(rows))).astype(int)]:
        real = arrays[names.species][row].cpu().numpy() != 0
        teacher: dict[str, Any] = {} if total is None else {"energy": total[row]}
        for name, value in said.values.items():
            teacher[name] = value[row] if name == "energy" else value[row][real]
        label: dict[str, Any] = {}
        if "energy" in labels:
            label["energy"] = labels["energy"][row].item()
        if "forces" in labels and "forces" in teacher:
            label["forces"] = labels["forces"][row][real]
        yield DoctorInput(f"row {row}", held[row], label, teacher)
