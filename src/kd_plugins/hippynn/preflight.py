"""Checks of labels, teacher targets and a whole database, before hippynn trains on them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hippynn.experiment import assembly
from hippynn.graphs import find_relatives, find_unique_relative
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.inputs import CellNode, PositionsNode, SpeciesNode
from hippynn.graphs.nodes.tags import Encoder
from numpy.typing import NDArray

from kd_plugins.doctor.examine import PreflightPart, evenly_spaced, preflight
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.hippynn.convert import (
    SMALLEST_VOLUME,
    WEIGHT,
    ArrayNames,
    DataError,
    check_floats,
    check_geometry,
    is_finite,
    is_gradient,
    refuse_rows,
    to_structures,
)
from kd_plugins.hippynn.coverage import TEACHER, check_splits, has_value
from kd_plugins.hippynn.providers import Predictions
from kd_plugins.hippynn.sums import total_energies

logger = logging.getLogger(__name__)

CACHE = assembly._PAIRCACHE_DB_NAME
"""hippynn's name of the array of cached pairs."""

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
    preflight([PreflightPart(inputs, log_level=logging.INFO, is_measured=True)], allow, DataError)


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

    with_label = {
        quantity: has_value(arrays, getattr(names, quantity)).numpy() for quantity in labels
    }
    for row in _examined_rows(predictions.present, with_label.values()):
        is_atom = arrays[names.species][row].cpu().numpy() != 0

        teacher: dict[str, Any] = {} if total is None else {"energy": total[row]}
        for name, value in predictions.values.items():
            teacher[name] = value[row] if name == "energy" else value[row][is_atom]

        label: dict[str, Any] = {}
        if "energy" in labels and with_label["energy"][row]:
            label["energy"] = labels["energy"][row].item()
        if "forces" in labels and with_label["forces"][row] and "forces" in teacher:
            label["forces"] = labels["forces"][row][is_atom]
        yield DoctorInput(f"row {row}", structures[row], label, teacher)


