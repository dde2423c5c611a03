"""Teacher targets of a batch of structures: an immutable record, validated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kd_plugins.core.quantities import Scope, quantity


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Teacher targets of a batch; one structure is a batch of one.

    A value that is missing for a structure is marked in ``present`` (its rows hold any finite
    number) and never by NaN, so that a missing target cannot poison a sum or pass as a zero.

    A batch is made once, where the targets are read or predicted, and is checked there. What
    `collate`, `unbatch` and `to` make of checked records is not checked again: on a GPU every
    check would make the host wait for the device.

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
    _n_atoms_in_total: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Validate everything once, so that later code need not."""
        _check_structures(self.structure_ids, self.n_atoms)
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "present", MappingProxyType(dict(self.present)))

        # One transfer for all checks: on a GPU, each would make the host wait for it.
        tensors = [value for value in self.values.values() if isinstance(value, Tensor)]
        answers = [self.n_atoms.sum(), (self.n_atoms < 0).any()]
        answers += [torch.isfinite(value).all() for value in tensors]
        total, has_negative, *are_finite = torch.stack(
            [answer.to(self.n_atoms.device, torch.long) for answer in answers]
        ).tolist()

        if has_negative:
            raise ValueError(f"n_atoms: expected whole numbers >= 0, (B,), got {self.n_atoms}")
        object.__setattr__(self, "_n_atoms_in_total", total)

        for name, mask in self.present.items():
            _check_presence(name, mask, self)
        for name, value in self.values.items():
            _check_value(name, value, self)
        for (name, value), is_finite in zip(self.values.items(), are_finite, strict=True):
            if not is_finite:
                raise ValueError(
                    f"{name}: {_first_not_finite(name, value, self)} is not finite (NaN or inf); "
                    "mark missing targets in `present`"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """Let data loader workers send records: a mappingproxy cannot be pickled."""
        fields = (self.structure_ids, self.n_atoms, dict(self.values), dict(self.present))
        return TeacherTargets.unchecked, (*fields, self._n_atoms_in_total)

    @classmethod
    def unchecked(
        cls,
        structure_ids: tuple[str, ...],
        n_atoms: Tensor,
        values: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        n_atoms_in_total: int,
    ) -> TeacherTargets:
        """Return a record of values that were checked where they were read or predicted.

        Args:
            structure_ids: as of the class.
            n_atoms: as of the class.
            values: as of the class.
            present: as of the class.
            n_atoms_in_total: N, the sum of ``n_atoms``, which on a GPU is not known to the host.
        """
        targets = object.__new__(cls)
        fields = {
            "structure_ids": structure_ids,
            "n_atoms": n_atoms,
            "values": MappingProxyType(dict(values)),
            "present": MappingProxyType(dict(present)),
            "_n_atoms_in_total": n_atoms_in_total,
        }
        for name, value in fields.items():
            object.__setattr__(targets, name, value)
        return targets

    def with_values(self, values: Mapping[str, Tensor]) -> TeacherTargets:
        """Return the same structures with other values, such as the same ones in other units.

        Names and shapes are checked, numbers are not. Quantities keep their ``present``.

        Args:
            values: quantity name to tensor, as of the class.

        Raises:
            KeyError: for a quantity that is not in the table.
            ValueError: for a wrong shape, or a tensor that requires grad.
        """
        for name, value in values.items():
            _check_value(name, value, self)
        present = {name: mask for name, mask in self.present.items() if name in values}
        total = self._n_atoms_in_total
        return self.unchecked(self.structure_ids, self.n_atoms, values, present, total)

    @classmethod
    def collate(cls, parts: Sequence[TeacherTargets]) -> TeacherTargets:
        """Join several records into one batch, in the order given.

        Quantities that some structures lack are missing there: ``present`` is False, and their
        rows are zeros. ``TeacherTargets.collate(parts).unbatch()`` gives batches of one back.

        Args:
            parts: at least one record, of one structure or of several, all on one device.

        Raises:
            ValueError: for no records, or for one quantity in two widths.

        >>> energy, charge = torch.tensor([-3.0]), torch.tensor([0.1, 0.2])
        >>> first = TeacherTargets(("a",), torch.tensor([2]), {"energy": energy})
        >>> second = TeacherTargets(("b",), torch.tensor([2]), {"magmoms": charge})
        >>> batch = TeacherTargets.collate([first, second])
        >>> batch.values["energy"], batch.mask("energy")
        (tensor([-3.,  0.]), tensor([ True, False]))
        """
        if not parts:
            raise ValueError("collate: expected at least one record of teacher targets, got none")

        values, present = {}, {}
        for name in dict.fromkeys(name for part in parts for name in part.values):
            values[name] = _collated_values(name, parts)
            if any(name not in part.values or name in part.present for part in parts):
                present[name] = torch.cat([part._present_for_each(name) for part in parts])

        structure_ids = tuple(name for part in parts for name in part.structure_ids)
        n_atoms = torch.cat([part.n_atoms for part in parts])
        total = sum(part._n_atoms_in_total for part in parts)
        return cls.unchecked(structure_ids, n_atoms, values, present, total)

    def unbatch(self) -> list[TeacherTargets]:
        """Return one record a structure, in order; the tensors are views of this batch's.

        A quantity that a structure lacks is left out of its record. The inverse of `collate`.
        """
        counts: list[int] = self.n_atoms.tolist()
        rows = {
            name: value.split(counts if quantity(name).scope == "atom" else 1)
            for name, value in self.values.items()
        }
        present = {name: mask.tolist() for name, mask in self.present.items()}

        return [
            self.unchecked(
                (structure_id,),
                self.n_atoms[place : place + 1],
                {
                    name: parts[place]
                    for name, parts in rows.items()
                    if name not in present or present[name][place]
                },
                {},
                counts[place],
            )
            for place, structure_id in enumerate(self.structure_ids)
        ]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TeacherTargets:
        """Return the same targets on another device.

        A batch that moves its members with ``member.to(device=..., non_blocking=...)``, such as
        torch_geometric's, carries targets along.

        Args:
            device: as of `torch.Tensor.to`.
            non_blocking: as of `torch.Tensor.to`; it has an effect for pinned memory only.
        """

        def move(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: tensor.to(device, non_blocking=non_blocking)
                for name, tensor in tensors.items()
            }

        n_atoms = self.n_atoms.to(device, non_blocking=non_blocking)
        total = self._n_atoms_in_total
        moved = move(self.values), move(self.present)
        return self.unchecked(self.structure_ids, n_atoms, *moved, total)

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
        if quantity(name).scope == "structure":
            return present
        return torch.repeat_interleave(present, self.n_atoms, output_size=self._n_atoms_in_total)

    def n_items(self, scope: Scope) -> int:
        """Return how many structures (B) or atoms (N) there are, without a wait for the device."""
        return self._n_atoms_in_total if scope == "atom" else len(self.structure_ids)

    def _present_for_each(self, name: str) -> Bool[Tensor, " B"]:
        """Return for each structure whether it has a target of any quantity."""
        if name in self.present:
            return self.present[name]
        return torch.full(
            (len(self.structure_ids),), name in self.values, device=self.n_atoms.device
        )


def _collated_values(name: str, parts: Sequence[TeacherTargets]) -> Tensor:
    """Return one quantity of several records, zeros where a record lacks it."""
    holders = [part for part in parts if name in part.values]
    first = holders[0].values[name]

    for part in holders:
        if part.values[name].shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{name}: structures of one batch must have one shape an item, got "
                f"{tuple(first.shape[1:])} of {holders[0].structure_ids[0]!r} and "
                f"{tuple(part.values[name].shape[1:])} of {part.structure_ids[0]!r}"
            )

    scope = quantity(name).scope
    return torch.cat(
        [
            part.values[name]
            if name in part.values
            else first.new_zeros(part.n_items(scope), *first.shape[1:])
            for part in parts
        ]
    )


