"""Compare what was measured of a student with labels and with its teacher."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from kd_plugins.evaluate.accuracy import Accuracy, compare
from kd_plugins.evaluate.crystal_errors import (
    compare_stiffness,
    compare_volumes,
    count_unstable,
    drawn_moduli,
    mean_rmsd15,
    modulus_metrics,
    volume_metrics,
    warn_of_old_parts,
)
from kd_plugins.evaluate.evaluator import Evaluator
from kd_plugins.evaluate.rdf import Rdf
from kd_plugins.evaluate.settings import EvaluationSettings
from kd_plugins.files import file_hash
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure
from kd_plugins.teachers.calculator import count_weights

logger = logging.getLogger(__name__)

Values = dict[str, dict[str, NDArray[np.float64]]]
"""Structure id to quantity to values."""
ERRORS = {
    "energy_per_atom": "energy_per_atom",
    "energy": "energy",
    "forces": "force",
    "stress": "stress",
}
"""Quantity to the first word of its metrics' names."""
MOST_HASHES = 50
"""Files that are listed with their hashes; of more, one hash stands for all."""
MOST_POINTS = 2000
"""Points of a parity plot."""
PACKAGES = ("kd_plugins", "torch", "ase", "numpy", "fairchem-core", "hippynn", "chgnet")
"""Packages whose versions are recorded."""


def evaluation(student: Evaluator, teacher: Evaluator | None = None) -> dict[str, Any]:
    """Measure what is still missing, and return all results, ready to be written as JSON.

    Args:
        student: potential to evaluate.
        teacher: potential to compare with, measured with the same settings on the same machine.

    Returns:
        ``model``, ``fingerprint``, ``weights``, ``computing`` (``student`` and ``teacher`` to
        ``device`` and ``dtype``) and, as far as measured, ``metrics`` (name to
        number), ``teacher`` (the teacher's own errors from labels, costs, drift and distance
        between runs, by the same names), ``parity``, ``speed``, ``rdf``, ``volumes`` and
        ``elasticity``. Metrics against labels are called ``force_rmse`` and so on, those against
        the teacher ``teacher_force_rmse``. ``energy_per_atom_mae`` and so on are in eV/atom,
        ``energy_mae`` is of whole structures, in eV. Units are ASE's; drift is in meV/atom/ps,
        densities in g/cm³, moduli in GPa. ``left_out`` has the crystals that were not measured.

    Raises:
        ValueError: if a potential fails on a structure.
    """
    results: dict[str, Any] = {
        "model": student.potential,
        "fingerprint": student.model.fingerprint,
        "computing": {"student": student.computing},
        "metrics": {},
        "teacher": {},
    }
    if teacher is not None:
        results["computing"]["teacher"] = teacher.computing
    _add_weights(results, student, teacher)
    if student.settings.structures:
        _add_accuracy(results, student, teacher)
    if student.settings.dynamics:
        _add_speed(results, student, teacher)
        _add_runs(results, student, teacher)
    if student.settings.crystals:
        _add_crystals(results, student, teacher)
    return results


