"""The check before training: one error with every fault, and what is logged instead."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from kd_plugins.doctor.examine import WRONG_TARGETS, PreflightPart, evenly_spaced, preflight
from kd_plugins.doctor.inputs import DoctorInput, Finding
from kd_plugins.store.structure import Structure

N_ATOMS = 4


class HostError(Exception):
    """The error of some host."""


def make_inputs(force_sign: float = 1.0, energy: float = -1.0) -> list[DoctorInput]:
    """Return 20 structures with a teacher that agrees with the labels, forces up to a sign."""
    rng = np.random.default_rng(0)
    inputs = []
    for index in range(20):
        positions = 3.0 * np.arange(3 * N_ATOMS).reshape(-1, 3) + rng.random((N_ATOMS, 3))
        structure = Structure([29] * N_ATOMS, positions, np.zeros((3, 3)), [False] * 3)
        forces = rng.normal(size=(N_ATOMS, 3))
        labels = {"energy": np.asarray(-1.0), "forces": forces}
        teacher = {"energy": np.asarray(energy), "forces": force_sign * forces}
        inputs.append(DoctorInput(f"s{index}", structure, labels, teacher))
    return inputs


def test_all_faults_of_all_parts_are_one_error() -> None:
    """Each under the heading of its part, with the name that overrules it."""
    parts = [
        PreflightPart(make_inputs(force_sign=-1.0)),
        PreflightPart(make_inputs()),
        PreflightPart(make_inputs(energy=np.nan), heading="in the validation data:"),
    ]
    with pytest.raises(HostError) as raised:
        preflight(parts, [], HostError)

    first, sign, second, not_finite = str(raised.value).split("\n  ")
    assert (first, second) == (WRONG_TARGETS, "in the validation data:")
    assert sign.endswith("if it is meant so, allow: [forces_sign] overrules this")
    assert not_finite.startswith("teacher energy of 20 of 20 structures")


def test_nothing_is_logged_of_targets_that_agree(caplog: pytest.LogCaptureFixture) -> None:
    """Not even that there are few of them."""
    with caplog.at_level(logging.DEBUG):
        preflight([PreflightPart(make_inputs()), PreflightPart([])], [])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("part", "allow", "logged"),
    [
        ({"quantities": ["energy"]}, [], "teacher and labels: the teacher's forces point against"),
        ({}, ["forces_sign"], "overruled by allow: [forces_sign]"),
        ({"subject": "soft targets"}, ["forces_sign"], "soft targets: the teacher's forces"),
        ({"ignored": ["forces-sign"]}, [], ""),
        ({"quantities": ["energy"], "log_level": logging.DEBUG}, [], ""),
    ],
    ids=["another quantity", "overruled", "subject", "ignored", "level"],
)
def test_what_does_not_end_the_run_is_logged(
    part: dict[str, object], allow: list[str], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level of the part, and nothing that the host has accepted."""
    with caplog.at_level(logging.WARNING):
        preflight([PreflightPart(make_inputs(force_sign=-1.0), **part)], allow)
    assert logged in caplog.text
    assert bool(logged) == bool(caplog.text)


def test_errors_of_the_host_are_overruled_like_the_doctors() -> None:
    """Whatever quantities the loss compares."""
    found = Finding("energy-zero", "error", "energy", "their energies are 3 eV/atom above")
    part = PreflightPart([], ["forces"], found_by_host=[found])
    with pytest.raises(ValueError, match=r"3 eV/atom above; .* allow: \[energy_zero\]"):
        preflight([part], [])
    preflight([part], ["energy_zero"])


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000, 133_934_018])
def test_evenly_spaced_places_go_from_first_to_last(size: int) -> None:
    """Each once, also where float32 cannot count them any more."""
    places = evenly_spaced(50, size)
    assert len(set(places)) == min(size, 50)
    assert [*places[:1], *places[-1:]] == ([0, size - 1] if size else [])


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_how_good_the_teacher_is_is_logged_where_it_is_measured(
    factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Its numbers as information, advice as a warning; other parts log neither."""
    inputs = make_inputs(force_sign=factor)
    with caplog.at_level(logging.INFO):
        preflight([PreflightPart(inputs), PreflightPart(inputs, is_measured=True)], [])
    (numbers,) = [one for one in caplog.records if one.levelno == logging.INFO]
    assert numbers.message.startswith("teacher and labels are apart by")
    assert f"slope {factor:.3f} ± 0.000, 20 structures" in numbers.message

    warned = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert any("a soft teacher" in text for text in warned) == (factor < 1)


def test_nothing_is_measured_of_targets_that_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="forces_sign"):
        preflight([PreflightPart(make_inputs(force_sign=-1.0), is_measured=True)], [])
    assert "apart by" not in caplog.text
