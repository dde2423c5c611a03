"""A teacher's targets as further arrays of a hippynn database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_plugins.core.names import suggestion
from kd_plugins.hippynn.arrays import ArrayNames, DataError
from kd_plugins.hippynn.loss import TEACHER, WEIGHT
from kd_plugins.hippynn.preflight import check_labels, check_targets
from kd_plugins.hippynn.sources import Said, ask, opened
from kd_plugins.hippynn.sums import SumErrors, aligned, offsets, sum_errors
from kd_plugins.hippynn.teacher import QUANTITIES

OFFSET = 0.1
"""eV/atom by which a teacher's energies may be off the labels as a whole, unless aligned."""


@dataclass(frozen=True)
class TargetsReport:
    """What was added.

    Args:
        quantities: names of the teacher's quantities.
        sums: split to how far the teacher's energies are from the labels; empty without labels.
        missing: split to how many structures have no target.
        dropped: split to rows whose targets do not count, by ``max_sum_error``.
        offsets: atomic number to eV that was taken from each such atom's energy.
    """

    quantities: tuple[str, ...]
    sums: Mapping[str, SumErrors]
    missing: Mapping[str, int]
    dropped: Mapping[str, tuple[int, ...]]
    offsets: Mapping[int, float]

    def __str__(self) -> str:
        head = "split    structures missing dropped   teacher - label, meV/atom: mean    rms  worst"
        lines = [head]
        for split, one in self.sums.items():
            counts = f"{one.n:10d} {self.missing[split]:7d} {len(self.dropped[split]):7d}"
            errors = f"{1e3 * one.mean:36.1f} {1e3 * one.rms:6.1f} {1e3 * one.worst:6.1f}"
            lines.append(f"{split:8s} {counts} {errors}")
        return "\n".join(lines)


def add_teacher_targets(
    database: Any,
    teacher: Any,
    quantities: Sequence[str] = ("atomic_energies",),
    *,
    names: ArrayNames | None = None,
    align: bool = False,
    max_sum_error: float | None = None,
    spread: float | None = None,
    allow_missing: bool = False,
) -> TargetsReport:
    """Put what a teacher says of every structure into every split of a hippynn database.

    For each quantity there are then ``teacher_<name>``, padded as the database is, and
    ``teacher_<name>_weight``, 0 where a target is missing; `distillation_loss` reads both. All is
    computed and checked before anything is written.

    Args:
        database: a hippynn ``Database`` that has been split.
        teacher: a hippynn model, a folder that hippynn trained in, an energy node, or a list of
            these, of which the mean is taken; a ``TargetStore``, whose structures are found by
            ``structure_key``; or any ASE calculator with these quantities.
        quantities: ``atomic_energies``, ``energy``, ``forces`` or some of them.
        names: what the database calls its arrays.
        align: take the teacher's offset to the labels, fitted element by element on the training
            split, from its energies; for teachers whose atoms have another zero of energy.
        max_sum_error: eV/atom; structures whose energy by the teacher is further from the label
            are left out of every target, and listed.
        spread: eV, of several models; an atom's target then counts 1 / (1 + (std / spread)²).
        allow_missing: let structures be that a store does not hold; they do not count.

    Raises:
        DataError: for targets that cannot be right, such as another unit, energies per atom for
            total ones, elements that the teacher does not know, or structures that differ from
            those that were labelled.
        KeyError: for a quantity that does not exist.
    """
    names = names or ArrayNames()
    wanted, teacher = _checked(database, quantities), opened(teacher)
    for split, arrays in database.splits.items():
        check_labels(split, arrays, names)
    said = {
        split: ask(teacher, arrays, names, wanted, split, allow_missing)
        for split, arrays in database.splits.items()
    }
    moved = offsets(database.splits["train"], said["train"], names) if align else {}
    said = {
        split: aligned(one, database.splits[split][names.species], moved)
        for split, one in said.items()
    }
    sums = {s: sum_errors(database.splits[s], one, names) for s, one in said.items()}
    held = {split: one for split, one in sums.items() if one is not None}
    check_targets(database.splits, said, names)
    _check_offset(held, align)
    dropped = {split: _beyond(held, split, max_sum_error) for split in said}
    _write(database, said, dropped, names, spread)
    missing = {split: int((~one.present).sum()) for split, one in said.items()}
    report = TargetsReport(wanted, held, missing, dropped, moved)
    if not database.quiet:
        print(report)
    return report


def _checked(database: Any, quantities: Sequence[str]) -> tuple[str, ...]:
    if not getattr(database, "splits", None) or "train" not in database.splits:
        raise DataError(
            "the database has no training split yet; split it first, such as with "
            "make_trainvalidtest_split"
        )
    if isinstance(quantities, str) or not quantities:
        raise DataError(f"quantities: expected one or more names, got {quantities!r}")
    for name in quantities:
        if name not in QUANTITIES:
            raise KeyError(f"unknown quantity {name!r} of a teacher{suggestion(name, QUANTITIES)}")
        if TEACHER + name in database.splits["train"]:
            raise DataError(
                f"the database has {TEACHER + name!r} already; targets are added once, so make the "
                "database anew for another teacher"
            )
    return tuple(quantities)


def _check_offset(sums: Mapping[str, SumErrors], is_aligned: bool) -> None:
    if "train" not in sums or is_aligned:
        return
    typical, scatter = sums["train"].typical
    if abs(typical) > max(OFFSET, 2 * scatter):
        raise DataError(
            f"the teacher's energies are {typical:.3f} eV/atom above the labels, and scatter by "
            f"{scatter:.3f}; if only its atoms have another zero of energy, give align=True; is "
            "it the right teacher?"
        )


def _beyond(sums: Mapping[str, SumErrors], split: str, limit: float | None) -> tuple[int, ...]:
    if limit is None:
        return ()
    if split not in sums:
        raise DataError(
            f"max_sum_error: split {split!r} has no energies of teacher and labels to compare; "
            "leave it out, or add atomic_energies or energy"
        )
    return tuple(sums[split].beyond(limit))


def _write(
    database: Any,
    said: Mapping[str, Said],
    dropped: Mapping[str, Sequence[int]],
    names: ArrayNames,
    spread: float | None,
) -> None:
    for split, one in said.items():
        arrays = database.splits[split]
        like = arrays[names.positions]
        counts = one.present.copy()
        counts[list(dropped[split])] = False
        for name, value in one.values.items():
            weight = _weight(name, one, counts, arrays[names.species].cpu().numpy() != 0, spread)
            value = value[:, None] if name == "energy" else value
            arrays[TEACHER + name] = torch.as_tensor(value).to(like)
            arrays[TEACHER + name + WEIGHT] = torch.as_tensor(weight).to(like)


def _weight(
    name: str, one: Said, counts: NDArray[Any], real: NDArray[Any], spread: float | None
) -> NDArray[np.float64]:
    """Return (n, atoms) of an atom's quantity, or (n, 1)."""
    weight = (counts[:, None] if name == "energy" else counts[:, None] & real).astype(float)
    if spread is None or name != "atomic_energies":
        return weight
    if name not in one.spreads:
        raise DataError("spread: there is one teacher, so there is no spread; leave it out")
    return weight / (1 + np.square(one.spreads[name] / spread))
