"""What must be right of labels and targets before they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from kd_plugins.core.cases import Case
from kd_plugins.core.doctor import examine
from kd_plugins.hippynn.arrays import ArrayNames, DataError, structures
from kd_plugins.hippynn.sources import Said
from kd_plugins.hippynn.sums import energies

EXAMINED = 400
"""Structures that are looked at closely, at most."""


def check_labels(split: str, arrays: Mapping[str, torch.Tensor], names: ArrayNames) -> None:
    """Refuse labels that are not finite, or not laid out as hippynn needs them.

    Raises:
        DataError: naming split, array and row.
    """
    for name in (names.energy, names.forces):
        if name not in arrays:
            continue
        value = arrays[name]
        bad = ~torch.isfinite(value).reshape(len(value), -1).all(dim=1)
        if bool(bad.any()):
            raise DataError(
                f"split {split!r}: {name!r} is NaN or inf in {int(bad.sum())} of {len(bad)} "
                f"structures, the first one in row {int(bad.nonzero()[0])}; take them out"
            )
    energy, species = arrays.get(names.energy), arrays.get(names.species)
    if energy is not None and energy.numel() != len(energy):
        raise DataError(f"{names.energy!r}: expected one a structure, got {tuple(energy.shape)}")
    forces = arrays.get(names.forces)
    if forces is not None and species is not None and forces.shape != (*species.shape, 3):
        raise DataError(
            f"{names.forces!r}: expected {(*species.shape, 3)} as of {names.species!r}, got "
            f"{tuple(forces.shape)}"
        )


def check_targets(
    splits: Mapping[str, Mapping[str, torch.Tensor]], said: Mapping[str, Said], names: ArrayNames
) -> None:
    """Refuse targets of another unit, sign or scope than the labels', or that are not finite.

    Raises:
        DataError: with everything that is wrong for certain.
    """
    for split, one in said.items():
        for name, value in one.values.items():
            if not np.isfinite(value).all():
                row = int(np.flatnonzero(~np.isfinite(value).reshape(len(value), -1).all(1))[0])
                raise DataError(f"split {split!r}: the teacher's {name} of row {row} is NaN or inf")
    cases = list(_cases(splits["train"], said["train"], names))
    wrong = [finding.message for finding in examine(cases) if finding.severity == "error"]
    if wrong:
        raise DataError("\n  ".join(["the teacher's targets cannot be right:", *wrong]))


def _cases(arrays: Mapping[str, torch.Tensor], said: Said, names: ArrayNames) -> Iterator[Case]:
    held, total = structures(arrays, names), energies(said)
    rows = np.flatnonzero(said.present)
    for row in rows[np.linspace(0, len(rows) - 1, min(EXAMINED, len(rows))).astype(int)]:
        real = arrays[names.species][row].cpu().numpy() != 0
        teacher: dict[str, Any] = {} if total is None else {"energy": total[row]}
        if "forces" in said.values:
            teacher["forces"] = said.values["forces"][row][real]
        labels: dict[str, Any] = {}
        if names.energy in arrays:
            labels["energy"] = arrays[names.energy][row].double().item()
        if names.forces in arrays and "forces" in teacher:
            labels["forces"] = arrays[names.forces][row].double().numpy()[real]
        yield Case(f"row {row}", held[row], labels, teacher)
