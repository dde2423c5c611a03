"""Which CHGNet learns: the weights that train, and its element references."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols
from chgnet.model import CHGNet
from torch import nn

from kd_plugins.chgnet.data import DistillData, check_kind
from kd_plugins.chgnet.loss import Source
from kd_plugins.doctor.references import References, fit_references

HEAD = ("mlp.",)
"""The readout MLP, all that paper 004 trains: 12,545 of the 412,525 weights of CHGNet 0.3.0."""


@dataclass(frozen=True)
class Trainable:
    """How much of a model trains.

    Args:
        n_trainable: numbers that train.
        n_weights: numbers in all.
        names: parameters that train.

    >>> str(Trainable(12545, 412525, ("mlp.layers.0.weight",)))
    '12,545 of 412,525 weights train (3.0 %)'
    """

    n_trainable: int
    n_weights: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        share = 100 * self.n_trainable / self.n_weights
        return f"{self.n_trainable:,} of {self.n_weights:,} weights train ({share:.1f} %)"


def freeze_except(model: nn.Module, prefixes: Sequence[str] = HEAD) -> Trainable:
    """Let only the parameters train whose names start with one of some prefixes.

    A prefix and not a part of the name: ``mlp`` is a part of nearly all of CHGNet's names.

    Args:
        model: whose ``requires_grad`` is set, of every parameter.
        prefixes: of parameter names, such as ``("mlp.", "readout_norm.")``.

    Raises:
        ValueError: for what is no model, or a prefix that matches no parameter; then nothing is
            changed.

    >>> freeze_except(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ("1.",)).n_trainable
    3
    """
    if isinstance(prefixes, str) or not prefixes:
        raise ValueError(f"trainable: expected prefixes of parameter names, got {prefixes!r}")
    check_module(model)
    named = dict(model.named_parameters())
    for prefix in prefixes:
        if not isinstance(prefix, str) or not prefix:  # "" would match every name
            raise ValueError(
                f"trainable: expected a prefix of parameter names such as 'mlp.', got {prefix!r}"
            )
        if not any(name.startswith(prefix) for name in named):
            parts = ", ".join(sorted({f"{name.split('.')[0]}." for name in named}))
            raise ValueError(
                f"trainable: no parameter's name starts with {prefix!r}; the model's parts are "
                f"{parts}"
            )
    for name, parameter in named.items():
        parameter.requires_grad_(name.startswith(tuple(prefixes)))
    return trainable(model)


def check_module(model: object) -> None:
    """Raise a ValueError for what is no model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a CHGNet, such as CHGNet.load(), got {model!r}")


def trainable(model: nn.Module) -> Trainable:
    """Return how much of a model trains now."""
    named = dict(model.named_parameters())
    names = tuple(name for name, parameter in named.items() if parameter.requires_grad)
    return Trainable(
        sum(named[name].numel() for name in names),
        sum(parameter.numel() for parameter in named.values()),
        names,
    )


logger = logging.getLogger(__name__)


def align_references(model: CHGNet, data: DistillData, source: Source = "soft") -> References:
    """Add to the student's element references what its energies differ by from the targets'.

    Fits the difference of energies, not the energies, one number an element and of least norm
    where structures do not tell elements apart; elements that do not occur are left alone. (What
    CHGNet's ``AtomRef.fit`` does instead, fitting the energies themselves, breaks a pretrained
    model.) For teachers with another energy zero, such as PFP's isolated atoms.

    Args:
        model: the student; its ``composition_model`` is changed in place.
        data: structures with energies.
        source: ``soft``, the teacher's energies, or ``hard``, the labels.

    Returns:
        The fit, with the offsets that were added, eV/atom by atomic number; they are logged, too.

    Raises:
        ValueError: if there are no such energies, or the model has no element references.
    """
    check_module(model)
    check_kind("data", data)
    if source not in ("soft", "hard"):
        raise ValueError(f"source: expected 'soft' or 'hard', got {source!r}")
    if model.composition_model is None:
        raise ValueError("the student has no element references (composition_model)")
    cases = [row.case for row in data.rows]
    sides = [case.teacher if source == "soft" else case.labels for case in cases]
    if not all("energy" in side for side in sides):
        raise ValueError(f"the data have no {source} energy to align with")
    said = [
        float(model.predict_graph(row.graph, task="e")["e"]) * row.case.n_atoms for row in data.rows
    ]
    references = fit_references(
        [case.structure.atomic_numbers for case in cases],
        np.array([float(side["energy"]) for side in sides]),
        np.array(said),
    )
    weight = model.composition_model.fc.weight
    with torch.no_grad():
        for number, offset in references.offsets.items():
            weight[0, number - 1] += offset
    logger.info(in_words(references))
    return references


def in_words(references: References) -> str:
    """Return by how much the element references were moved.

    >>> one = fit_references([np.array([29])], np.array([-3.0]), np.array([-4.0]))
    >>> in_words(one)
    'element references moved by (eV/atom): Cu +1.0000; 0.0000 are left on average'
    """
    moved = ", ".join(
        f"{chemical_symbols[number]} {offset:+.4f}"
        for number, offset in sorted(references.offsets.items())
    )
    left = f"{np.abs(references.residuals).mean():.4f} are left on average"
    return f"element references moved by (eV/atom): {moved}; {left}"
