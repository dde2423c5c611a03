"""Averages of a stiffness, against the paper and pymatgen, for all measured crystals."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kd_plugins.evaluate import ElasticAverages, Moduli

UNSTABLE = {
    "malonic acid",
    "1,3,5-triphenylbenzene",
    "MBANP",
    "N-methylurea",
    "pyrazine",
    "succinimide",
    "thiourea",
}
"""Compounds of which a published tensor is not positive definite; one each."""
COMPONENTS = [f"C{i}{j}" for i in range(1, 7) for j in range(1, 7)]


@pytest.fixture(scope="module")
def tensors(shared_file: Callable[[str], Path]) -> list[tuple[str, NDArray[np.float64]]]:
    path = shared_file("molecular_crystals/elastic/stiffness_tensors_rev.csv")
    with open(path, encoding="utf-8-sig") as rows:
        return [
            (row["Compound"], np.array([float(row[name]) for name in COMPONENTS]).reshape(6, 6))
            for row in csv.DictReader(rows)
        ]


def test_averages_of_measured_tensors_equal_pymatgen(
    tensors: list[tuple[str, NDArray[np.float64]]],
) -> None:
    elasticity = pytest.importorskip("pymatgen.analysis.elasticity")
    assert len(tensors) == 237
    unstable = []
    for name, stiffness in tensors:
        try:
            found = ElasticAverages.of(stiffness)
        except ValueError as error:
            assert "not positive definite (lowest eigenvalue -" in str(error)
            unstable.append(name)
            continue
        other = elasticity.ElasticTensor.from_voigt(stiffness)
        bulk, shear = (other.k_voigt, other.k_reuss), (other.g_voigt, other.g_reuss)
        ours = [found.voigt.bulk, found.reuss.bulk, found.voigt.shear, found.reuss.shear]
        ours += [found.hill.bulk, found.hill.shear, found.poisson_ratio]
        mean_bulk, mean_shear = sum(bulk) / 2, sum(shear) / 2
        poisson = (3 * mean_bulk - 2 * mean_shear) / (6 * mean_bulk + 2 * mean_shear)
        theirs = [*bulk, *shear, mean_bulk, mean_shear, poisson]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, err_msg=name)
    assert len(unstable) == 7
    assert set(unstable) == UNSTABLE


def test_reuss_is_below_hill_below_voigt_for_measured_tensors(
    tensors: list[tuple[str, NDArray[np.float64]]],
) -> None:
    for name, stiffness in tensors:
        if np.linalg.eigvalsh(stiffness)[0] <= 0:
            continue
        found = ElasticAverages.of(stiffness)
        for modulus in ("bulk", "shear", "young"):
            voigt, reuss, hill, mixed = (
                getattr(average, modulus)
                for average in (found.voigt, found.reuss, found.hill, found.reuss_hill)
            )
            slack = 1e-9 * voigt  # an isotropic tensor has them all the same
            assert 0 < reuss <= mixed + slack <= hill + 2 * slack <= voigt + 3 * slack, name
            assert hill == pytest.approx((voigt + reuss) / 2)
            assert mixed == pytest.approx((voigt + 3 * reuss) / 4)
        for average in (found.voigt, found.reuss):
            inverse = 1 / (3 * average.shear) + 1 / (9 * average.bulk)
            assert 1 / average.young == pytest.approx(inverse)
        assert -1 < found.poisson_ratio < 0.5
        assert found.anisotropy > 0


def isotropic(bulk: float, shear: float) -> NDArray[np.float64]:
    """Return the stiffness of a solid that is the same in all directions."""
    stiffness = np.diag([2.0, 2.0, 2.0, 1.0, 1.0, 1.0]) * shear
    stiffness[:3, :3] += bulk - 2 * shear / 3
    return stiffness


@pytest.mark.parametrize(("bulk", "shear"), [(10.0, 4.0), (1.0, 100.0), (80.0, 0.5)])
def test_all_averages_of_an_isotropic_solid_are_equal(bulk: float, shear: float) -> None:
    found = ElasticAverages.of(isotropic(bulk, shear))
    expected = Moduli.of(bulk, shear)
    for average in (found.voigt, found.reuss, found.hill, found.reuss_hill):
        for modulus in ("bulk", "shear", "young"):
            assert getattr(average, modulus) == pytest.approx(getattr(expected, modulus))
    assert expected.young == pytest.approx(9 * bulk * shear / (3 * bulk + shear))
    assert found.poisson_ratio == pytest.approx(expected.young / (2 * shear) - 1)
    assert found.anisotropy == pytest.approx(0.0, abs=1e-6)


def test_averages_scale_with_the_stiffness() -> None:
    stiffness = isotropic(10.0, 4.0) + np.diag([5.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    one, double = ElasticAverages.of(stiffness), ElasticAverages.of(2 * stiffness)
    assert double.reuss_hill.young == pytest.approx(2 * one.reuss_hill.young)
    assert double.anisotropy == pytest.approx(one.anisotropy)
    assert double.poisson_ratio == pytest.approx(one.poisson_ratio)


def test_a_zero_eigenvalue_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        ElasticAverages.of(np.diag([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))


def test_wrong_tensors_are_refused() -> None:
    lopsided = np.eye(6)
    lopsided[0, 3] = 0.5
    with pytest.raises(ValueError, match=r"C14 = 0.5 and C41 = 0 GPa; take the mean"):
        ElasticAverages.of(lopsided)
    with pytest.raises(ValueError, match=r"stiffness: expected \(6, 6\), got \(3, 3, 3, 3\)"):
        ElasticAverages.of(np.zeros((3, 3, 3, 3)))
    with pytest.raises(ValueError, match="stiffness: expected finite numbers"):
        ElasticAverages.of(np.full((6, 6), np.nan))
