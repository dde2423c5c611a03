"""What dynamics.py has measured, beside the runs that it measured, and as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from study import Run, Study

from kd_plugins.evaluate import Rdf
from kd_plugins.report.tables import format_spread

HEAD = [
    "model",
    "weights",
    "µs/step/atom",
    "of the largest teacher's",
    "KB/atom",
    "of the largest teacher's",
    "liquid's drift (meV/atom/ps)",
    "g(r) from the teacher's (Å)",
    "teacher's own spread (Å)",
]

LIQUIDS = ["method", "size", "seeds", "g(r) from its teacher's (Å)"]

Models = dict[str, dict[str, Any]]
"""Run's name to its record and what dynamics.py has added."""


def measured(study: Study) -> Models:
    """Return the models that dynamics.py has measured, teachers first, then by size."""
    sizes = list(vars(study.settings.sizes))
    found: Models = {}
    for path in sorted((study.out / "dynamics").glob("*.json")):
        run = json.loads((study.out / "runs" / path.stem / "record.json").read_text())
        found[path.stem] = {**run, **json.loads(path.read_text())}
    return dict(
        sorted(
            found.items(),
            key=lambda item: (item[1]["method"] != "teacher", sizes.index(item[1]["size"])),
        )
    )


def largest(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a model's costs in the largest cell, none if they were not measured."""
    return max(model.get("costs", [{}]), key=lambda one: one.get("atoms", 0))


def teacher_of(models: Models, model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the teacher of a model's seed, or None if it is not among the models."""
    return models.get(Run("teacher", "large", 1.0, model["seed"]).name)


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Return the mean distance in Å of two models' liquids with unlike initial velocities.

    Like velocities would start both on one path. None without two such liquids.
    """
    found = [
        liquid_rdf(ours).distance(liquid_rdf(theirs))
        for ours in one["liquids"]
        for theirs in other["liquids"]
        if ours["velocity_seed"] != theirs["velocity_seed"]
    ]
    return statistics.mean(found) if found else None


def liquid_rdf(liquid: Mapping[str, Any]) -> Rdf:
    """Return a liquid's radial distribution function."""
    return Rdf(np.array(liquid["distances"]), np.array(liquid["values"]))


def model_rows(models: Models) -> Iterator[list[str]]:
    """Yield one row a model; times and memory relative to the mean of the largest teachers."""
    weights = max(
        (one["weights"] for one in models.values() if one["method"] == "teacher"), default=0
    )
    teachers = [
        largest(one)
        for one in models.values()
        if (one["method"], one["weights"]) == ("teacher", weights) and "costs" in one
    ]
    for name, model in models.items():
        row = [name, str(model["weights"])]
        for key, scale in (("microseconds", 1.0), ("bytes", 1e-3)):
            mean = statistics.mean(one[key] for one in teachers) if teachers else None
            value = largest(model).get(key)
            row.append(written(value and scale * value, ".3g"))
            row.append(written(mean and value and value / mean, ".2f"))
        drifts = [one["drift"] for one in model["liquids"]]
        row.append(written(statistics.mean(drifts) if drifts else None, "+.2f"))
        teacher = teacher_of(models, model)
        for one in (model, teacher):
            row.append(written(apart(one, teacher) if one and teacher else None, ".3f"))
        yield row


def liquid_rows(models: Models) -> Iterator[list[str]]:
    """Yield one row a method and size: distance from the teacher's liquid; a teacher's, by chance.

    Each seed's model is compared with the teacher of its own seed.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for model in models.values():
        teacher = teacher_of(models, model)
        distance = apart(model, teacher) if teacher else None
        if distance is not None:
            found.setdefault((model["method"], model["size"]), []).append(distance)
    for (method, size), distances in found.items():
        yield [method, size, str(len(distances)), format_spread(distances)]


def written(number: float | None, form: str) -> str:
    """Return a number, or a dash for none.

    >>> written(None, ".1f"), written(1.0, ".1f")
    ('–', '1.0')
    """
    return "–" if number is None else format(number, form)
