"""The names of an evaluation's metrics, their units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass, replace

GPA = 160.21766208
"""One eV/Å³ in GPa."""

TEACHER = "teacher_"
"""Prefix of a metric against the teacher instead of the labels."""


@dataclass(frozen=True)
class Metric:
    """Name and unit of a metric on the page.

    Args:
        label: its name in words.
        unit: on the page; empty for a pure number.
        factor: value on the page over stored value.
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
    "force_rmse_percent": Metric("force RMSE", "% of force rms"),
    "force_r2": Metric("force R²", smaller_is_better=False),
    "force_cosine": Metric("force cosine", smaller_is_better=False),
    "energy_per_atom_rmse": Metric("energy RMSE", "meV/atom", 1e3),
    "energy_per_atom_mae": Metric("energy MAE", "meV/atom", 1e3),
    "energy_per_atom_r2": Metric("energy R²", smaller_is_better=False),
    "energy_rmse": Metric("total energy RMSE", "meV", 1e3),
    "energy_mae": Metric("total energy MAE", "meV", 1e3),
    "stress_rmse": Metric("stress RMSE", "GPa", GPA),
    "stress_mae": Metric("stress MAE", "GPa", GPA),
    "stress_r2": Metric("stress R²", smaller_is_better=False),
    "embedding_mae": Metric("embedding MAE"),
    "embedding_cosine": Metric("embedding cosine", smaller_is_better=False),
    "projected_embedding_mae": Metric("embedding MAE after the projection"),
    "projected_embedding_cosine": Metric(
        "embedding cosine after the projection", smaller_is_better=False
    ),
    "microseconds_per_atom": Metric("time per step and atom", "µs"),
    "bytes_per_atom": Metric("memory per atom", "KB", 1e-3),
    "nanoseconds_per_day": Metric("simulated a day", "ns", smaller_is_better=False),
    "speedup": Metric("speed relative to the teacher", "times", smaller_is_better=False),
    "memory_ratio": Metric("less memory than the teacher", "times", smaller_is_better=False),
    "weight_ratio": Metric("fewer weights than the teacher", "times", smaller_is_better=False),
    "drift": Metric("energy drift", "meV/atom/ps"),
    "rdf_distance": Metric("RDF distance", "Å"),
    "rdf_noise_ratio": Metric("RDF distance in distances of two runs of the teacher"),
    "volume_error_percent": Metric("volume error", "%"),
    "density_error_percent": Metric("density error", "%"),
    "density_error": Metric("density error", "g/cm³"),
    "rmsd15": Metric("RMSD15", "Å"),
    "unrelaxed_crystals": Metric("crystals not relaxed"),
    "unstable_crystals": Metric("crystals not stable"),
    "poisson_ratio_error": Metric("Poisson ratio error"),
    "anisotropy_error": Metric("anisotropy error"),
}
for _modulus in ("young", "bulk", "shear"):
    for _average in ("voigt", "reuss", "hill", "reuss_hill"):
        _words = f"{_modulus} modulus error, {_average.replace('_', '-')}"
        METRICS[f"{_modulus}_{_average}_error"] = Metric(_words, "GPa")


def metric(name: str) -> Metric:
    """Return name and unit of a metric; one not in the table keeps its name, without a unit.

    >>> metric("teacher_force_rmse").title
    'force RMSE from the teacher (meV/Å)'
    >>> metric("hessian_cosine").title
    'hessian cosine'
    """
    if name in METRICS:
        return METRICS[name]

    of_labels = METRICS.get(name.removeprefix(TEACHER))
    if name.startswith(TEACHER) and of_labels is not None:
        return replace(of_labels, label=f"{of_labels.label} from the teacher")

    # Another program's metric has a unit that is not known here, nor which way is better.
    return Metric(name.replace("_", " "), smaller_is_better=None)


def rank(name: str, value: float) -> float:
    """Return a number that is the smaller the better a value is; unknown metrics are errors."""
    return -value if metric(name).smaller_is_better is False else value
