"""Which metrics a measurement will give, so that a misspelt one is told before it starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kd_plugins.evaluate.predictions import ERRORS
from kd_plugins.evaluate.settings import Measure
from kd_plugins.names import suggestion

QUANTITY = {"energy_per_atom": "energy", "forces": "forces", "stress": "stress"}


def check_metrics(
    where: str,
    names: Collection[str],
    settings: Measure,
    teacher: bool,
    labels: Collection[str] | None = None,
    gives: Collection[str] | None = None,
) -> None:
    """Refuse a metric that there is none of, or that nothing is going to measure.

    Args:
        where: the key that names them, for the message.
        names: of metrics.
        settings: what is going to be measured.
        teacher: whether there is one.
        labels: quantities that all structures are labelled with; any if left out.
        gives: quantities that the teacher gives; any if left out.

    Raises:
        ValueError: naming the first one, and what it needs.
    """
    needs = dict(_needs(settings, teacher, labels, gives))
    for name in names:
        if name not in needs:
            raise ValueError(f"{where}: unknown metric {name!r}{suggestion(name, needs)}")
        if needs[name]:
            measured = sorted(one for one, lacking in needs.items() if not lacking)
            raise ValueError(
                f"{where}: nothing here measures {name!r}, which needs {needs[name]}; measured "
                f"are: {', '.join(measured)}"
            )


def _needs(
    settings: Measure,
    teacher: bool,
    labels: Collection[str] | None,
    gives: Collection[str] | None,
) -> Iterator[tuple[str, str]]:
    """Yield each metric and what it lacks; nothing of one that will be measured."""
    structures = "" if settings.structures else "structures to compare on"
    for quantity, start in ERRORS.items():
        bare = QUANTITY[quantity]
        named = "" if labels is None or {bare, quantity} & set(labels) else f"labels of {bare}"
        given = "" if gives is None or {bare, quantity} & set(gives) else f"a teacher with {bare}"
        ends = ("mae", "rmse", "cosine") if quantity == "forces" else ("mae", "rmse")
        for end in ends:
            yield f"{start}_{end}", structures or named
            yield f"teacher_{start}_{end}", structures or _teacher(teacher) or given
    for name in ("embedding_mae", "embedding_cosine"):
        yield name, structures
    dynamics = "" if settings.dynamics else "dynamics"
    for name in ("microseconds_per_atom", "nanoseconds_per_day", "bytes_per_atom"):
        yield name, dynamics
    yield "speedup", dynamics or _teacher(teacher)
    steps = "" if settings.dynamics and settings.dynamics.steps else "dynamics with steps"
    yield "drift", steps
    yield "rdf_distance", steps or _teacher(teacher)
    crystals = "" if settings.crystals else "crystals"
    yield "unrelaxed_crystals", crystals
    yield "volume_error_percent", crystals
    yield "teacher_volume_error_percent", crystals or _teacher(teacher)


def _teacher(there: bool) -> str:
    return "" if there else "a teacher"
