"""The doctor before training: does the teacher agree with the labels in unit, sign and kind?"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch
from tqdm import tqdm

from kd_plugins.config import ConfigError
from kd_plugins.core.loss import Term
from kd_plugins.doctor.examine import examine, split_allowed
from kd_plugins.doctor.inputs import DoctorInput, Finding
from kd_plugins.fairchem.cached import StoredTargets, structures
from kd_plugins.fairchem.convert import structure_ids
from kd_plugins.fairchem.teacher import Teacher
from kd_plugins.fairchem.watching import has_edges

EXAMINED = 64
"""Structures on which the teacher is asked, at most."""
_LABELLED = ("energy", "forces")
_CONCERNS = {"atomic_energies": "energy", "force_derivatives": "forces"}
logger = logging.getLogger(__name__)


def check_teacher(
    dataset: Dataset[Any],
    teacher: Teacher | StoredTargets,
    terms: Iterable[Term],
    limit: int,
    device: torch.device,
    allow: Iterable[str] = (),
) -> None:
    """Compare the teacher's energies and forces with the labels of some structures.

    What is wrong for certain with a quantity that a term of the loss teaches ends the run; all
    else is logged. Nothing of the run's random state is used.

    Args:
        dataset: to train on.
        teacher: whose targets are examined.
        terms: of the loss.
        limit: how many structures the user wants checked; `EXAMINED` at most are.
        device: of the teacher.
        allow: names of errors that are logged and do not end the run.

    Raises:
        ConfigError: with the doctor's findings.
    """
    size = len(dataset)  # type: ignore[arg-type]
    n_chosen = min(limit, EXAMINED, size)
    chosen = [index * (size - 1) // max(n_chosen - 1, 1) for index in range(n_chosen)]
    bar = tqdm(chosen, "asking the teacher", leave=False, disable=not distutils.is_master())
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        cases = [_case(Batch.from_data_list([dataset[index]]), teacher, device) for index in bar]
    taught = {_CONCERNS.get(term.quantity, term.quantity) for term in terms}
    _report(examine([case for case in cases if case is not None]), taught, allow)


def _report(findings: Sequence[Finding], taught: set[str], allow: Iterable[str]) -> None:
    concern = [
        finding
        for finding in findings
        if finding.severity == "error" and finding.quantity in taught
    ]
    refused, overruled = split_allowed(concern, allow)
    others = [finding for finding in findings if finding not in concern]
    for finding in [*others, *overruled]:
        if finding.code != "energy-too-few":
            logger.warning(f"teacher and labels: {finding.text}")

    if refused:
        messages = [finding.message for finding in refused]
        raise ConfigError("\n  ".join(["the teacher's targets cannot be right:", *messages]))


def _case(
    batch: Batch, teacher: Teacher | StoredTargets, device: torch.device
) -> DoctorInput | None:
    """Return one structure's labels and targets, or None for a lone atom, which has none."""
    batch = batch.to(device)
    if isinstance(teacher, Teacher) and not has_edges(teacher.backbone, batch):
        return None
    targets = teacher(batch).values
    labels = {name: batch[name] for name in _LABELLED if name in batch}
    pairs = {
        "labels": {name: _array(name, value, batch) for name, value in labels.items()},
        "teacher": {
            name: _array(name, targets[name], batch) for name in targets if name in _LABELLED
        },
    }
    return DoctorInput(structure_ids(batch)[0], structures(batch)[0], **pairs)


def _array(name: str, value: Tensor, batch: Batch) -> Any:
    """Return a value without its batch axis; forces of fixed atoms, which nobody fits, as 0."""
    value = value.double()
    if name == "energy":
        return value.flatten()[0].cpu().numpy()
    free = batch.fixed == 0 if "fixed" in batch else torch.ones_like(batch.batch, dtype=torch.bool)
    return (value * free[:, None]).cpu().numpy()
