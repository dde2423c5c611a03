"""Checks before the first step: structures, labels, and the teacher's targets beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.symbols import Symbols
from fairchem.core.common import distutils
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.core.terms import Term
from kd_plugins.doctor.examine import PreflightPart, evenly_spaced, preflight
from kd_plugins.doctor.inputs import DoctorInput, collect_pairs
from kd_plugins.doctor.references import References, fit_references
from kd_plugins.fairchem.convert import VOIGT, has_edges, structure_ids, structures
from kd_plugins.fairchem.teacher import FrozenEquiformerV2

# Enough for the doctor, which needs eight more than elements, and a minute for a large teacher.
EXAMINED = 64
"""Structures of which the teacher's targets are compared with the labels, at most."""

_LABELS = ("energy", "forces", "stress")

# These have no labels; they are wrong where the energies or forces that they belong to are.
_BELONGS_TO = {"atomic_energies": "energy", "force_derivatives": "forces"}


def check_dataset(
    dataset: Dataset[Any],
    name: str,
    targets: Iterable[str],
    elements: Mapping[str, int],
    limit: int,
    n_kept: int = EXAMINED,
) -> list[Any]:
    """Check evenly spaced structures of a data set.

    Args:
        dataset: of fairchem.
        name: "train" or "val", for messages.
        targets: labels that the loss needs.
        elements: "student" and "teacher" to the number of elements that the model has.
        limit: how many structures to look at.
        n_kept: how many of them to return.

    Returns:
        some of the structures, for `check_teacher`, so that nothing is read twice.

    Raises:
        ConfigError: for an empty data set, a missing or non-finite label or position, or an element
            that a model does not have.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ConfigError(f"dataset.{name} is empty")

    places = evenly_spaced(limit, size)
    kept = {places[index] for index in evenly_spaced(n_kept, len(places))}
    sample = []
    bar = tqdm(places, f"checking {name} labels", leave=False, disable=not distutils.is_master())
    for place in bar:
        where = f"dataset.{name}[{place}]"
        data = read(dataset, place, where)
        check_structure(data, where, targets, elements)
        if place in kept:
            sample.append(data)
    return sample


def read(dataset: Dataset[Any], index: int, where: str) -> Any:
    """Return a structure of a data set.

    Raises:
        ConfigError: if it cannot be read, whatever the reason.
    """
    try:
        return dataset[index]
    except Exception as error:  # each data format fails in its own way
        raise ConfigError(f"{where} cannot be read: {error} (a missing label?)") from error


def check_structure(
    data: Any, where: str, targets: Iterable[str], elements: Mapping[str, int]
) -> None:
    """Refuse a structure without a label, with one that is not finite, or of unknown elements.

    Raises:
        ConfigError: with its place, and its sid where there is one.
    """
    if len(data.pos) == 0:
        raise ConfigError(f"{where} (sid {data.get('sid')}) has no atoms; leave it out")

    for name in ("pos", *targets):
        if name not in data:
            raise ConfigError(
                f"{where} has no {name!r}; the loss needs it (for an ase_db data set see "
                f"dataset.train.a2g_args, e.g. r_energy: true, r_forces: true)"
            )
        if not _is_finite(data[name]):
            raise ConfigError(f"{where} (sid {data.get('sid')}): {name!r} holds NaN or inf")

    highest = int(data.atomic_numbers.max())
    for model, n_elements in elements.items():
        if highest >= n_elements:
            raise ConfigError(
                f"{where} (sid {data.get('sid')}) holds element {highest}; the {model} knows "
                f"atomic numbers below {n_elements} (model.backbone.max_num_elements)"
            )


def _is_finite(value: object) -> bool:
    return bool(torch.isfinite(torch.as_tensor(value, dtype=torch.float64)).all())


def check_teacher(
    sample: Sequence[Any],
    teacher: Callable[[Batch], TeacherTargets],
    terms: Iterable[Term],
    device: torch.device,
    allow: Sequence[str] = (),
    ignored: Sequence[str] = (),
    unlabelled: Sequence[Any] = (),
) -> list[DoctorInput]:
    """Compare the teacher's energies and forces with the labels of some structures.

    What is certainly wrong with a quantity of the loss ends the run; all else is logged. The run's
    random state is left as it is.

    Args:
        sample: training structures, from `check_dataset`.
        teacher: a model in memory or stored targets.
        terms: of the loss.
        device: of the teacher.
        allow: names of errors that are logged and do not end the run.
        ignored: codes of findings that are not even logged.
        unlabelled: structures of which the targets are examined by themselves.

    Returns:
        the training structures with their labels and targets.

    Raises:
        ConfigError: with the doctor's findings.
    """
    # EquiformerV2 draws random rotations about each edge.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        inputs = _to_inputs(sample, _LABELS, teacher, device)
        alone = _to_inputs(unlabelled, (), teacher, device)

    quantities = {_BELONGS_TO.get(term.quantity, term.quantity) for term in terms}
    parts = [
        PreflightPart(inputs, quantities, ignored=ignored, is_measured=True),
        PreflightPart(alone, quantities, subject="the teacher's targets without labels"),
    ]
    preflight(parts, allow, ConfigError)
    return inputs


def _to_inputs(
    sample: Sequence[Any],
    labels: Sequence[str],
    teacher: Callable[[Batch], TeacherTargets],
    device: torch.device,
) -> list[DoctorInput]:
    bar = tqdm(sample, "examining targets", leave=False, disable=not distutils.is_master())
    found = [_to_input(Batch.from_data_list([data]), labels, teacher, device) for data in bar]
    return [item for item in found if item is not None]


def fit_energy_offsets(inputs: Sequence[DoctorInput]) -> References:
    """Fit how much more energy the teacher gives an atom of each element than the labels do.

    Args:
        inputs: of training structures; those count that have both energies.

    Raises:
        ConfigError: if there is none.
    """
    kept, teachers, labels = collect_pairs(inputs, "energy")
    if not kept:
        raise ConfigError(
            "task.distill.align: no training structure has both a label and a teacher's energy; "
            "let the teacher label some that have labels, with energies"
        )

    numbers = [item.structure.atomic_numbers for item in kept]
    references = fit_references(numbers, np.array(teachers), np.array(labels))
    offsets = ", ".join(
        f"{chemical_symbols[z]} {offset:+.4f}" for z, offset in references.offsets.items()
    )
    if distutils.is_master():
        logging.info(
            f"task.distill.align: teacher's energies minus labels, fitted on {len(kept)} "
            f"structures: {offsets} eV an atom; they are subtracted, and {references.std:.4f} "
            "eV/atom remain"
        )
    return references


def check_covered(dataset: Sequence[Any], name: str, references: References) -> None:
    """Refuse structures for which the labelled ones do not determine the teacher's zero of energy.

    Args:
        dataset: structures of fairchem.
        name: of their data set, for messages.
        references: from `fit_energy_offsets`.

    Raises:
        ConfigError: naming the first one.
    """
    for data in dataset:
        numbers = data.atomic_numbers.long().numpy()
        if not references.covers(numbers):
            raise ConfigError(
                f"task.distill.align: the labelled structures do not determine the teacher's zero "
                f"of energy for {Symbols(numbers)} of dataset.{name} (sid "
                f"{data.get('sid')}); label a structure of each element, or leave align out and "
                "give targets with the labels' zero (kd-plugins doctor --fix)"
            )


def _to_input(
    batch: Batch,
    labels: Sequence[str],
    teacher: Callable[[Batch], TeacherTargets],
    device: torch.device,
) -> DoctorInput | None:
    """Return one structure's labels and targets.

    None for a structure without edges, such as a lone atom, which EquiformerV2 cannot compute.
    """
    batch = batch.to(device)
    if isinstance(teacher, FrozenEquiformerV2) and not has_edges(teacher.backbone, batch):
        return None

    (targets,) = teacher(batch).unbatch()  # without quantities that are missing
    known = {name: _to_array(name, batch[name], batch) for name in labels if name in batch}
    values = {
        name: _to_array(name, targets.values[name], batch)
        for name in _LABELS
        if name in targets.values
    }
    return DoctorInput(structure_ids(batch)[0], structures(batch)[0], known, values)


def _to_array(name: str, value: Tensor, batch: Batch) -> Any:
    """Return a value without its batch axis.

    Forces of fixed atoms become 0 on both sides: no loss compares them, and data sets have their
    labels as 0 while a teacher's are not.
    """
    value = value.double()
    if name == "energy":
        return value.flatten()[0].cpu().numpy()
    if name == "stress":
        value = value.cpu().numpy()
        return value.reshape(-1)[list(VOIGT)] if value.size == 9 else value.reshape(-1)
    if "fixed" in batch:
        value = value * (batch.fixed == 0)[:, None]
    return value.cpu().numpy()
