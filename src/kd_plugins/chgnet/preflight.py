"""What must be right before the first step: loaders, student, and the targets themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress
from chgnet.model import CHGNet
from torch.utils.data import DataLoader

from kd_plugins.chgnet.convert import GPA, LETTERS
from kd_plugins.chgnet.data import DataError, DistillData, GraphSample, check_distill_data
from kd_plugins.chgnet.loss import PREFIX, DistillLoss, Ratios
from kd_plugins.chgnet.student import HEAD, count_trainable
from kd_plugins.chgnet.validation import other_zero
from kd_plugins.doctor.examine import check_allow, examine, split_allowed
from kd_plugins.doctor.inputs import DoctorInput, Finding, paired

logger = logging.getLogger(__name__)
EXAMINED = 32
"""Structures on which the student is asked, at most."""
OFFSET = 0.5
"""eV/atom by which the student's mean energy may be off its targets' before training."""
OWN = ("energy_zero", "same_validation", "validation_zero")
"""Names of errors that are found here, beside the doctor's."""


def checked_allow(allow: object) -> tuple[str, ...]:
    """Return the names of errors to overrule.

    Raises:
        ValueError: for anything but a list, and for a name that no error has.
    """
    return check_allow(allow, OWN)


def check_loaders(
    loss: DistillLoss,
    train: DataLoader[Any],
    validation: DataLoader[Any],
    test: DataLoader[Any] | None = None,
) -> None:
    """Refuse loaders that yield nothing, or not what the loss needs.

    One to learn from must fill a batch, as otherwise the steps are not those that you asked for.

    Raises:
        DataError: saying which.
    """
    for name, loader in (("train_loader", train), ("val_loader", validation)):
        if not isinstance(loader, DataLoader):
            raise DataError(
                f"{name}: expected a DataLoader, got a {type(loader).__name__}; make one with "
                "DataLoader(data, batch_size, shuffle=True, collate_fn=collate_graphs)"
            )
    _check_loader(train, loss.ratios, learns=True)
    for loader in (validation, test):
        if loader is not None:
            _check_loader(loader, loss.ratios, learns=False)
    data = getattr(validation.dataset, "data", validation.dataset)
    if isinstance(data, DistillData):
        _check_selection(data, loss)


def check_data(
    loss: DistillLoss, train: DistillData, validation: DistillData, batch_size: int
) -> None:
    """Refuse what `check_loaders` does, without loaders.

    Raises:
        DataError: saying what.
    """
    for name, data in (("train", train), ("validation", validation)):
        check_distill_data(name, data)
        if not len(data):
            raise DataError(f"{name}: there are no structures")
        check_targets_held(data.keys, loss.ratios)
    _check_batch(len(train), batch_size)
    _check_selection(validation, loss)


def _check_batch(n_structures: int, batch_size: int) -> None:
    if n_structures < batch_size:
        raise DataError(
            f"a batch of {batch_size} is more than the {n_structures} structures that there are; "
            f"give batch_size={max(n_structures, 1)} or less"
        )


def _check_loader(loader: DataLoader[Any], ratios: Ratios, *, learns: bool) -> None:
    dataset: Any = loader.dataset
    size, batch = len(dataset), loader.batch_size or 1
    if not len(loader) or learns:
        _check_batch(size, batch)
    held = dataset.keys if isinstance(dataset, DistillData) else tuple(dataset[0][1])
    check_targets_held(held, ratios)


def check_targets_held(held: Sequence[str], ratios: Ratios) -> None:
    """Refuse data that lack a target which the loss needs.

    Raises:
        DataError: naming it.
    """
    for source, names in ratios.weighted.items():
        for name in names:
            if PREFIX[source] + LETTERS[name] not in held:
                what = "of the teacher" if source == "soft" else "among the labels"
                raise DataError(
                    f"the loss weighs {source} {name}, but the data have no {name} {what}; make "
                    f"DistillData with {source}=({name!r}, ...) or take the weight away"
                )


def _check_selection(data: DistillData, loss: DistillLoss) -> None:
    """Refuse validation data without a number that the best model could be chosen by."""
    names = [PREFIX[loss.select] + name.rpartition("_")[2] for name in loss.scored]
    held = (row.targets[name] for row in data.samples for name in names if name in row.targets)
    if not any(bool(target.isfinite().any()) for target in held):
        whose = "the teacher's targets" if loss.select == "soft" else "the labels"
        raise DataError(
            f"select: {loss.select}: the best model is chosen by its errors against {whose} of "
            f"{', '.join(names)}, of "
            "which the validation data have none; give them such data or another select"
        )


def check_magmoms(model: CHGNet, ratios: Ratios) -> None:
    """Refuse to teach magnetic moments to weights that do not decide them.

    Raises:
        ValueError: if none of those that train does.
    """
    later = (*HEAD, "readout_norm.", "composition_model.", f"atom_conv_layers.{model.n_conv - 1}.")
    if "magmoms" in ratios.weighted["hard"] and all(
        name.startswith(later) for name in count_trainable(model).names
    ):
        raise ValueError(
            "the loss weighs hard magmoms, but no weight that trains decides CHGNet's magnetic "
            "moments; take the weight away, or let site_wise. train as well"
        )


