"""Checks before the first step: loaders, what trains, and targets beside the student."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from chgnet.model import CHGNet
from torch.utils.data import DataLoader

from kd_plugins.chgnet.convert import LETTERS, from_host
from kd_plugins.chgnet.data import DataError, DistillData, GraphSample, check_distill_data
from kd_plugins.chgnet.loss import PREFIX, WEIGHT, DistillLoss, Ratios
from kd_plugins.chgnet.student import HEAD, count_trainable
from kd_plugins.chgnet.validation import other_zero
from kd_plugins.doctor.examine import PreflightPart, check_allow, evenly_spaced, preflight
from kd_plugins.doctor.inputs import DoctorInput, Finding, collect_pairs

TRAINING, VALIDATION = "training data", "validation data"
"""How messages call the two data sets."""

# A CPU predicts three small structures a second.
EXAMINED = 32
"""Structures of each data set that the student predicts, at most."""

# Pretrained CHGNet is 0.03 eV/atom off MPtrj's organic structures; other element references, or
# energies of another number of atoms, are off by eV/atom.
OFFSET = 0.5
"""eV/atom by which the student's mean energy may be off its targets' before training."""

OWN = ("energy_zero", "same_validation", "source_zero", "validation_zero")
"""Names of errors that are found here, beside the doctor's."""

logger = logging.getLogger(__name__)

_INFO = logging.INFO


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
    *,
    report: bool = True,
) -> None:
    """Refuse loaders that yield nothing, or not what the loss needs.

    Fewer training structures than a batch are one batch, which is logged if ``report``.

    Raises:
        DataError: naming the loader.
    """
    for name, loader in (("train_loader", train), ("val_loader", validation)):
        if not isinstance(loader, DataLoader):
            raise DataError(
                f"{name}: expected a DataLoader, got a {type(loader).__name__}; make one with "
                "DataLoader(data, batch_size, shuffle=True, collate_fn=collate_graphs)"
            )

    for loader in (train, validation, test):
        if loader is not None:
            _check_loader(loader, loss.ratios)
    if report:
        structures: Any = train.dataset
        _report_small_batch(len(structures), train.batch_size or 1)
    data = getattr(validation.dataset, "data", validation.dataset)
    if isinstance(data, DistillData):
        _check_selection(data, loss)


def check_data(
    loss: DistillLoss, train: DistillData, validation: DistillData, batch_size: int
) -> None:
    """Refuse data sets for the reasons of `check_loaders`, where there are no loaders.

    Raises:
        DataError: naming the data set.
    """
    for name, data in (("train", train), ("validation", validation)):
        check_distill_data(name, data)
        if not len(data):
            raise DataError(f"{name}: there are no structures")
        check_targets_held(data.keys, loss.ratios)

    _report_small_batch(len(train), batch_size)
    _check_selection(validation, loss)
    _warn_of_idle_weights(train, loss.ratios)


def _warn_of_idle_weights(data: DistillData, ratios: Ratios) -> None:
    """Warn of weights that all rows of a quantity share, and which so cancel in its mean."""
    for source, names in ratios.weighted.items():
        for name in names:
            key = PREFIX[source] + LETTERS[name]
            weights = {
                float(sample.targets[WEIGHT + key].flatten()[0])
                for sample in data.samples
                if WEIGHT + key in sample.targets and sample.targets[key].isfinite().any()
            }
            if len(weights) == 1 and weights != {1.0}:
                logger.warning(
                    f"all structures with {source} {name} have the weight {weights.pop():g}, which "
                    "changes nothing: weights act between structures; how much a quantity counts "
                    f"is the loss's {source}.{name}"
                )


def _report_small_batch(n_structures: int, batch_size: int) -> None:
    """Log once that there are fewer structures than a batch, as N_train of 10 in Taniguchi 2024."""
    if n_structures < batch_size:
        logger.warning(
            f"batches hold {n_structures} structures, which is all there are, instead of "
            f"{batch_size}"
        )


