"""What the metrics of an evaluation are called, their units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass, replace

GPA = 160.21766208
"""One eV/Å³ in GPa."""

TEACHER = "teacher_"
"""The prefix of a metric against the teacher instead of the labels."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Args:
        label: its name in words.
        unit: the unit it is shown in; empty for a pure number.
        factor: shown value over stored value.
        smaller_is_better: None where neither is.
    """

    label: str
    unit: str = ""
    factor: float = 1.0
    smaller_is_better: bool | None = True

    @property
    def title(self) -> str:
        """Label and unit: ``force RMSE (meV/Å)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS = {
    "force_rmse": Metric("force RMSE", "meV/Å", 1e3),
    "force_mae": Metric("force MAE", "meV/Å", 1e3),
    "force_cosine": Metric("force cosine", smaller_is_better=False),
    "energy_per_atom_rmse": Metric("energy RMSE", "meV/atom", 1e3),
    "energy_per_atom_mae": Metric("energy MAE", "meV/atom", 1e3),
    "stress_rmse": Metric("stress RMSE", "GPa", GPA),
    "stress_mae": Metric("stress MAE", "GPa", GPA),
    "embedding_mae": Metric("embedding MAE"),
    "embedding_cosine": Metric("embedding cosine", smaller_is_better=False),
    "microseconds_per_atom": Metric("time per step and atom", "µs"),
    "bytes_per_atom": Metric("memory per atom", "KB", 1e-3),
    "nanoseconds_per_day": Metric("simulated a day", "ns", smaller_is_better=False),
    "speedup": Metric("speed relative to the teacher", "times", smaller_is_better=False),
    "drift": Metric("energy drift", "meV/atom/ps"),
    "rdf_distance": Metric("RDF distance", "Å"),
    "volume_error_percent": Metric("volume error", "%"),
    "unrelaxed_crystals": Metric("crystals not relaxed"),
    "young_error_percent": Metric("Young's modulus error", "%"),
}


def metric(name: str) -> Metric:
    """Return how a metric is shown; one not in the table keeps its name, without a unit.

    >>> metric("teacher_force_rmse").title
    'force RMSE from the teacher (meV/Å)'
    >>> metric("hessian_cosine").title
    'hessian cosine'
    """
    if name in METRICS:
        return METRICS[name]
    bare = name.removeprefix(TEACHER)
    if name.startswith(TEACHER) and bare in METRICS:
        known = METRICS[bare]
        return replace(known, label=f"{known.label} from the teacher")
    return Metric(name.replace("_", " "), smaller_is_better=None)
