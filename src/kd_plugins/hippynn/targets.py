"""A teacher's targets as further arrays of a hippynn database."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from kd_plugins.doctor.examine import check_allow
from kd_plugins.hippynn.convert import (
    WEIGHT,
    ArrayNames,
    DataError,
    check_geometry,
    checked_names,
)
from kd_plugins.hippynn.coverage import TEACHER, check_splits, has_value
from kd_plugins.hippynn.preflight import check_labels, check_targets
from kd_plugins.hippynn.providers import (
    Predictions,
    Split,
    TargetProvider,
    as_providers,
    average,
)
from kd_plugins.hippynn.sums import (
    SumErrors,
    fit_offsets,
    subtract_offsets,
    sum_errors,
    total_energies,
)
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number, shown

logger = logging.getLogger(__name__)

TARGETS = ("atomic_energies", "energy", "forces")
"""Quantities of which a database can have targets."""
LARGEST_OFFSET = 0.1
"""eV/atom by which a teacher's energies may be off the labels as a whole, unless aligned."""
OFFSET_ERROR = "energy_offset"
"""The name of that error in ``allow``."""


@dataclass(frozen=True)
class TargetsReport:
    """What `add_teacher_targets` added.

    Args:
        quantities: names of the teacher's quantities.
        sums: split to how far the teacher's energies are from the labels, by the structures that
            have both; no entry where none has.
        missing: split to how many structures have no target.
        dropped: split to rows whose targets do not count, by ``max_sum_error``.
        offsets: atomic number to eV that was subtracted from each such atom's energy.
        sizes: split to how many structures it has.
    """

    quantities: tuple[str, ...]
    sums: Mapping[str, SumErrors]
    missing: Mapping[str, int]
    dropped: Mapping[str, tuple[int, ...]]
    offsets: Mapping[int, float]
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        head = "split    structures missing dropped   teacher - label, meV/atom: mean    rms  worst"
        lines = [head]
        for split, missing in self.missing.items():
            counts = f"{self.sizes[split]:10d} {missing:7d} {len(self.dropped[split]):7d}"
            sums = self.sums.get(split)
            errors = (
                f"{1e3 * sums.mean:36.1f} {1e3 * sums.rms:6.1f} {1e3 * sums.worst:6.1f}"
                if sums
                else f"{'no energies to compare':>50}"
            )
            lines.append(f"{split:8s} {counts} {errors}")

        if self.offsets:
            by_element = ", ".join(
                f"{chemical_symbols[z]} {offset:+.4f}" for z, offset in self.offsets.items()
            )
            lines.append(
                f"zero of energy aligned to the labels of {self.sums['train'].count} training "
                f"structures; subtracted from the teacher's, eV an atom: {by_element}"
            )
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
    skip_labelled: bool = False,
    allow: Sequence[str] = (),
    trust_pickle: bool = False,
    device: str = "auto",
) -> TargetsReport:
    """Add a teacher's targets of every structure to every split of a hippynn database.

    For each quantity there are then ``teacher_<name>``, padded as the database is, and
    ``teacher_<name>_weight``, 0 where a target is missing; `distillation_loss` reads both. All is
    computed and checked before anything is added.

    Args:
        database: a hippynn ``Database`` that has been split.
        teacher: a hippynn model, a folder that hippynn trained in, or an energy node; a
            ``TargetStore`` or its folder, with structures found by ``structure_key``; an ASE
            calculator or another `kd_plugins.teachers.Teacher` with these quantities; or a list of
            these, for their mean.
        quantities: ``atomic_energies``, ``energy``, ``forces`` or some of them.
        names: of the database's arrays.
        align: subtract a teacher's offset from the labels, fitted per element on the structures
            of the training split that have both, from its energies; for teachers whose atoms have
            another zero of energy.
        max_sum_error: eV/atom; structures whose energy by the teacher is further from the label
            get no target that counts, and are listed.
        spread: eV, of several teachers or of a store that holds ``atomic_energies_std``; an atom's
            target then counts 1 / (1 + (std / spread)²).
        allow_missing: accept structures that a store does not hold; they do not count.
        skip_labelled: targets of energies and forces do not count where a structure has that
            label, so that the teacher fills gaps. Offsets and checks still read them.
        allow: names of errors that are logged as warnings, such as ``energy_unit``; a message that
            can be overruled contains its name.
        trust_pickle: see `HippynnTeacher`, for folders.
        device: where hippynn models compute: ``auto`` (CUDA where there is one), ``cpu``,
            ``cuda``; other teachers have a device already.

    Raises:
        DataError: for targets that cannot be right, such as another unit, energies per atom for
            total ones, elements that the teacher does not know, or structures that differ from
            those that were labelled; for structures that are not periodic among crystals.
        KeyError: for a quantity that does not exist.
        ValueError: for a limit that is not above 0, or a name in ``allow`` that no error has.
    """
    allow = check_allow(allow, own=(OFFSET_ERROR,))
    quantities = _check_quantities(database, quantities)
    names = _check_names(database, names)
    _check_limits(quantities, max_sum_error, spread)
    flags = {"allow_missing": allow_missing, "trust_pickle": trust_pickle}
    _check_flags(**flags, align=align, skip_labelled=skip_labelled)
    providers = as_providers(teacher, device=device, **flags)

    splits = {name: Split(name, arrays, names) for name, arrays in database.splits.items()}
    for split in splits.values():
        check_geometry(split.arrays, names, f"split {split.name!r}: ")
        check_labels(split.name, split.arrays, names)

    # Each teacher is checked by itself: among several, a wrong one would hide in the mean.
    by_teacher, all_offsets = [], []
    for number, provider in enumerate(providers, start=1):
        which = f"teacher {number} of {len(providers)}: " if len(providers) > 1 else ""
        predictions, energy_offsets = _predict(provider, splits, quantities, align)
        _check_teacher(splits, predictions, align, allow, which)
        by_teacher.append(predictions)
        all_offsets.append(energy_offsets)

    means = {name: average([one[name] for one in by_teacher]) for name in splits}
    sums = {name: sum_errors(split.arrays, means[name], names) for name, split in splits.items()}
    compared = {name: errors for name, errors in sums.items() if errors is not None}
    dropped = {name: _rows_beyond(compared, name, max_sum_error) for name in splits}

    added = {
        name: _target_arrays(split, means[name], dropped[name], spread, skip_labelled)
        for name, split in splits.items()
    }
    _check_any_left(added)
    for name, arrays in added.items():
        database.splits[name].update(arrays)

    report = TargetsReport(
        quantities,
        compared,
        missing={name: int((~one.present).sum()) for name, one in means.items()},
        dropped=dropped,
        offsets=_average_offsets(all_offsets),
        sizes={name: len(one.present) for name, one in means.items()},
    )
    if not database.quiet:
        print(report)
    return report


