"""A teacher's targets as further arrays of a hippynn database."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hippynn.experiment import assembly
from hippynn.graphs import find_relatives, find_unique_relative
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.inputs import CellNode, PositionsNode, SpeciesNode
from hippynn.graphs.nodes.tags import Encoder
from numpy.typing import NDArray

from kd_plugins.doctor.examine import check_allow
from kd_plugins.hippynn.convert import (
    FLAT,
    ArrayNames,
    DataError,
    check_geometry,
    checked_names,
    finite,
    refuse,
)
from kd_plugins.hippynn.loss import TEACHER, WEIGHT
from kd_plugins.hippynn.preflight import check_labels, check_targets
from kd_plugins.hippynn.providers import Predictions, ask, mean, opened
from kd_plugins.hippynn.sums import SumErrors, aligned, offsets, sum_errors
from kd_plugins.hippynn.teacher import QUANTITIES
from kd_plugins.names import suggestion
from kd_plugins.numbers import check_number, shown

logger = logging.getLogger(__name__)

OFFSET = 0.1
"""eV/atom by which a teacher's energies may be off the labels as a whole, unless aligned."""
OFFSET_ERROR = "energy_offset"
"""What that is called in ``allow``."""


@dataclass(frozen=True)
class TargetsReport:
    """What was added.

    Args:
        quantities: names of the teacher's quantities.
        sums: split to how far the teacher's energies are from the labels; none without labels.
        missing: split to how many structures have no target.
        dropped: split to rows whose targets do not count, by ``max_sum_error``.
        offsets: atomic number to eV that was taken from each such atom's energy.
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
            one = self.sums.get(split)
            errors = (
                f"{1e3 * one.mean:36.1f} {1e3 * one.rms:6.1f} {1e3 * one.worst:6.1f}"
                if one
                else f"{'no energies to compare':>50}"
            )
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
    allow: Sequence[str] = (),
    trust_pickle: bool = False,
) -> TargetsReport:
    """Put what a teacher says of every structure into every split of a hippynn database.

    For each quantity there are then ``teacher_<name>``, padded as the database is, and
    ``teacher_<name>_weight``, 0 where a target is missing; `distillation_loss` reads both. All is
    computed and checked before anything is written.

    Args:
        database: a hippynn ``Database`` that has been split.
        teacher: a hippynn model, a folder that hippynn trained in, or an energy node; a
            ``TargetStore`` or its folder, whose structures are found by ``structure_key``; any ASE
            calculator with these quantities; or a list of these, of which the mean is taken.
        quantities: ``atomic_energies``, ``energy``, ``forces`` or some of them.
        names: what the database calls its arrays.
        align: take a teacher's offset to the labels, fitted element by element on the training
            split, from its energies; for teachers whose atoms have another zero of energy.
        max_sum_error: eV/atom; structures whose energy by the teacher is further from the label
            are left out of every target, and listed.
        spread: eV, of several teachers or of a store that holds ``atomic_energies_std``; an atom's
            target then counts 1 / (1 + (std / spread)²).
        allow_missing: let structures be that a store does not hold; they do not count.
        allow: names of errors that are logged as warnings, such as ``energy_unit``; a message that
            can be overruled says its name.
        trust_pickle: see `HippynnTeacher`, for folders.

    Raises:
        DataError: for targets that cannot be right, such as another unit, energies per atom for
            total ones, elements that the teacher does not know, or structures that differ from
            those that were labelled; for structures that are not periodic among crystals.
        KeyError: for a quantity that does not exist.
        ValueError: for a limit that is not above 0, or a name in ``allow`` that no error has.
    """
    allow = check_allow(allow, own=(OFFSET_ERROR,))
    wanted, names = _checked(database, quantities), _checked_names(database, names)
    _check_limits(wanted, max_sum_error, spread)
    _check_flags(align=align, allow_missing=allow_missing, trust_pickle=trust_pickle)
    members = opened(teacher, trust_pickle)
    for split, arrays in database.splits.items():
        check_geometry(arrays, names, f"split {split!r}: ")
        check_labels(split, arrays, names)

    one_by_one = [
        _said(database, member, names, wanted, align, allow_missing) for member in members
    ]
    for number, (said, _) in enumerate(one_by_one, start=1):
        who = f"teacher {number} of {len(members)}: " if len(members) > 1 else ""
        _check_member(database, said, names, align, allow, who)

    said = {split: mean([one[split] for one, _ in one_by_one]) for split in database.splits}
    moved = _mean_offsets([offset for _, offset in one_by_one])
    sums = {s: sum_errors(database.splits[s], one, names) for s, one in said.items()}
    held = {split: one for split, one in sums.items() if one is not None}
    dropped = {split: _beyond(held, split, max_sum_error) for split in said}
    made = {s: _arrays(database.splits[s], said[s], dropped[s], names, spread) for s in said}
    _check_left(made)
    for split, arrays in made.items():
        database.splits[split].update(arrays)

    missing = {split: int((~one.present).sum()) for split, one in said.items()}
    sizes = {split: len(one.present) for split, one in said.items()}
    report = TargetsReport(wanted, held, missing, dropped, moved, sizes)
    if not database.quiet:
        print(report)
    return report


def _said(
    database: Any,
    member: Any,
    names: ArrayNames,
    wanted: Sequence[str],
    align: bool,
    allow_missing: bool,
) -> tuple[dict[str, Predictions], dict[int, float]]:
    """Return what one teacher says of each split, and the offsets that were taken from it."""
    said = {
        split: ask(member, arrays, names, wanted, split, allow_missing)
        for split, arrays in database.splits.items()
    }
    moved = offsets(database.splits["train"], said["train"], names) if align else {}
    return {
        split: aligned(one, database.splits[split][names.species], moved)
        for split, one in said.items()
    }, moved


def _check_member(
    database: Any,
    said: Mapping[str, Predictions],
    names: ArrayNames,
    align: bool,
    allow: Sequence[str],
    who: str,
) -> None:
    """Refuse one teacher; among several, a wrong one would hide in the mean."""
    try:
        check_targets(database.splits, said, names, allow)
        if not align:
            _check_offset(sum_errors(database.splits["train"], said["train"], names), allow)
    except DataError as error:
        raise DataError(f"{who}{error}") from error


def _mean_offsets(moved: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {z: float(np.mean([one[z] for one in moved])) for z in moved[0]}


def _checked(database: Any, quantities: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(getattr(database, "splits", None), dict):
        raise DataError(f"database: expected a hippynn Database, got {type(database).__name__}")
    if "train" not in database.splits:
        raise DataError(
            "the database has no training split yet; split it first, such as with "
            "make_trainvalidtest_split"
        )
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
        if name not in QUANTITIES:
            raise KeyError(f"unknown quantity {name!r} of a teacher{suggestion(name, QUANTITIES)}")
        for made in (TEACHER + name, TEACHER + name + WEIGHT):
            if any(made in arrays for arrays in database.splits.values()):
                raise DataError(
                    f"the database has {made!r} already; targets are added once, so make the "
                    "database anew for another teacher"
                )
    return tuple(quantities)


def _checked_names(database: Any, names: ArrayNames | None) -> ArrayNames:
    """Refuse names of labels that the user gave and the database lacks; else say what is missed."""
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
            "compared with labels; if they are called otherwise, say names=ArrayNames(energy=...)"
        )
    return names


def _check_limits(wanted: Sequence[str], max_sum_error: Any, spread: Any) -> None:
    """Refuse limits with which no target or a NaN would be left."""
    limits = (("max_sum_error", max_sum_error, "eV/atom"), ("spread", spread, "eV"))
    for name, value, unit in limits:
        if value is not None:
            check_number(name, value, above=0, unit=unit)
    if spread is not None and "atomic_energies" not in wanted:
        raise DataError(
            f"spread: weighs atomic_energies, which are not among {tuple(wanted)}; leave it out"
        )


def _check_flags(**flags: object) -> None:
    """Refuse what is neither True nor False, as a text that says no would count as yes."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise DataError(f"{name}: expected True or False, got {shown(flag)}")


