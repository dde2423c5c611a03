"""Checks before the first step: structures, labels, and the teacher's targets beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.core.terms import Term
from kd_plugins.doctor.examine import PreflightPart, evenly_spaced, preflight
from kd_plugins.doctor.inputs import DoctorInput
from kd_plugins.fairchem.convert import has_edges, structure_ids, structures
from kd_plugins.fairchem.teacher import FrozenEquiformerV2

# Enough for the doctor, which needs eight more than elements, and a minute for a large teacher.
EXAMINED = 64
"""Structures of which the teacher's targets are compared with the labels, at most."""

_LABELS = ("energy", "forces")

# These have no labels; they are wrong where the energies or forces that they belong to are.
_BELONGS_TO = {"atomic_energies": "energy", "force_derivatives": "forces"}


def check_dataset(
    dataset: Dataset[Any],
    name: str,
    targets: Iterable[str],
    elements: Mapping[str, int],
    limit: int,
) -> list[Any]:
    """Check evenly spaced structures of a data set.

    Args:
        dataset: of fairchem.
        name: "train" or "val", for messages.
        targets: labels that the loss needs.
        elements: "student" and "teacher" to the number of elements that the model has.
        limit: how many structures to look at.

    Returns:
        `EXAMINED` of the structures at most, for `check_teacher`, so that nothing is read twice.

    Raises:
        ConfigError: for an empty data set, a missing or non-finite label or position, or an element
            that a model does not have.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ConfigError(f"dataset.{name} is empty")

    places = evenly_spaced(limit, size)
    kept = {places[index] for index in evenly_spaced(EXAMINED, len(places))}
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
) -> None:
    """Compare the teacher's energies and forces with the labels of some structures.

    What is certainly wrong with a quantity of the loss ends the run; all else is logged. The run's
    random state is left as it is.

    Args:
        sample: training structures, from `check_dataset`.
        teacher: a model in memory or stored targets.
        terms: of the loss.
        device: of the teacher.
        allow: names of errors that are logged and do not end the run.

    Raises:
        ConfigError: with the doctor's findings.
    """
    bar = tqdm(sample, "examining targets", leave=False, disable=not distutils.is_master())

    # EquiformerV2 draws random rotations about each edge.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        examined = [_to_input(Batch.from_data_list([data]), teacher, device) for data in bar]

    inputs = [item for item in examined if item is not None]
    quantities = {_BELONGS_TO.get(term.quantity, term.quantity) for term in terms}
    preflight([PreflightPart(inputs, quantities)], allow, ConfigError)


def _to_input(
    batch: Batch, teacher: Callable[[Batch], TeacherTargets], device: torch.device
) -> DoctorInput | None:
    """Return one structure's labels and targets.

    None for a structure without edges, such as a lone atom, which EquiformerV2 cannot compute.
    """
    batch = batch.to(device)
    if isinstance(teacher, FrozenEquiformerV2) and not has_edges(teacher.backbone, batch):
        return None

    targets = teacher(batch).values
    labels = {name: _to_array(name, batch[name], batch) for name in _LABELS if name in batch}
    values = {name: _to_array(name, targets[name], batch) for name in _LABELS if name in targets}
    return DoctorInput(structure_ids(batch)[0], structures(batch)[0], labels, values)


def _to_array(name: str, value: Tensor, batch: Batch) -> Any:
    """Return a value without its batch axis.

    Forces of fixed atoms become 0 on both sides: no loss compares them, and data sets have their
    labels as 0 while a teacher's are not.
    """
    value = value.double()
    if name == "energy":
        return value.flatten()[0].cpu().numpy()
    if "fixed" in batch:
        value = value * (batch.fixed == 0)[:, None]
    return value.cpu().numpy()
