"""Compare what was measured of a student with labels and with its teacher."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from kd_plugins.evaluate.accuracy import Accuracy, compare
from kd_plugins.evaluate.evaluator import Evaluator
from kd_plugins.evaluate.rdf import Rdf
from kd_plugins.evaluate.settings import Measure
from kd_plugins.evaluate.volumes import volume_error_percent
from kd_plugins.files import file_hash
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure
from kd_plugins.teachers.calculator import count_weights


def evaluation(student: Evaluator, teacher: Evaluator | None = None) -> dict[str, Any]:
    """Measure what is still missing and return all of it, ready to be written as JSON.

    Args:
        student: what is judged.
        teacher: measured with the same settings, on the same machine.

    Returns:
        ``model``, ``fingerprint``, ``weights`` and, as far as measured, ``metrics`` (name to
        number), ``teacher`` (the teacher's own costs and drift, by the same names), ``parity``,
        ``speed``, ``rdf``, ``volumes`` and ``elasticity``. Metrics against
        labels are called ``force_rmse`` and so on, those against the teacher
        ``teacher_force_rmse``; errors of energies are per atom, eV/atom; units are ASE's, drift
        meV/atom/ps.

    Raises:
        ValueError: if a potential fails on a structure.
    """
    found: dict[str, Any] = {
        "model": student.potential,
        "fingerprint": student.model.fingerprint,
        "metrics": {},
        "teacher": {},
    }
    weights = count_weights(getattr(student.model, "calculator", None))
    if weights:
        found["weights"] = weights
    if student.settings.structures:
        add_accuracy(found, student, teacher)
    if student.settings.dynamics:
        _add_speed(found, student, teacher)
        _add_runs(found, student, teacher)
    if student.settings.crystals:
        _add_crystals(found, student, teacher)
    return found


def _add_speed(found: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    found["speed"] = {"student": student.speed()}
    found["metrics"] |= _costs(found["speed"]["student"])
    if teacher is not None:
        found["speed"]["teacher"] = teacher.speed()
        found["teacher"] |= _costs(found["speed"]["teacher"])
        slow, fast = (one["microseconds_per_atom"] for one in (found["teacher"], found["metrics"]))
        found["metrics"]["speedup"] = slow / fast


def _costs(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what a step costs in the largest cell."""
    names = {
        "microseconds_per_atom": "microseconds",
        "nanoseconds_per_day": "nanoseconds_per_day",
        "bytes_per_atom": "bytes",
    }
    return {name: cells[-1][key] for name, key in names.items() if cells[-1][key] is not None}


def _add_runs(found: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    runs = student.runs()
    if not runs:
        return
    found["metrics"]["drift"] = _drift(runs)
    found["rdf"] = {"distances": runs[0]["distances"], "student": _mean(runs).values.tolist()}
    if teacher is None:
        return
    theirs = teacher.runs()
    distance = _mean(runs).distance(_mean(theirs))
    found["teacher"]["drift"] = _drift(theirs)
    found["rdf"] |= {
        "teacher": _mean(theirs).values.tolist(),
        "distance": distance,
        "floor": _floor(theirs),
    }
    found["metrics"]["rdf_distance"] = distance


def _drift(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([abs(run["drift"]) for run in runs]))


def _mean(runs: Sequence[Mapping[str, Any]]) -> Rdf:
    values = np.mean([run["values"] for run in runs], axis=0)
    return Rdf(np.array(runs[0]["distances"]), values)


def _floor(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how far one potential's own runs are apart, on average."""
    each = [_mean([run]) for run in runs]
    apart = [one.distance(two) for i, one in enumerate(each) for two in each[:i]]
    return float(np.mean(apart)) if apart else None


def _add_crystals(found: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    ours, theirs = student.crystals(), {} if teacher is None else teacher.crystals()
    found["volumes"] = {name: _volumes(one, theirs.get(name)) for name, one in ours.items()}
    failed = [name for name, one in found["volumes"].items() if "student" in one["failures"]]
    found["metrics"]["unrelaxed_crystals"] = float(len(failed))
    for prefix, side in (("", "reference"), ("teacher_", "teacher")):
        errors = list(_volume_errors(found["volumes"].values(), side))
        if errors:
            found["metrics"][f"{prefix}volume_error_percent"] = float(np.mean(errors))
    if any("elasticity" in one for one in ours.values()):
        found["elasticity"] = {
            name: {"student": _moduli(one), "teacher": _moduli(theirs.get(name, {}))}
            for name, one in ours.items()
        }


def _volumes(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a crystal's volumes, also where a relaxation failed, and why it did."""
    sides = {"student": student} | ({"teacher": teacher} if teacher else {})
    reasons = {who: one["reason"] for who, one in sides.items()}
    return {
        "reference": student["reference"],
        **{who: one["volume"] for who, one in sides.items()},
        "failures": {who: why for who, why in reasons.items() if why != "converged"},
    }


def _moduli(crystal: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the averages, or why there are none, without the tensor."""
    found = crystal.get("elasticity")
    return found and {name: value for name, value in found.items() if name != "stiffness"}


def _volume_errors(volumes: Any, side: str) -> Iterator[float]:
    """Yield absolute errors; a crystal without a volume counts as lost, 100 %."""
    for one in volumes:
        if one.get(side) is not None:
            volume = one["student"]
            yield 100.0 if volume is None else abs(volume_error_percent(volume, one[side]))


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


PACKAGES = ("kd_plugins", "torch", "ase", "numpy", "fairchem-core", "hippynn", "chgnet")


def provenance(
    settings: Measure, teacher: str | None, fingerprint: str | None, command: str | None
) -> dict[str, Any]:
    """Return what a page tells about the origin of its numbers.

    Args:
        settings: what was measured, with the structures' files.
        teacher: by name.
        fingerprint: the teacher's, if it is known.
        command: that measured.
    """
    said = {"command": command, "teacher": teacher or "none", "teacher fingerprint": fingerprint}
    files = {name: file_hash(Path(name)) for name in settings.files}
    found = {**said, "structures (SHA-256)": files, "versions": dict(_versions())}
    return {name: value for name, value in found.items() if value is not None}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