def _check_offset(sums: SumErrors | None, allow: Sequence[str]) -> None:
    if sums is None:
        return
    typical, scatter = sums.typical
    if not abs(typical) > max(OFFSET, 2 * scatter):
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


def _beyond(sums: Mapping[str, SumErrors], split: str, limit: float | None) -> tuple[int, ...]:
    if limit is None:
        return ()
    if split not in sums:
        raise DataError(
            f"max_sum_error: split {split!r} has no energies of teacher and labels to compare; "
            "leave it out, or add atomic_energies or energy"
        )
    return tuple(sums[split].beyond(limit))


def _arrays(
    arrays: Mapping[str, torch.Tensor],
    one: Predictions,
    dropped: Sequence[int],
    names: ArrayNames,
    spread: float | None,
) -> dict[str, torch.Tensor]:
    """Return the arrays that a split gets."""
    like, made = arrays[names.positions], {}
    counts = one.present.copy()
    counts[list(dropped)] = False
    for name, value in one.values.items():
        weight = _weight(name, one, counts, arrays[names.species].cpu().numpy() != 0, spread)
        value = value[:, None] if name == "energy" else value
        made[TEACHER + name] = torch.as_tensor(value).to(like)
        made[TEACHER + name + WEIGHT] = torch.as_tensor(weight).to(like)
    return made