def _predict(
    provider: TargetProvider,
    splits: Mapping[str, Split],
    quantities: Sequence[str],
    align: bool,
) -> tuple[dict[str, Predictions], dict[int, float]]:
    """Return one teacher's targets of each split, and the offsets subtracted from them."""
    predictions = {name: provider.predict(split, quantities) for name, split in splits.items()}
    if not align:
        return predictions, {}

    train = splits["train"]
    energy_offsets = fit_offsets(train.arrays, predictions["train"], train.names)
    shifted = {
        name: subtract_offsets(one, splits[name].arrays[train.names.species], energy_offsets)
        for name, one in predictions.items()
    }
    return shifted, energy_offsets


def _check_teacher(
    splits: Mapping[str, Split],
    predictions: Mapping[str, Predictions],
    align: bool,
    allow: Sequence[str],
    which: str,
) -> None:
    """Refuse one teacher's targets if they cannot be right."""
    train = splits["train"]
    arrays = {name: split.arrays for name, split in splits.items()}
    try:
        check_targets(arrays, predictions, train.names, allow)
        if not align:
            _check_offset(train, predictions["train"], allow)
    except DataError as error:
        raise DataError(f"{which}{error}") from error


def _check_offset(train: Split, predictions: Predictions, allow: Sequence[str]) -> None:
    """Refuse energies with another zero than the labels', or with one that is not known."""
    sums = sum_errors(train.arrays, predictions, train.names)
    if sums is None:
        _check_known_zero(train, predictions, allow)
        return

    # Median and robust scatter, so that a few structures that the teacher predicts badly do not
    # look like another zero of energy, nor hide one.
    typical, scatter = sums.typical
    if not abs(typical) > max(LARGEST_OFFSET, 2 * scatter):
        return

    what = (
        f"the teacher's energies are {typical:.3f} eV/atom above the labels, and scatter by "
        f"{scatter:.3f}"
    )
    if OFFSET_ERROR in allow:
        logger.warning(f"{what} (overruled by allow: [{OFFSET_ERROR}])")
        return
    raise DataError(
        f"{what}; if only its atoms have another zero of energy, give align=True; is it the right "
        f"teacher? If it is meant so, allow: [{OFFSET_ERROR}] overrules this"
    )


