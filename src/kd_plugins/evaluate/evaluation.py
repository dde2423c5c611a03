"""Everything that was measured of a student, beside its labels and its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kd_plugins.evaluate.measured import Evaluator
from kd_plugins.evaluate.predictions import add_accuracy
from kd_plugins.evaluate.rdf import Rdf
from kd_plugins.evaluate.volume import volume_error_percent
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