def _examined_rows(
    present: NDArray[np.bool_], with_label: Iterable[NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """Return rows with targets to examine, those with labels first."""
    is_labelled = np.logical_or.reduce([np.zeros_like(present), *with_label])
    first, others = np.flatnonzero(present & is_labelled), np.flatnonzero(present & ~is_labelled)
    chosen = first[evenly_spaced(EXAMINED, len(first))]
    return np.append(chosen, others[evenly_spaced(EXAMINED - len(chosen), len(others))])


# A database beside the model that is to be trained on it


def check_database(modules: Any, database: Any) -> None:
    """Refuse a database that hippynn's training would fail on, or learn something else from.

    Targets that a loss reads and nobody has added, elements that the model does not have,
    structures that are not periodic, another dtype than the model's, labels that are not finite.
    `cache_pairs` does this as well.

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
    names, elements = _names_in(graph), _elements_of(graph)
    for split, arrays in database.splits.items():
        where = f"split {split!r}: "
        _check_arrays(arrays, [*info["inputs"], *info["targets"]], where)
        check_geometry(arrays, names, where)
        _check_elements(arrays[names.species], elements, where)
        _check_dtype(arrays[names.positions], graph, names.positions, where)
        _check_finite_targets(arrays, info["targets"], arrays[names.species], where)
        _check_label_weights(arrays, info["targets"], where)
        if names.cell is None:
            _warn_of_cells(arrays, where)


def graph_of(model: Any) -> Any:
    """Return the graph of a model that may be spread over several devices."""
    return model.module if isinstance(model, torch.nn.DataParallel) else model


def _names_in(graph: Any) -> ArrayNames:
    """Return the names of species, positions and cells by the nodes that read them."""
    nodes = graph.nodes_to_compute
    try:
        (cell,) = find_relatives(nodes, CellNode)
        cells = cell.db_name
    except NodeNotFound:
        cells = None
    species, positions = (find_unique_relative(nodes, k) for k in (SpeciesNode, PositionsNode))
    return ArrayNames(species=species.db_name, positions=positions.db_name, cell=cells)


def _elements_of(graph: Any) -> frozenset[int]:
    """Return the atomic numbers that a model has."""
    encoder: Any = find_unique_relative(graph.nodes_to_compute, Encoder)
    return frozenset(encoder.torch_module.species_set.tolist()) - {0}


def _check_arrays(arrays: Mapping[str, Any], wanted: Iterable[str], where: str) -> None:
    """Refuse a split that lacks an array; for a teacher's, name the call that adds it."""
    for name in wanted:
        if name in arrays or name == CACHE:
            continue
        quantity = name.removeprefix(TEACHER).removesuffix(WEIGHT)
        term = quantity if quantity == "atomic_energies" else TEACHER + quantity
        if name.startswith(TEACHER):
            remedy = (
                f"call add_teacher_targets(database, teacher, [..., {quantity!r}]) before, or "
                f"leave {term!r} out of the weights"
            )
        elif name.endswith(WEIGHT):
            remedy = "make the arrays with to_arrays(structures, allow_missing=True)"
        else:
            remedy = "does a node of the model have another db_name?"
        present = ", ".join(sorted(arrays))
        raise DataError(
            f"{where}no array {name!r}, which the loss or model reads; {remedy} (there is "
            f"{present})"
        )


def _check_elements(species: torch.Tensor, elements: frozenset[int], where: str) -> None:
    unknown = sorted(set(species.unique().tolist()) - elements - {0})
    if unknown:
        listed = ", ".join(map(str, sorted(elements)))
        refuse_rows(
            torch.isin(species, torch.tensor(unknown, device=species.device)).any(dim=1),
            f"{where}the model does not know element {unknown[0]} (it knows {listed})",
            "add it to possible_species; hippynn stops on it, or takes it for padding",
        )


def _check_dtype(positions: torch.Tensor, graph: Any, name: str, where: str) -> None:
    weights = next(p.dtype for p in graph.parameters() if p.is_floating_point())
    if positions.dtype != weights:
        raise DataError(
            f"{where}{name!r} is {positions.dtype}, but the model's weights are {weights}; make "
            f"the arrays with the model's dtype, or the model with torch.set_default_dtype"
        )


def _check_finite_targets(
    arrays: Mapping[str, Any], targets: Iterable[str], species: torch.Tensor, where: str
) -> None:
    """Refuse labels and targets of another length, not finite, or with negative weights."""
    n = len(species)
    for name in targets:
        value = arrays[name]
        if len(value) != n:
            raise DataError(
                f"{where}{name!r}: expected {n} rows as of the species, got {len(value)}"
            )
        if not value.is_floating_point():
            continue

        wrong = ~is_finite(value, species)
        refuse_rows(wrong, f"{where}{name!r} is NaN or inf", "take these structures out")
        if name.endswith(WEIGHT):
            negative = (value < 0).reshape(n, -1).any(dim=1)
            remedy = "a weight of 0 takes a target away"
            refuse_rows(negative, f"{where}{name!r} is negative", remedy)


def _check_label_weights(arrays: Mapping[str, Any], targets: Collection[str], where: str) -> None:
    """Refuse a loss that would take the zeros of structures without a label for labels.

    Warn where no structure of a split has a label that is compared there.
    """
    for name in targets:
        label = name.removesuffix(WEIGHT)
        if label != name and not name.startswith(TEACHER) and not bool(arrays[name].any()):
            logger.warning(f"{where}no structure has {label!r}; its errors there will read 0")

        is_label = name in arrays and not name.startswith(TEACHER) and not name.endswith(WEIGHT)
        if is_label and name + WEIGHT not in targets:
            refuse_rows(
                ~has_value(arrays, name),
                f"{where}{name!r}: there is no label",
                "the loss would take the zeros in their place for labels; give "
                "distillation_loss(..., database=database), or take these structures out",
            )


def _warn_of_cells(arrays: Mapping[str, Any], where: str) -> None:
    """Warn of cells that a model without cells would not read."""
    cells = arrays.get(ArrayNames.cell)
    if cells is not None and cells.shape[1:] == (3, 3):
        volumes = torch.linalg.det(cells.detach().cpu().double()).abs()
        if bool((volumes > SMALLEST_VOLUME).any()):
            logger.warning(
                f"{where}there are cells, but the model has none, so that nothing is periodic; is "
                "a CellNode or periodic=True missing?"
            )
