"""An experiment with every kind of result, from random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kd_plugins.files import write_json

Raw = dict[str, object]

ARMS = ("without teacher", "targets", "targets + embeddings")
SEEDS = (0, 1, 2, 3, 4)
GAIN = dict(zip(ARMS, (1.0, 0.91, 0.99), strict=True))
EPOCHS = list(range(1, 41))
NAMES = ("Si", "GaAs", "LiF", "MgO", "Mo", "NaCl")


def plan(**changes: object) -> Raw:
    """The plan of an experiment."""
    return {
        "title": "Silicon, 500 labels: does the teacher help?",
        "host": "fairchem",
        "control": ARMS[0],
        "arms": list(ARMS),
        "seeds": list(SEEDS),
        "metrics": ["force_rmse", "energy_per_atom_rmse"],
        "provenance": {
            "teacher": "a large potential",
            "teacher fingerprint": "9f" * 32,
            "data": {"training": "a1" * 32, "test": "b2" * 32},
            "structures": 500,
            "licences": {"teacher": "MIT", "data": "CC BY 4.0 <https://example.org>"},
        },
        **changes,
    }


def evaluation(arm: str, seed: int) -> Raw:
    """Everything that can be measured of a model."""
    rng = np.random.default_rng([ARMS.index(arm), seed])
    gain = GAIN[arm] * (1 + 0.02 * np.random.default_rng(seed).normal() + 0.01 * rng.normal())
    return {
        "model": f"{arm} {seed}",
        "fingerprint": "c3" * 32,
        "weights": 1_234_567,
        "train_cpu_seconds": 3600.0 * (1 if arm == ARMS[0] else 1.04),
        "metrics": _metrics(gain, rng),
        "parity": {side: _parity(gain, rng) for side in ("labels", "teacher")},
        "curves": {"validation force RMSE (eV/Å)": _series(0.05 * gain, rng)},
        "terms": _terms(arm, rng),
        "speed": {"student": _cells(gain, 1), "teacher": _cells(1, 30)},
        "rdf": _rdf(gain),
        "volumes": _volumes(gain, rng),
        "elasticity": _elasticity(gain, rng),
    }


def write_experiment(
    folder: Path, arms: tuple[str, ...] = ARMS, seeds: tuple[int, ...] = SEEDS, **changes: object
) -> Path:
    """Write a plan and the evaluations of some of its runs."""
    write_json(folder / "experiment.json", plan(**changes))
    for arm in arms:
        for seed in seeds:
            path = folder / "runs" / arm / f"seed{seed}" / "evaluation.json"
            write_json(path, evaluation(arm, seed))
    return folder


def _metrics(gain: float, rng: np.random.Generator) -> Raw:
    return {
        "force_rmse": 0.05 * gain,
        "force_mae": 0.03 * gain,
        "force_cosine": 1 - 0.02 * gain,
        "energy_per_atom_rmse": 0.004 * (1 + 0.1 * rng.normal()),
        "stress_rmse": 0.002 * gain,
        "teacher_force_rmse": 0.03 * gain,
        "embedding_mae": 0.2 * gain,
        "embedding_cosine": 1 - 0.1 * gain,
        "microseconds_per_atom": 12.0 * gain,
        "bytes_per_atom": 42_000.0,
        "drift": 0.02 * rng.normal(),
        "volume_error_percent": 1.2 * gain,
    }


def _parity(gain: float, rng: np.random.Generator) -> Raw:
    found = {}
    for name, scale, error in (("forces", 1.5, 0.05), ("energy_per_atom", 0.2, 0.004)):
        reference = scale * rng.normal(size=400)
        student = reference + error * gain * rng.normal(size=400)
        found[name] = {"reference": reference.tolist(), "student": student.tolist()}
    return found


def _series(end: float, rng: np.random.Generator, start: float = 8.0) -> Raw:
    decay = 1 + start * np.exp(-np.array(EPOCHS) / 8)
    noise = 1 + 0.03 * rng.normal(size=len(EPOCHS))
    return {"epochs": EPOCHS, "values": (end * decay * noise).tolist()}


def _terms(arm: str, rng: np.random.Generator) -> Raw:
    terms = {"energy": _series(0.2, rng), "forces": _series(1.0, rng, 20.0)}
    if arm == ARMS[0]:
        return terms
    soft = {"soft energy": _series(0.05, rng, 60.0), "hard energy": _series(0.1, rng, 8.0)}
    return terms | soft | {"atomic_energies": _series(0.4, rng, 3.0)}


def _cells(gain: float, times: float) -> list[Raw]:
    return [
        {
            "atoms": n,
            "microseconds": times * gain * (12 + 4000 / n),
            "nanoseconds_per_day": 1e5 / n / times,
            "bytes": times * (4e4 + 1e6 / n),
        }
        for n in (8, 64, 512, 1728)
    ]


def _rdf(gain: float) -> Raw:
    r = np.linspace(0.5, 8, 150)
    peaks = sum(np.exp(-((r - at) ** 2) / 0.02 / at) for at in (2.35, 3.84, 4.5, 5.92, 7.0))
    student = peaks * (1 + 0.1 * (gain - 0.9))
    return {
        "distances": r.tolist(),
        "student": student.tolist(),
        "teacher": peaks.tolist(),
        "floor": 0.004,
        "distance": 0.02 * gain,
    }


def _volumes(gain: float, rng: np.random.Generator) -> Raw:
    references = np.linspace(40, 160, len(NAMES))
    return {
        name: {
            "student": reference * (1 + 0.015 * gain * rng.normal()),
            "teacher": reference * 1.01,
            "reference": reference,
        }
        for name, reference in zip(NAMES, references, strict=True)
    }


def _elasticity(gain: float, rng: np.random.Generator) -> Raw:
    found: Raw = {}
    for place, name in enumerate(NAMES[:4]):
        bulk = 60.0 + 40 * place
        found[name] = {
            "student": _moduli(bulk * (1 + 0.05 * gain * rng.normal())),
            "teacher": _moduli(bulk),
        }
    found["Mo"] = {"student": {"unstable": "a shear modulus below zero"}, "teacher": None}
    return found


def _moduli(bulk: float) -> Raw:
    return {
        "bulk": bulk,
        "shear": 0.6 * bulk,
        "young": 1.5 * bulk,
        "poisson_ratio": 0.25,
        "anisotropy": 1.1 + bulk / 500,
    }
