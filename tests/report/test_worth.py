"""The sentence about the best student: which arm, which numbers, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kd_plugins.report.results import ExperimentResults, RunResults
from kd_plugins.report.worth import Estimate, worth_of_best

SIZES = {"weight_ratio": 253.4, "memory_ratio": 31.0}
CHGNET = {"teacher": "chgnet model=0.3.0", "teacher fingerprint": "c0"}


def results(arms: Mapping[str, Mapping[str, Sequence[float]]], **changes: Any) -> ExperimentResults:
    """Arms with values by metric, one a seed; an arm's name is the fingerprint of its models."""
    runs = {
        (arm, seed): RunResults(
            arm, arm, metrics={name: all_[seed] for name, all_ in found.items()}
        )
        for arm, found in arms.items()
        for seed in range(len(next(iter(found.values()))))
    }
    seeds = tuple(range(1 + max(seed for _, seed in runs)))
    given = {"metrics": ("teacher_force_rmse",), "control": "control", "provenance": CHGNET}
    return ExperimentResults("title", tuple(arms), seeds, runs, "host", **{**given, **changes})


def best(**changes: Sequence[float]) -> dict[str, Sequence[float]]:
    """Everything that is measured of a student beside its teacher, three seeds."""
    return {
        "teacher_force_rmse": (0.079, 0.080, 0.081),
        "teacher_force_rmse_percent": (11.9, 12.0, 12.1),
        "teacher_force_r2": (0.985, 0.9853, 0.9857),
        "teacher_energy_per_atom_rmse": (0.0020, 0.0021, 0.0022),
        "teacher_energy_per_atom_r2": (0.9976, 0.9976, 0.9976),
        "speedup": (80.0, 85.0, 90.0),
        **{name: (value,) * 3 for name, value in SIZES.items()},
        "rdf_noise_ratio": (0.98, 1.0, 1.02),
        **changes,
    }


CONTROL = {"teacher_force_rmse": (0.5, 0.6, 0.7)}


def test_sentence_names_arm_errors_cost_and_noise() -> None:
    found = worth_of_best(results({"control": CONTROL, "forces": best()}))
    assert found is not None
    assert found.sentence == (
        "best student forces beside its teacher chgnet (3 seeds, in brackets 95 %): forces off by "
        "12 (11.8 to 12.2) % of the teacher's rms, R² 0.985, energies by 2.1 (1.85 to 2.35) "
        "meV/atom, R² 0.9976; a step 85 (72.6 to 97.4) times as fast, 253 times fewer weights, 31 "
        "times less memory; g(r) as close to the teacher's as two runs of the teacher are to each "
        "other, 1 (0.95 to 1.05) times as far."
    )
    assert found.numbers["weight_ratio"] == Estimate(253.4, (253.4, 253.4), 3)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((2.0, 2.1, 2.2), "; g(r) 2.1 (1.85 to 2.35) times as far from the teacher's as two runs"),
        ((0.5, 1.0, 1.5), "; g(r) not shown to be further from the teacher's than two runs"),
        ((0.9, 1.0, 1.1), "; g(r) as close to the teacher's as two runs"),
    ],
)
def test_noise_of_the_teacher_decides_the_words(ratios: Sequence[float], words: str) -> None:
    """Closeness is claimed only where the whole interval is near."""
    found = worth_of_best(results({"control": best(rdf_noise_ratio=ratios)}))
    assert found is not None and words in found.sentence


def test_the_best_arm_is_chosen_in_the_metrics_direction() -> None:
    """It may be the control; the teacher itself is no candidate."""
    arms = {"control": best(), "c0": {"teacher_force_rmse": (0.0, 0.0, 0.0)}, "bad": CONTROL}
    found = worth_of_best(results(arms))
    assert found is not None and found.arm == "control"

    cosines = {"control": {"force_cosine": (0.9,)}, "student": {"force_cosine": (0.95,)}}
    arms = {name: {**one, "speedup": (8.0,)} for name, one in cosines.items()}
    found = worth_of_best(results(arms, metrics=("force_cosine",)))
    assert found is not None and found.arm == "student"


def test_a_metric_from_labels_comes_first_beside_the_teachers_own() -> None:
    runs = {
        ("control", seed): RunResults(
            "m", metrics={"force_rmse": 0.127, "speedup": 30.0}, teacher={"force_rmse": 0.121}
        )
        for seed in range(2)
    }
    given = ExperimentResults("t", ("control",), (0, 1), runs, "h", "control", ("force_rmse",))
    found = worth_of_best(given)
    assert found is not None
    assert found.sentence == (
        "best student control beside its teacher (2 seeds, too few for intervals): force RMSE 127 "
        "meV/Å (the teacher's own: 121); a step 30 times as fast."
    )


def test_folders_of_earlier_versions_have_what_they_measured() -> None:
    """Neither percent nor R², and a distance of g(r) that averages over runs."""
    old = {
        "teacher_force_rmse": (0.079, 0.080, 0.081),
        "speedup": (80.0, 85.0, 90.0),
        "rdf_distance": (0.1, 0.1, 0.1),
    }
    found = worth_of_best(results({"control": CONTROL, "student": old}))
    assert found is not None
    assert found.sentence.split(": ")[1] == (
        "forces off by 80 (77.5 to 82.5) meV/Å; a step 85 (72.6 to 97.4) times as fast."
    )


@pytest.mark.parametrize(
    ("teacher", "name"),
    [("hippynn folder=a/b", " hippynn"), ("a large potential", " a large potential"), (None, "")],
)
def test_the_teacher_has_its_name(teacher: str | None, name: str) -> None:
    found = worth_of_best(results({"control": CONTROL}, provenance={"teacher": teacher}))
    assert found is not None and f"beside its teacher{name} (3 seeds" in found.sentence


def test_without_a_teacher_there_is_no_sentence() -> None:
    assert (
        worth_of_best(results({"control": {"force_rmse": (0.1,)}}, metrics=("force_rmse",))) is None
    )
    assert worth_of_best(ExperimentResults("t", ("m",), (0,), {})) is None
    same = {
        "control": {"teacher_force_rmse": (1.0,), "weight_ratio": (1.0,), "memory_ratio": (0.5,)}
    }
    found = worth_of_best(results(same))
    assert found is not None and "as many weights, 2 times more memory." in found.sentence