def _check_known_zero(train: Split, predictions: Predictions, allow: Sequence[str]) -> None:
    """Refuse energies of teacher and labels that no structure has both of."""
    label = train.names.energy
    is_mixed = label in train.arrays and bool(has_value(train.arrays, label).any())
    if not is_mixed or total_energies(predictions) is None or not predictions.present.any():
        return

    what = (
        "no training structure has both a label and a teacher's energy, so that nothing tells "
        "whether both have the same zero of energy"
    )
    if OFFSET_ERROR in allow:
        logger.warning(f"{what} (overruled by allow: [{OFFSET_ERROR}])")
        return
    raise DataError(
        f"{what}; let the teacher label structures that have labels too, and give align=True, "
        f"with skip_labelled=True if they are not to count; allow: [{OFFSET_ERROR}] overrules this"
    )


def _average_offsets(by_teacher: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {z: float(np.mean([one[z] for one in by_teacher])) for z in by_teacher[0]}


# The arrays that a split gets


def _target_arrays(
    split: Split,
    predictions: Predictions,
    dropped: Sequence[int],
    spread: float | None,
    skip_labelled: bool,
) -> dict[str, torch.Tensor]:
    """Return a target and a weight array for each quantity, in the database's dtype."""
    like = split.arrays[split.names.positions]
    counts = predictions.present.copy()
    counts[list(dropped)] = False

    arrays = {}
    for name, value in predictions.values.items():
        label = getattr(split.names, name, None)
        is_skipped = skip_labelled and label in split.arrays
        used = counts & ~has_value(split.arrays, label).numpy() if is_skipped else counts
        weight = _weights(name, predictions, used, split.is_atom, spread)
        # hippynn keeps one number a structure as (n, 1).
        value = value[:, None] if name == "energy" else value
        arrays[TEACHER + name] = torch.as_tensor(value).to(like)
        arrays[TEACHER + name + WEIGHT] = torch.as_tensor(weight).to(like)
    return arrays


def _weights(
    name: str,
    predictions: Predictions,
    counts: NDArray[np.bool_],
    is_atom: NDArray[np.bool_],
    spread: float | None,
) -> NDArray[np.float64]:
    """Return (n, atoms) for a quantity of atoms, (n, 1) for one of structures."""
    weight = (counts[:, None] if name == "energy" else counts[:, None] & is_atom).astype(float)
    if spread is None or name != "atomic_energies":
        return weight
    if name not in predictions.spreads:
        raise DataError("spread: there is one teacher, so there is no spread; leave it out")
    return weight / (1 + np.square(predictions.spreads[name] / spread))


def _rows_beyond(sums: Mapping[str, SumErrors], split: str, limit: float | None) -> tuple[int, ...]:
    """Return the rows of a split whose energy by the teacher is too far from the label."""
    if limit is None:
        return ()
    if not sums:
        raise DataError(
            f"max_sum_error: split {split!r} has no energies of teacher and labels to compare; "
            "leave it out, or add atomic_energies or energy"
        )
    if split not in sums:
        return ()
    return tuple(sums[split].beyond(limit))


def _check_any_left(added: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Refuse a training split without any target that counts; warn of another such split."""
    for split, arrays in added.items():
        weights = [array for name, array in arrays.items() if name.endswith(WEIGHT)]
        if any(bool(weight.any()) for weight in weights):
            continue
        what = f"split {split!r}: no structure has a target that counts"
        if split == "train":
            raise DataError(
                f"{what}, so there is nothing to learn from; is it the right store, or is "
                "max_sum_error too small?"
            )
        logger.warning(f"{what}; its errors from the teacher will read 0")


# The arguments of add_teacher_targets


def _check_quantities(database: Any, quantities: Sequence[str]) -> tuple[str, ...]:
    """Refuse a database that is not split to its end, and quantities that cannot be added."""
    check_splits(database, needed=("train",))
    left = len(database.arr_dict["indices"]) if not database.splitting_completed else 0
    if left:
        raise DataError(
            f"{left} structures of the database are in no split yet, and would have no targets; "
            "split them first, such as with split_the_rest"
        )

    is_list = isinstance(quantities, Sequence) and not isinstance(quantities, str)
    if not is_list or not quantities or not all(isinstance(name, str) for name in quantities):
        raise DataError(f"quantities: expected one or more names, got {shown(quantities)}")
    if len(set(quantities)) < len(quantities):
        raise DataError(f"quantities: expected different names, got {tuple(quantities)}")

    for name in quantities:
        if name not in TARGETS:
            raise KeyError(f"unknown quantity {name!r} of a teacher{suggestion(name, TARGETS)}")
        for array in (TEACHER + name, TEACHER + name + WEIGHT):
            if any(array in arrays for arrays in database.splits.values()):
                raise DataError(
                    f"the database has {array!r} already; targets are added once, so make the "
                    "database anew for another teacher"
                )
    return tuple(quantities)


def _check_names(database: Any, names: ArrayNames | None) -> ArrayNames:
    """Refuse names of labels that the database lacks; warn if it has no energies to compare."""
    names, arrays = checked_names(names), database.splits["train"]
    for label, name, usual in (
        ("energy", names.energy, ArrayNames.energy),
        ("forces", names.forces, ArrayNames.forces),
    ):
        if name not in arrays and name != usual:
            raise DataError(
                f"the database has no array {name!r}, which ArrayNames says the {label} are "
                f"called; it has {', '.join(sorted(arrays))}"
            )
    if names.energy not in arrays:
        logger.warning(
            f"the database has no array {names.energy!r}, so the teacher's energies are not "
            "compared with labels; if they have another name, give names=ArrayNames(energy=...)"
        )
    return names


def _check_limits(quantities: Sequence[str], max_sum_error: Any, spread: Any) -> None:
    """Refuse limits with which no target or a NaN would be left."""
    limits = (("max_sum_error", max_sum_error, "eV/atom"), ("spread", spread, "eV"))
    for name, value, unit in limits:
        if value is not None:
            check_number(name, value, above=0, unit=unit)
    if spread is not None and "atomic_energies" not in quantities:
        raise DataError(
            f"spread: weighs atomic_energies, which are not among {tuple(quantities)}; leave it out"
        )


def _check_flags(**flags: object) -> None:
    """Refuse anything but True and False; a text such as "no" would count as True."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise DataError(f"{name}: expected True or False, got {shown(flag)}")