def check_student(
    model: CHGNet,
    train: DistillData,
    ratios: Ratios,
    validation: DistillData | None = None,
    allow: Sequence[str] = (),
) -> None:
    """Compare targets with what the student says before training, and with each other.

    Of what is wrong for certain with a quantity that has a weight (unit, sign, per atom for total,
    mixed up ids) the run ends; all else is logged. A student that has seen chemistry, such as
    pretrained CHGNet, tells these; `EXAMINED` structures at most of each data set are looked at.

    Args:
        model: the student.
        train: to learn from.
        ratios: which targets count.
        validation: that chooses the best epoch; looked at in the same way, and beside ``train``.
        allow: names of errors to overrule, which are then logged as warnings.

    Raises:
        DataError: with the findings, for an energy zero that is not the student's or not that of
            the training data, or for graphs of another cutoff.
    """
    parts = {"training": train}
    if validation is not None and validation is not train:
        parts["validation"] = validation
    for data in parts.values():
        _check_cutoffs(model, data)

    rows = {part: _spread(data.samples) for part, data in parts.items()}
    said = {part: _predictions(model, of_part) for part, of_part in rows.items()}
    complaints: list[str] = []
    for source, names in ratios.weighted.items():
        cases = {
            part: [_case(*pair, source) for pair in zip(rows[part], said[part], strict=True)]
            for part in parts
        }
        for part in parts:
            head = (
                f"in the {part} data, the {source} targets cannot be right ('labels': what the "
                "student says of them):"
            )
            found = [*_errors(cases[part], names, source), *_offset(cases[part], names)]
            complaints += _refused(found, allow, head)
        if "energy" in names and "validation" in parts:
            found = other_zero(cases["training"], cases["validation"])
            complaints += _refused(found, allow, f"the {source} targets cannot be right:")

    for part in parts:
        head = f"in the {part} data, labels and teacher contradict each other:"
        complaints += _refused(_contradictions(rows[part], ratios), allow, head)
    if complaints:
        raise DataError("\n  ".join(complaints))


def _refused(found: Sequence[Finding], allow: Sequence[str], head: str) -> list[str]:
    """Return the errors that stop the run, under a headline; log those that are overruled."""
    refused, overruled = split_allowed(found, allow)
    for finding in overruled:
        logger.warning(f"{head} {finding.message}")
    return [head, *(finding.message for finding in refused)] if refused else []


def _contradictions(rows: Sequence[GraphSample], ratios: Ratios) -> list[Finding]:
    """Return what is wrong between labels and teacher, where both are there."""
    both = [
        DoctorInput(case.structure_id, case.structure, _there(case.labels), case.teacher)
        for case in (row.doctor_input for row in rows)
        if _there(case.labels) and case.teacher
    ]
    return list(_errors(both, ratios.weighted["soft"], "soft")) if both else []


def _check_cutoffs(model: CHGNet, data: DistillData) -> None:
    for name in ("atom_graph_cutoff", "bond_graph_cutoff"):
        ours, theirs = getattr(data.converter, name), getattr(model.graph_converter, name)
        if ours != theirs:
            raise DataError(
                f"the data's graphs have {name} {ours} Å, the student's {theirs} Å; make "
                "DistillData with converter=model.graph_converter"
            )


def _spread(rows: Sequence[GraphSample]) -> list[GraphSample]:
    places = np.linspace(0, len(rows) - 1, min(EXAMINED, len(rows))).round().astype(int)
    return [rows[place] for place in places]


def _predictions(model: CHGNet, rows: Sequence[GraphSample]) -> list[dict[str, Any]]:
    training = model.training
    graphs = [row.graph for row in rows]
    said = [model.predict_graph(graph, task="efs") for graph in graphs]
    for graph in graphs:
        graph.atom_frac_coord.requires_grad_(False)
    model.train(training)
    return [
        {
            "energy": np.float64(one["e"]) * row.doctor_input.n_atoms,
            "forces": one["f"],
            "stress": full_3x3_to_voigt_6_stress(one["s"].astype(float)) / GPA,
        }
        for row, one in zip(rows, said, strict=True)
    ]


def _case(row: GraphSample, prediction: Mapping[str, Any], source: str) -> DoctorInput:
    values = row.doctor_input.teacher if source == "soft" else _there(row.doctor_input.labels)
    return DoctorInput(row.structure_id, row.doctor_input.structure, prediction, values)


def _there(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels that are not missing."""
    return {name: value for name, value in labels.items() if np.isfinite(value).all()}


def _errors(cases: Sequence[DoctorInput], names: Sequence[str], source: str) -> Iterator[Finding]:
    for finding in examine(cases) if names else ():
        if finding.code == "missing":  # which DistillData has allowed
            continue
        if finding.severity == "error" and finding.quantity in names:
            yield finding
        elif finding.code != "energy-too-few":
            logger.info(f"{source} targets and student: {finding.message}")


def _offset(cases: Sequence[DoctorInput], names: Sequence[str]) -> Iterator[Finding]:
    kept, there, here = paired(cases, "energy") if "energy" in names else ([], [], [])
    sizes = np.array([case.n_atoms for case in kept])
    offsets = (np.array(there) - np.array(here)) / sizes if kept else np.zeros(1)
    if abs(np.mean(offsets)) > OFFSET:
        text = (
            f"their energies are {np.mean(offsets):.2f} eV/atom above the student's on average; "
            "are they of the whole structure, and with the same element references? If only the "
            "references differ, call align_references(model, data) first (student.align: true in "
            "a YAML)"
        )
        yield Finding("energy-zero", "error", "energy", text)