def _add_weights(results: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    """Add the number of weights, and how many times as many the teacher has."""
    n_weights = count_weights(getattr(student.model, "calculator", None))
    if not n_weights:
        return

    results["weights"] = n_weights
    n_of_teacher = count_weights(getattr(getattr(teacher, "model", None), "calculator", None))
    if n_of_teacher:
        results["metrics"]["weight_ratio"] = n_of_teacher / n_weights


# --- Accuracy -----------------------------------------------------------------------------------


def _add_accuracy(results: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    """Add ``parity``, and to ``metrics`` the errors against labels and against the teacher.

    Forces count on atoms that no ``FixAtoms`` holds, as in fairchem.
    """
    structures = student.structures
    free = {one.structure_id: _free_atoms(one.atoms) for one in structures}
    n_atoms = {one.structure_id: len(one.atoms) for one in structures}

    student_values = _stored_values(student.predictions, n_atoms)
    labels = _label_values(structures)
    references = {"": labels}
    if teacher is not None:
        teacher_values = _stored_values(teacher.predictions, n_atoms)
        references["teacher_"] = teacher_values

        predicted, targets = _shared_quantities(teacher_values, labels)
        if targets:
            accuracy = compare(predicted, targets, n_atoms, free)
            results["teacher"] |= dict(_accuracy_metrics(accuracy, ""))

    results["parity"] = {}
    for prefix, reference in references.items():
        predicted, targets = _shared_quantities(student_values, reference)
        if not targets:
            continue

        scored = {key: values for key, values in _without_embeddings(targets).items() if values}
        accuracy = compare(predicted, scored, n_atoms, free)
        results["metrics"] |= dict(_accuracy_metrics(accuracy, prefix))
        results["metrics"] |= dict(_embedding_metrics(predicted, targets))
        name = "teacher" if prefix else "labels"
        results["parity"][name] = _parity(predicted, scored, n_atoms, free)


def _free_atoms(atoms: Atoms) -> NDArray[np.bool_]:
    """Return (N,), which atoms no ``FixAtoms`` holds.

    >>> from ase.constraints import FixAtoms
    >>> _free_atoms(Atoms("CuO", constraint=FixAtoms([0]))).tolist()
    [False, True]
    """
    free = np.ones(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
    return free


def _label_values(structures: Sequence[LabelledStructure]) -> Values:
    return {one.structure_id: dict(one.labels) for one in structures}


def _stored_values(store: TargetStore, structure_ids: Iterable[str]) -> Values:
    return {
        key: {name: value.double().numpy() for name, value in store.record(key).values.items()}
        for key in structure_ids
    }


def _shared_quantities(predicted: Values, reference: Values) -> tuple[Values, Values]:
    """Keep the quantities that both sides have for every structure.

    A quantity that only some structures have is left out with a warning. Node embeddings of
    different widths cannot be compared and are left out.
    """
    shared = set()
    for name in (*ERRORS, "energy", "node_embeddings"):
        present = [name in predicted[key] and name in reference[key] for key in reference]
        if all(present):
            shared.add(name)
        elif any(present):
            logger.warning(
                f"{name} is not compared: {present.count(False)} of {len(present)} structures lack "
                "it"
            )

    if "node_embeddings" in shared:
        sides = (*predicted.values(), *reference.values())
        if len({values["node_embeddings"].shape[-1] for values in sides}) > 1:
            shared.remove("node_embeddings")
    if not shared:
        return {}, {}

    kept_predicted, kept_reference = (
        {key: {name: values[name] for name in sorted(shared)} for key, values in side.items()}
        for side in (predicted, reference)
    )
    return kept_predicted, kept_reference


def _without_embeddings(values: Values) -> Values:
    return {
        key: {name: value for name, value in one.items() if name != "node_embeddings"}
        for key, one in values.items()
    }


def _accuracy_metrics(accuracy: Accuracy, prefix: str) -> Iterator[tuple[str, float]]:
    for quantity, error in accuracy.errors.items():
        yield f"{prefix}{ERRORS[quantity]}_mae", error.mae
        yield f"{prefix}{ERRORS[quantity]}_rmse", error.rmse
        if np.isfinite(error.r_squared) and quantity != "energy":
            yield f"{prefix}{ERRORS[quantity]}_r2", error.r_squared
        # A root mean square makes sense for forces alone: zero is no reference of an energy.
        if quantity == "forces" and np.isfinite(error.percent):
            yield f"{prefix}force_rmse_percent", error.percent
    if np.isfinite(accuracy.force_cosine):
        yield f"{prefix}force_cosine", accuracy.force_cosine


def _embedding_metrics(predicted: Values, targets: Values) -> Iterator[tuple[str, float]]:
    if not all("node_embeddings" in values for values in targets.values()):
        return

    student = np.concatenate([predicted[key]["node_embeddings"] for key in targets])
    teacher = np.concatenate([values["node_embeddings"] for values in targets.values()])
    yield "embedding_mae", float(np.abs(student - teacher).mean())

    lengths = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
    products = (student * teacher).sum(axis=1)
    has_direction = lengths > 0
    yield "embedding_cosine", float((products[has_direction] / lengths[has_direction]).mean())


def _parity(
    predicted: Values,
    targets: Values,
    n_atoms: Mapping[str, int],
    free: Mapping[str, NDArray[np.bool_]],
) -> dict[str, dict[str, list[float]]]:
    """Return points of parity plots: quantity to reference and student, a fixed random sample."""
    plots = {}
    for name in next(iter(targets.values())):
        if name == "energy":
            sides = [
                [side[key][name].ravel() / n_atoms[key] for key in targets]
                for side in (targets, predicted)
            ]
        elif name == "forces":
            sides = [
                [side[key][name][free[key]].ravel() for key in targets]
                for side in (targets, predicted)
            ]
        else:
            continue

        points = np.stack([np.concatenate(side) for side in sides])
        # The seed is fixed, so that the page of one evaluation is the same each time.
        chosen = np.random.default_rng(0).permutation(points.shape[1])[:MOST_POINTS]
        reference, student = points[:, np.sort(chosen)].tolist()
        title = "energy_per_atom" if name == "energy" else name
        plots[title] = {"reference": reference, "student": student}
    return plots


# --- Dynamics -----------------------------------------------------------------------------------


def _add_speed(results: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    results["speed"] = {"student": student.speed()}
    results["metrics"] |= _step_costs(results["speed"]["student"])
    if teacher is None:
        return

    results["speed"]["teacher"] = teacher.speed()
    results["teacher"] |= _step_costs(results["speed"]["teacher"])
    if not _have_same_device(*results["speed"].values()):
        return
    for ratio, cost in (("speedup", "microseconds_per_atom"), ("memory_ratio", "bytes_per_atom")):
        if cost in results["teacher"] and cost in results["metrics"]:
            results["metrics"][ratio] = results["teacher"][cost] / results["metrics"][cost]


def _have_same_device(*potentials: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether costs can be compared; cells of version 0.1.0 do not name their device."""
    named = [cell["device"] for cells in potentials for cell in cells if cell.get("device")]
    return len({device.replace(":0", "") for device in named}) <= 1  # cuda is cuda:0


def _step_costs(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the costs of a step in the largest cell."""
    names = {
        "microseconds_per_atom": "microseconds",
        "nanoseconds_per_day": "nanoseconds_per_day",
        "bytes_per_atom": "bytes",
    }
    largest = cells[-1]
    return {name: largest[key] for name, key in names.items() if largest[key] is not None}


def _add_runs(results: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    """Add drift and radial distribution function, averaged over the seeds of the runs."""
    student_runs = student.runs()
    if not student_runs:
        return

    student_rdf = _mean_rdf(student_runs)
    results["metrics"]["drift"] = _mean_drift(student_runs)
    results["rdf"] = {
        "distances": student_rdf.distances.tolist(),
        "student": student_rdf.values.tolist(),
    }
    if teacher is None:
        return

    teacher_runs = teacher.runs()
    teacher_rdf = _mean_rdf(teacher_runs)
    distance = student_rdf.distance(teacher_rdf)
    floor = _distance_between_runs(teacher_runs)
    results["teacher"]["drift"] = _mean_drift(teacher_runs)
    results["rdf"] |= {
        "teacher": teacher_rdf.values.tolist(),
        "distance": distance,
        "floor": floor,
    }
    results["metrics"]["rdf_distance"] = distance
    if floor:
        results["teacher"]["rdf_distance"] = floor
        between = _distance_between_potentials(student_runs, teacher_runs)
        results["metrics"]["rdf_noise_ratio"] = between / floor


def _mean_drift(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([abs(run["drift"]) for run in runs]))


def _mean_rdf(runs: Sequence[Mapping[str, Any]]) -> Rdf:
    values = np.mean([run["values"] for run in runs], axis=0)
    return Rdf(np.array(runs[0]["distances"]), values)


def _distance_between_runs(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean distance between runs of one potential; None for a single run.

    Below it, a distance between two potentials shows no difference.
    """
    rdfs = [_mean_rdf([run]) for run in runs]
    distances = [one.distance(two) for i, one in enumerate(rdfs) for two in rdfs[:i]]
    return float(np.mean(distances)) if distances else None


def _distance_between_potentials(
    student: Sequence[Mapping[str, Any]], teacher: Sequence[Mapping[str, Any]]
) -> float:
    """Return the mean distance between a run of the student and one of the teacher.

    Like the floor, it is between single runs: averages over runs have less noise. The runs have
    different seeds, since runs from the same velocities stay together for a while, so that the
    teacher as its own student gives the floor.
    """
    students, teachers = ([_mean_rdf([run]) for run in runs] for runs in (student, teacher))
    pairs = [(i, j) for i in range(len(students)) for j in range(len(teachers)) if i != j]
    return float(np.mean([students[i].distance(teachers[j]) for i, j in pairs]))


# --- Crystals -----------------------------------------------------------------------------------


def _add_crystals(results: dict[str, Any], student: Evaluator, teacher: Evaluator | None) -> None:
    """Add ``volumes``, ``elasticity``, ``left_out`` and the errors, of the teacher as well."""
    crystals = student.read_crystals
    parts, of_teacher = student.crystals(), None if teacher is None else teacher.crystals()
    starts = {one.structure_id: one.atoms for one in crystals.structures}
    metrics, teacher_metrics = results["metrics"], results["teacher"]

    volumes = results["volumes"] = compare_volumes(parts, of_teacher, starts)
    warn_of_old_parts(parts)
    metrics["unrelaxed_crystals"] = _count_failures(volumes, "student")
    metrics |= volume_metrics(volumes, "student", "reference") | mean_rmsd15(volumes, "rmsd15")
    if of_teacher is not None:
        apart = volume_metrics(volumes, "student", "teacher")
        metrics |= _prefixed(apart | mean_rmsd15(volumes, "teacher_rmsd15"))
        teacher_metrics["unrelaxed_crystals"] = _count_failures(volumes, "teacher")
        teacher_metrics |= volume_metrics(volumes, "teacher", "reference")
        teacher_metrics |= mean_rmsd15(volumes, "rmsd15_of_teacher")
    if crystals.left_out:
        results["left_out"] = dict(crystals.left_out)

    settings = student.settings.crystals
    if settings is None or not any("elasticity" in part for part in parts.values()):
        return
    stiffness = compare_stiffness(parts, of_teacher, settings.stiffness)
    metrics["unstable_crystals"] = count_unstable(stiffness, "student")
    metrics |= dict(modulus_metrics(stiffness, "student", "reference"))
    if of_teacher is not None:
        metrics |= _prefixed(dict(modulus_metrics(stiffness, "student", "teacher")))
        teacher_metrics["unstable_crystals"] = count_unstable(stiffness, "teacher")
        teacher_metrics |= dict(modulus_metrics(stiffness, "teacher", "reference"))
    results["elasticity"] = {
        name: {side: drawn_moduli(moduli) for side, moduli in sides.items()}
        for name, sides in stiffness.items()
    }


def _prefixed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"teacher_{name}": value for name, value in metrics.items()}


def _count_failures(volumes: Mapping[str, Mapping[str, Any]], side: str) -> float:
    return float(sum(side in one["failures"] for one in volumes.values()))


# --- Provenance ---------------------------------------------------------------------------------


def provenance(
    settings: EvaluationSettings, teacher: str | None, fingerprint: str | None, command: str | None
) -> dict[str, Any]:
    """Return the origin of an evaluation's numbers, for the report.

    Args:
        settings: of the measurements, with the files of structures.
        teacher: its name, if there is one.
        fingerprint: the teacher's, if it is known.
        command: the command line.
    """
    origin = {
        "command": command,
        "teacher": teacher or "none",
        "teacher fingerprint": fingerprint,
        "structures (SHA-256)": _hashes(settings.files),
        "versions": dict(_versions()),
    }
    return {name: value for name, value in origin.items() if value is not None}


def _hashes(files: Sequence[str]) -> dict[str, str]:
    """Return the hash of each file, or of many files one hash of all their hashes."""
    hashes = {name: file_hash(Path(name)) for name in files}
    if len(hashes) <= MOST_HASHES:
        return hashes
    lines = "".join(f"{value}  {Path(name).name}\n" for name, value in sorted(hashes.items()))
    return {f"{len(hashes)} files": hashlib.sha256(lines.encode()).hexdigest()}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