def _check_structures(structure_ids: tuple[str, ...], n_atoms: Tensor) -> None:
    if isinstance(structure_ids, str):
        raise ValueError(f"structure_ids: expected a tuple of ids, got {structure_ids!r}")
    if not isinstance(n_atoms, Tensor):
        raise ValueError(f"n_atoms: expected a tensor, got {type(n_atoms).__name__}")
    if len(structure_ids) != len(n_atoms):
        raise ValueError(
            f"structure_ids: expected {len(n_atoms)} (one a structure of n_atoms), "
            f"got {len(structure_ids)}"
        )
    if n_atoms.is_floating_point() or n_atoms.ndim != 1:
        raise ValueError(f"n_atoms: expected whole numbers >= 0, (B,), got {n_atoms}")


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

    n_items = targets.n_items(row.scope)
    if value.shape[:1] != (n_items,) or not row.fits(tuple(value.shape[1:])):
        axis = "N" if row.scope == "atom" else "B"
        trailing = "".join(f", {size}" for size in row.shape)
        raise ValueError(f"{name}: expected ({axis}={n_items}{trailing}), got {tuple(value.shape)}")

    if value.requires_grad:
        raise ValueError(f"{name}: a teacher target must not require grad; detach it")


def _first_not_finite(name: str, value: Tensor, targets: TeacherTargets) -> str:
    """Return the name of the first structure with a number that is not finite."""
    is_finite = torch.isfinite(value)
    if value.ndim > 1:
        is_finite = is_finite.flatten(1).all(dim=1)
    item = int((~is_finite).nonzero()[0])

    if quantity(name).scope == "structure":
        return f"the teacher target of structure {targets.structure_ids[item]!r}"

    # right=True steps over structures without atoms, which end where the one before ends.
    place = int(torch.searchsorted(targets.n_atoms.cumsum(0), item, right=True))
    return f"the teacher target of an atom of structure {targets.structure_ids[place]!r}"