def _weight(
    name: str, one: Predictions, counts: NDArray[Any], real: NDArray[Any], spread: float | None
) -> NDArray[np.float64]:
    """Return (n, atoms) of an atom's quantity, or (n, 1)."""
    weight = (counts[:, None] if name == "energy" else counts[:, None] & real).astype(float)
    if spread is None or name != "atomic_energies":
        return weight
    if name not in one.spreads:
        raise DataError("spread: there is one teacher, so there is no spread; leave it out")
    return weight / (1 + np.square(one.spreads[name] / spread))


def _check_left(made: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Refuse a training split without any target; say so of another one."""
    for split, arrays in made.items():
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


CACHE = assembly._PAIRCACHE_DB_NAME
"""What hippynn calls the array of cached pairs."""


def check_database(modules: Any, database: Any) -> None:
    """Refuse a database that hippynn's training would stop on, or learn something else from.

    Targets that a loss reads and nobody has added, elements that the model does not know,
    structures that are not periodic, numbers of another kind than the model's, labels that are not
    finite. `cache_pairs` does this as well.

    Args:
        modules: of ``assemble_for_training`` or of ``load_checkpoint``.
        database: a hippynn ``Database``.

    Raises:
        DataError: naming split, array and rows.
    """
    if not hasattr(modules, "evaluator"):
        raise DataError(
            "modules: expected the training modules of assemble_for_training, got "
            f"{type(modules).__name__}"
        )
    check_splits(database, needed=("train", "valid"))
    info = modules.evaluator.db_info
    graph = graph_of(modules.model)
    names, known = names_of(graph), elements_of(graph)
    for split, arrays in database.splits.items():
        where = f"split {split!r}: "
        _check_arrays(arrays, [*info["inputs"], *info["targets"]], where)
        check_geometry(arrays, names, where)
        _check_elements(arrays[names.species], known, where)
        _check_kind(arrays[names.positions], graph, names.positions, where)
        _check_targets(arrays, info["targets"], arrays[names.species], where)
        if names.cell is None:
            _warn_of_cells(arrays, where)


def check_splits(database: Any, needed: Sequence[str] = ()) -> None:
    """Refuse what is no database, or one that has not been split.

    Raises:
        DataError: naming the splits that there are.
    """
    splits = getattr(database, "splits", None)
    if not isinstance(splits, dict):
        raise DataError(f"database: expected a hippynn Database, got {type(database).__name__}")
    missing = [split for split in needed if split not in splits]
    if missing or not splits:
        what = (
            f"has no split {missing[0]!r} among {', '.join(splits)}"
            if splits
            else "has not been split"
        )
        raise DataError(
            f"the database {what}; split it first, such as with make_trainvalidtest_split"
        )


def graph_of(model: Any) -> Any:
    """Return the graph of a model that may be spread over devices."""
    return model.module if isinstance(model, torch.nn.DataParallel) else model


def names_of(graph: Any) -> ArrayNames:
    """Return what the database must call the geometry, by the nodes that read it."""
    nodes = graph.nodes_to_compute
    try:
        (cell,) = find_relatives(nodes, CellNode)
        cells = cell.db_name
    except NodeNotFound:
        cells = None
    species, positions = (find_unique_relative(nodes, k) for k in (SpeciesNode, PositionsNode))
    return ArrayNames(species=species.db_name, positions=positions.db_name, cell=cells)


def elements_of(graph: Any) -> frozenset[int]:
    """Return the atomic numbers that a model knows."""
    encoder: Any = find_unique_relative(graph.nodes_to_compute, Encoder)
    return frozenset(encoder.torch_module.species_set.tolist()) - {0}


def _check_arrays(arrays: Mapping[str, Any], wanted: Iterable[str], where: str) -> None:
    for name in wanted:
        if name in arrays or name == CACHE:
            continue
        quantity = name.removeprefix(TEACHER).removesuffix(WEIGHT)
        term = quantity if quantity == "atomic_energies" else TEACHER + quantity
        remedy = (
            f"call add_teacher_targets(database, teacher, [..., {quantity!r}]) before, or leave "
            f"{term!r} out of the weights"
            if name.startswith(TEACHER)
            else "does a node of the model have another db_name?"
        )
        held = ", ".join(sorted(arrays))
        raise DataError(
            f"{where}no array {name!r}, which the loss or model reads; {remedy} (there is {held})"
        )


def _check_elements(species: torch.Tensor, known: frozenset[int], where: str) -> None:
    unknown = sorted(set(species.unique().tolist()) - known - {0})
    if unknown:
        listed = ", ".join(map(str, sorted(known)))
        refuse(
            torch.isin(species, torch.tensor(unknown, device=species.device)).any(dim=1),
            f"{where}the model does not know element {unknown[0]} (it knows {listed})",
            "add it to possible_species; hippynn stops on it, or takes it for padding",
        )


def _check_kind(positions: torch.Tensor, graph: Any, name: str, where: str) -> None:
    weights = next(p.dtype for p in graph.parameters() if p.is_floating_point())
    if positions.dtype != weights:
        raise DataError(
            f"{where}{name!r} is {positions.dtype}, but the model's weights are {weights}; make "
            f"the arrays with the model's dtype, or the model with torch.set_default_dtype"
        )


def _check_targets(
    arrays: Mapping[str, Any], targets: Iterable[str], species: torch.Tensor, where: str
) -> None:
    n = len(species)
    for name in targets:
        value = arrays[name]
        if len(value) != n:
            raise DataError(
                f"{where}{name!r}: expected {n} rows as of the species, got {len(value)}"
            )
        if not value.is_floating_point():
            continue
        lost = ~finite(value, species)
        refuse(lost, f"{where}{name!r} is NaN or inf", "take these structures out")
        if name.startswith(TEACHER) and name.endswith(WEIGHT):
            below = (value < 0).reshape(n, -1).any(dim=1)
            refuse(below, f"{where}{name!r} is negative", "a weight of 0 takes a target away")


def _warn_of_cells(arrays: Mapping[str, Any], where: str) -> None:
    cells = arrays.get(ArrayNames.cell)
    if cells is not None and cells.shape[1:] == (3, 3):
        volumes = torch.linalg.det(cells.detach().cpu().double()).abs()
        if bool((volumes > FLAT).any()):
            logger.warning(
                f"{where}there are cells, but the model has none, so that nothing is periodic; is "
                "a CellNode or periodic=True missing?"
            )
