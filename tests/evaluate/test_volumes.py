"""Volume errors count every crystal, also those that did not relax."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from kd_plugins.evaluate import Relaxation, VolumeErrors, relax, volume_error_percent
from tests.evaluate.calculators import Failing


def relaxation(volume: float, reason: str = "converged") -> Relaxation:
    """Return one that ended with a volume."""
    done = reason == "converged"
    return Relaxation(bulk("Cu"), done, 3, reason, volume, -1.0, 0.0, seconds=0.1)


def test_means_of_signed_and_absolute_errors() -> None:
    found = VolumeErrors.of(
        {"a": relaxation(99.0), "b": relaxation(206.0), "c": relaxation(55.0)},
        {"a": 100.0, "b": 200.0, "c": 50.0, "more": 1.0},
    )
    assert found.errors == pytest.approx({"a": -1.0, "b": 3.0, "c": 10.0})
    assert found.mean == pytest.approx(4.0)
    assert found.mean_absolute == pytest.approx(14 / 3)
    assert found.median_absolute == pytest.approx(3.0)
    assert found.failures == {}
    assert "3 crystals: volume error +4.00 % on average, 4.67 % absolute" in str(found)


def test_a_failed_relaxation_counts_and_is_named() -> None:
    reason = "the volume went to 2.10 times that of the start"
    found = VolumeErrors.of(
        {"a": relaxation(101.0), "b": relaxation(210.0, reason)}, {"a": 100.0, "b": 100.0}
    )
    assert found.mean_absolute == pytest.approx(55.5)
    assert found.failures == {"b": reason}
    assert found.converged.mean_absolute == pytest.approx(1.0)
    assert f"1 not relaxed: b (+110.0 %: {reason})" in str(found)


def test_a_crystal_without_volume_is_named_and_left_out_of_means() -> None:
    copper = bulk("Cu")
    relaxations = {"good": relax(copper, EMT()), "bad": relax(copper, Failing(0))}
    found = VolumeErrors.of(relaxations, dict.fromkeys(relaxations, copper.get_volume()))
    assert np.isnan(found.errors["bad"])
    assert found.mean == found.errors["good"]
    assert "bad (+nan %: RuntimeError: out of memory)" in str(found)
    assert np.isnan(VolumeErrors.of({"bad": relaxations["bad"]}, {"bad": 1.0}).mean)


@pytest.mark.parametrize("reference", [0.0, -1.0, float("nan")])
def test_a_reference_that_is_not_positive_is_refused(reference: float) -> None:
    with pytest.raises(ValueError, match=r"reference volume: expected a number above 0 Å³, got"):
        volume_error_percent(1.0, reference)


def test_missing_reference_volumes_are_named() -> None:
    with pytest.raises(ValueError, match="expected at least one relaxation"):
        VolumeErrors.of({}, {"a": 1.0})
    with pytest.raises(KeyError, match="no reference volume of b, c"):
        VolumeErrors.of({name: relaxation(1.0) for name in "cab"}, {"a": 1.0})
