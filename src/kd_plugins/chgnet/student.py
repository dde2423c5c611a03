"""The student: which of CHGNet's weights train, and its element references."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from ase.data import chemical_symbols
from chgnet.model import CHGNet
from torch import nn

from kd_plugins.chgnet.data import DistillData, GraphSample, check_distill_data
from kd_plugins.chgnet.loss import TargetKind
from kd_plugins.doctor.references import References, fit_references

logger = logging.getLogger(__name__)

HEAD = ("mlp.",)
"""The readout MLP, which alone trains in Taniguchi 2024: 12,545 of 412,525 weights (v0.3.0)."""


ALL: Literal["all"] = "all"
"""In the place of prefixes: every weight but the element references."""


@dataclass(frozen=True)
class TrainableWeights:
    """How much of a model trains.

    Args:
        n_trainable: numbers that train.
        n_weights: numbers in all.
        names: parameters that train.

    >>> str(TrainableWeights(12545, 412525, ("mlp.layers.0.weight",)))
    '12,545 of 412,525 weights train (3.0 %)'
    """

    n_trainable: int
    n_weights: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        share = 100 * self.n_trainable / self.n_weights
        return f"{self.n_trainable:,} of {self.n_weights:,} weights train ({share:.1f} %)"


def freeze_except(
    model: nn.Module, prefixes: Sequence[str] | Literal["all"] = HEAD
) -> TrainableWeights:
    """Let only the parameters train whose names start with one of some prefixes.

    A prefix and not a part of the name: ``mlp`` is a part of nearly all of CHGNet's names.

    Args:
        model: whose ``requires_grad`` is set, of every parameter.
        prefixes: of parameter names, such as ``("mlp.", "readout_norm.")``; or ``all``, which is
            what CHGNet's Trainer trains: every weight but the element references.

    Raises:
        ValueError: if it is not a model, or a prefix matches no parameter; then nothing is changed.

    >>> freeze_except(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ("1.",)).n_trainable
    3
    """
    check_is_model(model)
    parameters = dict(model.named_parameters())
    if prefixes == ALL:
        heads = (f"{name.split('.')[0]}." for name in parameters)
        prefixes = tuple(dict.fromkeys(head for head in heads if head != "composition_model."))
    if isinstance(prefixes, str) or not prefixes:
        raise ValueError(
            f"trainable: expected 'all' or prefixes of parameter names, got {prefixes!r}"
        )

    for prefix in prefixes:
        # The empty prefix would match every name.
        if not isinstance(prefix, str) or not prefix:
            raise ValueError(
                f"trainable: expected a prefix of parameter names such as 'mlp.', got {prefix!r}"
            )
        if not any(name.startswith(prefix) for name in parameters):
            parts = ", ".join(sorted({f"{name.split('.')[0]}." for name in parameters}))
            raise ValueError(
                f"trainable: no parameter's name starts with {prefix!r}; the model's parts are "
                f"{parts}"
            )

    for name, parameter in parameters.items():
        parameter.requires_grad_(name.startswith(tuple(prefixes)))
    return count_trainable(model)


def check_is_model(model: object) -> None:
    """Raise a ValueError unless this is a torch module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a CHGNet, such as CHGNet.load(), got {model!r}")


def count_trainable(model: nn.Module) -> TrainableWeights:
    """Return how much of a model trains now."""
    parameters = dict(model.named_parameters())
    names = tuple(name for name, parameter in parameters.items() if parameter.requires_grad)
    return TrainableWeights(
        n_trainable=sum(parameters[name].numel() for name in names),
        n_weights=sum(parameter.numel() for parameter in parameters.values()),
        names=names,
    )


