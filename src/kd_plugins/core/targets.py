"""What a teacher says of a batch of structures: one immutable, validated record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kd_plugins.core.quantities import quantity


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Teacher targets of a batch; one structure is a batch of one.

    A value that is absent for a structure is marked in ``present`` (its rows hold any finite
    number) and never by NaN, so that a missing target cannot poison a sum or pass as a zero.

    Args:
        structure_ids: B identities; targets are matched by them, never by position.
        n_atoms: atoms of each structure, shape (B,).
        values: quantity name to tensor with leading axis N = ``n_atoms.sum()`` or B, in the units
            of `kd_plugins.core.quantities.QUANTITIES`.
        present: quantity name to booleans of shape (B,); a name left out is present everywhere.

    Raises:
        KeyError: for a quantity that is not in the table.
        ValueError: for a wrong shape, a value that is not finite, a tensor that requires grad, or
            ids and atom counts of different lengths.

    >>> targets = TeacherTargets(("a",), torch.tensor([2]), {"energy": torch.tensor([-3.0])})
    >>> targets.mask("energy")
    tensor([True])
    """

    structure_ids: tuple[str, ...]
    n_atoms: Int[Tensor, " B"]
    values: Mapping[str, Tensor]
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate everything once, so that later code need not."""
        if isinstance(self.structure_ids, str):
            raise ValueError(f"structure_ids: expected a tuple of ids, got {self.structure_ids!r}")
        if not isinstance(self.n_atoms, Tensor):
            raise ValueError(f"n_atoms: expected a tensor, got {type(self.n_atoms).__name__}")
        if len(self.structure_ids) != len(self.n_atoms):
            raise ValueError(
                f"structure_ids: expected {len(self.n_atoms)} (one a structure of n_atoms), "
                f"got {len(self.structure_ids)}"
            )
        counts = self.n_atoms
        if counts.is_floating_point() or counts.ndim != 1 or bool((counts < 0).any()):
            raise ValueError(f"n_atoms: expected whole numbers >= 0, (B,), got {counts}")
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "present", MappingProxyType(dict(self.present)))
        for name, mask in self.present.items():
            _check_presence(name, mask, self)
        for name, value in self.values.items():
            _check_value(name, value, self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let data loader workers send records: a mappingproxy cannot be pickled."""
        fields = (self.structure_ids, self.n_atoms, dict(self.values), dict(self.present))
        return TeacherTargets, fields

    def mask(self, name: str) -> Tensor:
        """Return booleans over the items (atoms or structures) of a quantity that has a target.

        Raises:
            KeyError: if the record has no such quantity.
        """
        if name not in self.values:
            raise KeyError(f"teacher targets hold no {name!r}; they hold {', '.join(self.values)}")
        present = self.present.get(name)
        if present is None:
            return torch.ones(len(self.values[name]), dtype=torch.bool, device=self.n_atoms.device)
        return present if quantity(name).scope == "structure" else _per_atom(present, self.n_atoms)


def _per_atom(per_structure: Tensor, n_atoms: Tensor) -> Tensor:
    return torch.repeat_interleave(per_structure, n_atoms)


def _check_presence(name: str, mask: Tensor, targets: TeacherTargets) -> None:
    expected = (len(targets.n_atoms),)
    if name not in targets.values:
        raise ValueError(f"present[{name!r}] has no value beside it; give values[{name!r}] as well")
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(
            f"present[{name!r}]: expected booleans (B={expected[0]},), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )


def _check_value(name: str, value: Tensor, targets: TeacherTargets) -> None:
    row = quantity(name)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected real numbers such as float32, got {value.dtype}")
    n_items = row.n_items(len(targets.n_atoms), int(targets.n_atoms.sum()))
    if value.shape[:1] != (n_items,) or not row.fits(tuple(value.shape[1:])):
        axis = "N" if row.scope == "atom" else "B"
        trailing = "".join(f", {size}" for size in row.shape)
        raise ValueError(f"{name}: expected ({axis}={n_items}{trailing}), got {tuple(value.shape)}")
    if value.requires_grad:
        raise ValueError(f"{name}: a teacher target must not require grad; detach it")
    if not bool(torch.isfinite(value).all()):
        finite = torch.isfinite(value).flatten(1).all(dim=1) if value.ndim > 1 else value.isfinite()
        where = _where_bad(row.scope, ~finite, targets)
        raise ValueError(
            f"{name}: {where} is not finite (NaN or inf); mark missing targets in `present`"
        )


def _where_bad(scope: str, bad: Tensor, targets: TeacherTargets) -> str:
    item = int(bad.nonzero()[0])
    if scope == "structure":
        return f"the teacher target of structure {targets.structure_ids[item]!r}"
    owner = int(torch.searchsorted(targets.n_atoms.cumsum(0), item, right=True))
    return f"the teacher target of an atom of structure {targets.structure_ids[owner]!r}"
