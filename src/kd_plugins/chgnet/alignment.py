"""The student's element references, moved to its teacher's energy zero."""

from __future__ import annotations

import logging

import numpy as np
import torch
from ase.data import chemical_symbols
from chgnet.model import CHGNet

from kd_plugins.chgnet.data import DistillData, check_kind
from kd_plugins.chgnet.freezing import check_module
from kd_plugins.chgnet.loss import Source
from kd_plugins.doctor.references import References, fit_references

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