def align_references(model: CHGNet, data: DistillData, source: TargetKind = "soft") -> References:
    """Add the difference of energy zeros to the student's element references.

    Fits the difference of target and student energies by one number an element (least squares, of
    least norm where the structures do not determine the elements one by one). Elements that do not
    occur are left alone. CHGNet's ``AtomRef.fit`` fits the energies themselves instead, which
    breaks a pretrained model. Meant for teachers with another energy zero, such as PFP's isolated
    atoms.

    Args:
        model: the student; its ``composition_model`` is changed in place.
        data: structures with energies.
        source: ``soft``, the teacher's energies, or ``hard``, the labels.

    Returns:
        The fit, with the offsets that were added, eV/atom by atomic number; they are logged, too.

    Raises:
        ValueError: if there are no such energies, or the model has no element references.
    """
    references = _fit_offsets(model, data, source)

    # Column 0 is hydrogen.
    weight = model.composition_model.fc.weight
    with torch.no_grad():
        for number, offset in references.offsets.items():
            weight[0, number - 1] += offset
    logger.info(describe_offsets(references))
    return references


def align_targets(
    model: CHGNet,
    data: DistillData,
    source: TargetKind = "soft",
    references: References | None = None,
) -> tuple[DistillData, References]:
    """Return the data with energies moved to the student's zero, and by how much.

    For a source whose teacher has another zero than the other sources of a training, see
    `DistillData.concatenate`: the student is left as it is, and the difference is taken off the
    targets, one number an element, fitted as in `align_references`.

    Args:
        model: the student, before it is trained.
        data: structures with energies.
        source: ``soft``, the teacher's energies, or ``hard``, the labels.
        references: of another call, for data of the same teacher, such as those of validation.

    Returns:
        The data, and the fit, with the offsets that were taken off, eV/atom by atomic number.

    Raises:
        ValueError: if there are no such energies, or an element of the data is not among those of
            the references.
    """
    if references is None:
        references = _fit_offsets(model, data, source)
    unknown = {
        number
        for sample in data.samples
        for number in sample.doctor_input.structure.atomic_numbers.tolist()
        if number not in references.offsets
    }
    if unknown:
        symbols = ", ".join(chemical_symbols[number] for number in sorted(unknown))
        raise ValueError(
            f"align: the energies of {symbols} cannot be moved, since no structure that the "
            "offsets were fitted to has them; fit them to these data, or add such structures"
        )
    return data.with_energies(source, references.total), references


def _fit_offsets(model: CHGNet, data: DistillData, source: TargetKind) -> References:
    """Fit the difference of target and student energies by one number an element.

    Structures without such an energy do not count.
    """
    check_is_model(model)
    check_distill_data("data", data)
    if source not in ("soft", "hard"):
        raise ValueError(f"source: expected 'soft' or 'hard', got {source!r}")
    if model.composition_model is None:
        raise ValueError("the student has no element references (composition_model)")

    samples = [one for one in data.samples if _energy(one, source) is not None]
    if not samples:
        raise ValueError(f"the data have no {source} energy to align with")

    # One structure at a time: faster on a CPU, where this runs once.
    energies = [
        float(model.predict_graph(sample.graph, task="e")["e"]) * sample.n_atoms
        for sample in samples
    ]
    return fit_references(
        [one.doctor_input.structure.atomic_numbers for one in samples],
        np.array([_energy(one, source) for one in samples]),
        np.array(energies),
    )


def _energy(sample: GraphSample, source: TargetKind) -> float | None:
    """Return a target in eV, or None where it is missing."""
    item = sample.doctor_input
    energy = (item.teacher if source == "soft" else item.labels).get("energy")
    return float(energy) if energy is not None and np.isfinite(energy) else None


def describe_offsets(references: References, what: str = "element references moved by") -> str:
    """Return in words by how much the element references, or a teacher's energies, were moved.

    >>> one = fit_references([np.array([29])], np.array([-3.0]), np.array([-4.0]))
    >>> describe_offsets(one)
    'element references moved by (eV/atom): Cu +1.0000; 0.0000 are left on average'
    """
    moved = ", ".join(
        f"{chemical_symbols[number]} {offset:+.4f}"
        for number, offset in sorted(references.offsets.items())
    )
    left = f"{np.abs(references.residuals).mean():.4f} are left on average"
    return f"{what} (eV/atom): {moved}; {left}"