def _check_loader(loader: DataLoader[Any], ratios: Ratios) -> None:
    dataset: Any = loader.dataset

    # A loader with drop_last and too few structures yields nothing.
    if not len(loader):
        raise DataError(
            f"a loader of {len(dataset)} structures yields no batch of {loader.batch_size}; give "
            f"batch_size={max(len(dataset), 1)} or less, or drop_last=False"
        )
    held = dataset.keys if isinstance(dataset, DistillData) else tuple(dataset[0][1])
    check_targets_held(held, ratios)


def check_targets_held(held: Sequence[str], ratios: Ratios) -> None:
    """Refuse data that lack a target which the loss needs.

    Args:
        held: keys of the data's targets, by CHGNet's letters.
        ratios: weights of the loss.

    Raises:
        DataError: naming the target.
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
        compared = "the teacher's targets" if loss.select == "soft" else "the labels"
        raise DataError(
            f"select: {loss.select}: the best model is chosen by its errors against {compared} of "
            f"{', '.join(names)}, of "
            "which the validation data have none; give them such data or another select"
        )


def check_magmoms(model: CHGNet, ratios: Ratios) -> None:
    """Refuse a loss of magnetic moments if none of the weights that train changes them.

    CHGNet reads the moments before its last convolution, so later weights do not count.

    Raises:
        ValueError: if only such weights train.
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
    """Compare targets with the student's predictions before training, and with each other.

    What is certainly wrong with a quantity that has a weight (unit, sign, per atom for total,
    shuffled ids) ends the run; all else is logged. A student that was trained before, such as
    pretrained CHGNet, is good enough to show these. `EXAMINED` structures at most of each data set
    are looked at, and of each source where several were concatenated: an error in a small source
    would else be lost among the structures of a large one.

    Args:
        model: the student.
        train: training data.
        ratios: weights of hard and soft targets.
        validation: data by which the best epoch is chosen; checked in the same way, and against
            ``train``.
        allow: names of errors to overrule, which are then logged as warnings.

    Raises:
        DataError: with the findings, for an energy zero that is not the student's, not that of
            the training data or not that of another source, or for graphs of another cutoff.
    """
    data_sets = _name_sources(TRAINING, train)
    if validation is not None and validation is not train:
        data_sets |= _name_sources(VALIDATION, validation)
    for data in data_sets.values():
        _check_cutoffs(model, data)

    samples = {name: _choose_samples(data) for name, data in data_sets.items()}
    predictions = {name: _predict(model, chosen) for name, chosen in samples.items()}
    parts = [
        *_student_parts(samples, predictions, ratios),
        *_contradiction_parts(samples, ratios),
    ]
    preflight(parts, allow, DataError)


def _name_sources(name: str, data: DistillData) -> dict[str, DistillData]:
    """Return the sources of a data set by their names in messages."""
    sources = data.by_source()
    if len(sources) == 1:
        return {name: data}
    return {f"{name} (source {place})": one for place, one in enumerate(sources, 1)}


def _check_cutoffs(model: CHGNet, data: DistillData) -> None:
    for name in ("atom_graph_cutoff", "bond_graph_cutoff"):
        ours, theirs = getattr(data.converter, name), getattr(model.graph_converter, name)
        if ours != theirs:
            raise DataError(
                f"the data's graphs have {name} {ours} Å, the student's {theirs} Å; make "
                "DistillData with converter=model.graph_converter"
            )


def _choose_samples(data: DistillData) -> list[GraphSample]:
    return [data.samples[place] for place in evenly_spaced(EXAMINED, len(data.samples))]


def _predict(model: CHGNet, samples: Sequence[GraphSample]) -> list[dict[str, Any]]:
    """Return the student's energy, forces and stress of each structure, in our units."""
    was_training = model.training
    predictions = [model.predict_graph(sample.graph, task="efs") for sample in samples]
    model.train(was_training)

    # CHGNet has made the graphs' own coordinates require gradients, which training expects of no
    # graph that it is given.
    for sample in samples:
        sample.graph.atom_frac_coord.requires_grad_(False)

    return [
        {name: values[name] for name in ("energy", "forces", "stress")}
        for sample, predicted in zip(samples, predictions, strict=True)
        for values in [from_host(predicted, sample.n_atoms)]
    ]


