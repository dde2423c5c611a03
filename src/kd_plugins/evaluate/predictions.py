"""What a student says of structures, beside their labels and beside its teacher."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from kd_plugins.evaluate.accuracy import Accuracy, compare
from kd_plugins.evaluate.measured import Evaluator
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure

logger = logging.getLogger(__name__)
ERRORS = {"energy_per_atom": "energy_per_atom", "forces": "force", "stress": "stress"}
"""Quantity to the beginning of its metrics' names."""
MOST = 2000
"""Numbers of a parity plot."""
Values = dict[str, dict[str, NDArray[np.float64]]]


def add_accuracy(found: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    """Add ``parity``, and to ``metrics`` the errors against labels and against the teacher.

    Forces count on atoms that no ``FixAtoms`` holds, as in fairchem.
    """
    frames = student.frames
    free = {frame.structure_id: free_atoms(frame.atoms) for frame in frames}
    sizes = {frame.structure_id: len(frame.atoms) for frame in frames}
    said, found["parity"] = _values(student.predictions, sizes), {}
    sides = {"": _labels(frames)}
    if teacher is not None:
        sides["teacher_"] = _values(teacher.predictions, sizes)
    for prefix, reference in sides.items():
        guesses, targets = _both(said, reference)
        if not targets:
            continue
        scored = {key: value for key, value in _without_embeddings(targets).items() if value}
        accuracy = compare(guesses, scored, sizes, free)
        found["metrics"] |= dict(_named(accuracy, prefix))
        found["metrics"] |= dict(_embedding_metrics(guesses, targets))
        found["parity"]["teacher" if prefix else "labels"] = _parity(guesses, scored, sizes, free)


def free_atoms(atoms: Atoms) -> NDArray[np.bool_]:
    """Return (N,), which atoms no ``FixAtoms`` holds.

    >>> from ase.constraints import FixAtoms
    >>> free_atoms(Atoms("CuO", constraint=FixAtoms([0]))).tolist()
    [False, True]
    """
    free = np.ones(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
    return free


def _labels(frames: Sequence[LabelledStructure]) -> Values:
    return {frame.structure_id: dict(frame.labels) for frame in frames}


def _values(store: TargetStore, sizes: Mapping[str, int]) -> Values:
    return {
        key: {name: value.double().numpy() for name, value in store.record(key).values.items()}
        for key in sizes
    }


def _both(said: Values, reference: Values) -> tuple[Values, Values]:
    """Keep the quantities that both sides have of every structure that has any."""
    shared = set()
    for name in (*ERRORS, "energy", "node_embeddings"):
        have = [all(name in side[key] for side in (said, reference)) for key in reference]
        if all(have):
            shared.add(name)
        elif any(have):
            logger.warning(
                f"{name} is not compared: {have.count(False)} of {len(have)} structures lack it"
            )
    widths = {
        values["node_embeddings"].shape[-1]
        for values in (*said.values(), *reference.values())
        if "node_embeddings" in shared
    }
    if len(widths) > 1:
        shared.remove("node_embeddings")
    if not shared:
        return {}, {}
    kept = [
        {key: {name: values[name] for name in sorted(shared)} for key, values in side.items()}
        for side in (said, reference)
    ]
    return kept[0], kept[1]


def _without_embeddings(values: Values) -> Values:
    return {
        key: {name: value for name, value in one.items() if name != "node_embeddings"}
        for key, one in values.items()
    }


def _named(accuracy: Accuracy, prefix: str) -> Iterator[tuple[str, float]]:
    for quantity, error in accuracy.errors.items():
        yield f"{prefix}{ERRORS[quantity]}_mae", error.mae
        yield f"{prefix}{ERRORS[quantity]}_rmse", error.rmse
    if np.isfinite(accuracy.force_cosine):
        yield f"{prefix}force_cosine", accuracy.force_cosine


def _embedding_metrics(guesses: Values, targets: Values) -> Iterator[tuple[str, float]]:
    if not all("node_embeddings" in values for values in targets.values()):
        return
    ours, theirs = (
        np.concatenate([values["node_embeddings"] for values in side.values()])
        for side in ({key: guesses[key] for key in targets}, targets)
    )
    yield "embedding_mae", float(np.abs(ours - theirs).mean())
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    yield "embedding_cosine", float((products[lengths > 0] / lengths[lengths > 0]).mean())


def _parity(
    guesses: Values,
    targets: Values,
    sizes: Mapping[str, int],
    free: Mapping[str, NDArray[np.bool_]],
) -> dict[str, dict[str, list[float]]]:
    """Return quantity to reference and student, a sample of numbers that is always the same."""
    both, drawn = (targets, guesses), {}
    for name in next(iter(targets.values())):
        if name == "energy":
            sides = [[side[key][name].ravel() / sizes[key] for key in targets] for side in both]
        elif name == "forces":
            sides = [[side[key][name][free[key]].ravel() for key in targets] for side in both]
        else:
            continue
        pairs = np.stack([np.concatenate(side) for side in sides])
        chosen = np.random.default_rng(0).permutation(pairs.shape[1])[:MOST]
        reference, student = pairs[:, np.sort(chosen)].tolist()
        title = "energy_per_atom" if name == "energy" else name
        drawn[title] = {"reference": reference, "student": student}
    return drawn