def _student_parts(
    samples: Mapping[str, Sequence[GraphSample]],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    ratios: Ratios,
) -> Iterator[PreflightPart]:
    """Yield hard and soft targets beside the student, which takes the labels' place."""
    for source, quantities in ratios.weighted.items():
        if not quantities:
            continue

        inputs = {
            name: [
                DoctorInput(
                    sample.structure_id,
                    sample.doctor_input.structure,
                    predicted,
                    _targets(sample.doctor_input, source),
                )
                for sample, predicted in zip(chosen, predictions[name], strict=True)
            ]
            for name, chosen in samples.items()
        }
        for name, of_data in inputs.items():
            yield PreflightPart(
                of_data,
                quantities,
                heading=(
                    f"in the {name}, the {source} targets cannot be right ('labels': the "
                    "student's predictions):"
                ),
                subject=f"{source} targets and student, {name}",
                found_by_host=list(_energy_zero(of_data)) if "energy" in quantities else (),
                ignored=("missing",),  # DistillData has accepted these
                log_level=_INFO,  # a student may well be poor before it is trained
            )

        if "energy" in quantities:
            yield PreflightPart(
                (),
                heading=f"the {source} targets cannot be right:",
                subject=f"{source} targets",
                found_by_host=list(_other_zeros(inputs)),
            )


def _other_zeros(inputs: Mapping[str, Sequence[DoctorInput]]) -> Iterator[Finding]:
    """Yield an error for each source, and for the validation data, that has another zero."""
    training = {name: of_data for name, of_data in inputs.items() if name.startswith(TRAINING)}
    first, *others = training.items()
    for name, of_data in others:
        yield from other_zero(first[1], of_data, name, f"those of the {first[0]}")

    validation = [one for name, held in inputs.items() if name not in training for one in held]
    together = [one for held in training.values() for one in held]
    yield from other_zero(together, validation)


def _contradiction_parts(
    samples: Mapping[str, Sequence[GraphSample]], ratios: Ratios
) -> Iterator[PreflightPart]:
    """Yield labels beside the teacher's targets, where a structure has both."""
    if not ratios.weighted["soft"]:
        return
    for name, chosen in samples.items():
        inputs = [
            DoctorInput(item.structure_id, item.structure, labels, item.teacher)
            for item in (sample.doctor_input for sample in chosen)
            if item.teacher and (labels := _targets(item, "hard"))
        ]
        yield PreflightPart(
            inputs,
            ratios.weighted["soft"],
            heading=f"in the {name}, labels and teacher contradict each other:",
            subject=f"labels and teacher, {name}",
            ignored=("missing",),
            log_level=_INFO,
            is_measured=name.startswith(TRAINING),
        )


def _targets(item: DoctorInput, source: str) -> Mapping[str, Any]:
    """Return the teacher's values, or the labels that are not missing (NaN)."""
    if source == "soft":
        return item.teacher
    return {name: value for name, value in item.labels.items() if np.isfinite(value).all()}


def _energy_zero(inputs: Sequence[DoctorInput]) -> Iterator[Finding]:
    """Yield an error if targets have another zero of energy than the student.

    The doctor only warns of that, since a store can be aligned; a fine-tuned student would first
    unlearn its own zero.
    """
    kept, targets, predictions = collect_pairs(inputs, "energy")
    if not kept:
        return

    n_atoms = np.array([item.n_atoms for item in kept])
    mean = float(np.mean((np.array(targets) - np.array(predictions)) / n_atoms))
    if abs(mean) > OFFSET:
        text = (
            f"their energies are {mean:.2f} eV/atom above the student's on average; "
            "are they of the whole structure, and with the same element references? If only the "
            "references differ, call align_references(model, data) first (student.align: true in "
            "a YAML); where other data keep the student's zero, move these with "
            "align_targets(model, data) instead (align: true in their block)"
        )
        yield Finding("energy-zero", "error", "energy", text)
