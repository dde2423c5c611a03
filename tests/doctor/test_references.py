"""Laws of the per-element energy offset."""

from __future__ import annotations

import numpy as np
import pytest

from kd_plugins.doctor.references import Compositions, References, fit_references
from kd_plugins.store.structure import Array

OFFSETS = {1: 0.5, 6: -3.0, 8: 12.25}
OIL, WATER, ACID, GAS = [6, 1, 1], [8, 1, 1], [6, 8, 8, 1, 1], [1, 1]


def elements(*structures: list[int]) -> list[Array]:
    return [np.array(numbers) for numbers in structures]


def total(numbers: Array, offsets: dict[int, float] = OFFSETS) -> float:
    return sum(offsets[z] for z in numbers.tolist())


def drawn(number: int, seed: int = 0) -> list[Array]:
    """Return structures of random size and composition."""
    generator = np.random.default_rng(seed)
    return [generator.choice(list(OFFSETS), generator.integers(2, 9)) for _ in range(number)]


def fitted(structures: list[Array], noise: float = 0.0, seed: int = 1) -> References:
    generator = np.random.default_rng(seed)
    labels = generator.normal(-50.0, 20.0, len(structures))
    sizes = np.array([len(numbers) for numbers in structures])
    offsets = np.array([total(numbers) for numbers in structures])
    return fit_references(
        structures, labels + offsets + noise * sizes * generator.normal(size=len(sizes)), labels
    )


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-3, 1e4])
def test_an_offset_is_recovered(scale: float) -> None:
    """Whatever its size, and nothing remains."""
    structures, labels = drawn(30), np.zeros(30)
    teacher = scale * np.array([total(numbers) for numbers in structures])
    references = fit_references(structures, teacher, labels)
    expected = {z: pytest.approx(scale * offset, rel=1e-9) for z, offset in OFFSETS.items()}
    assert references.offsets == expected
    assert references.std < 1e-11 * abs(scale)
    assert references.supported == references.determined == set(OFFSETS)


def test_total_offset_is_the_sum_over_atoms() -> None:
    """For energies of structures and for atomic energies alike."""
    references = fitted(drawn(30))
    (water,) = elements(WATER)
    assert references.per_atom(water).sum() == pytest.approx(total(water))
    assert references.total(water) == pytest.approx(total(water))


def test_only_differences_of_energies_count() -> None:
    """What both sides have more changes nothing."""
    structures, generator = drawn(30), np.random.default_rng(3)
    teacher, labels, more = generator.normal(size=(3, 30))
    one = fit_references(structures, teacher, labels)
    other = fit_references(structures, teacher + more, labels + more)
    assert other.offsets == {z: pytest.approx(value) for z, value in one.offsets.items()}


def test_order_of_structures_does_not_matter() -> None:
    """Neither that of structures nor that of atoms."""
    structures, generator = drawn(20), np.random.default_rng(4)
    teacher = generator.normal(size=20)
    order = generator.permutation(20)
    one = fit_references(structures, teacher, np.zeros(20))
    turned = [structures[row][::-1] for row in order]
    other = fit_references(turned, teacher[order], np.zeros(20))
    assert other.offsets == {z: pytest.approx(value) for z, value in one.offsets.items()}
    np.testing.assert_allclose(other.residuals, one.residuals[order], atol=1e-12)


def test_left_out_residual_equals_refitting_without_the_structure() -> None:
    """The formula equals doing it."""
    structures, energies = drawn(12), np.random.default_rng(5).normal(size=12)
    compositions = Compositions.of(structures)
    rows = np.arange(12)
    slow = [
        energies[row]
        - compositions.fractions[row]
        @ compositions.select(rows != row).solve(energies[rows != row])
        for row in rows
    ]
    np.testing.assert_allclose(compositions.left_out(energies), slow, atol=1e-10)


def test_elements_in_fixed_proportion_are_not_determined_one_by_one() -> None:
    """Their sum is known, each alone is not, and the least offsets are chosen."""
    salt = elements([11, 17], [11, 17, 11, 17], [12])
    references = fit_references(salt, np.array([3.0, 6.0, 5.0]), np.zeros(3))
    assert references.determined == {12}
    assert references.offsets == {z: pytest.approx(v) for z, v in {11: 1.5, 12: 5, 17: 1.5}.items()}
    assert references.covers(np.array([11, 11, 17, 17]))
    assert not references.covers(np.array([11, 17, 17]))
    assert not references.covers(np.array([11, 17, 18]))


def test_an_element_in_one_structure_is_determined_but_not_supported() -> None:
    """Its structure has no residual against the others."""
    references = fitted(elements(OIL, OIL, GAS, GAS, WATER))
    assert references.determined == {1, 6, 8}
    assert references.supported == {1, 6}
    assert np.isnan(references.left_out[4])
    assert np.isfinite(references.left_out[:4]).all()


@pytest.mark.parametrize("wrong", [8.0, -200.0, 1e5])
def test_a_failed_calculation_does_not_change_the_fit(wrong: float) -> None:
    """It is found, left aside, and keeps its residual."""
    structures = drawn(40)
    labels = np.zeros(40)
    teacher = np.array([total(numbers) for numbers in structures])
    teacher[7] += wrong * len(structures[7])
    references = fit_references(structures, teacher, labels)
    assert np.flatnonzero(references.outliers).tolist() == [7]
    assert references.residuals[7] == pytest.approx(wrong)
    assert references.offsets == {z: pytest.approx(value) for z, value in OFFSETS.items()}


def test_normal_scatter_gives_no_outliers() -> None:
    """Not of a few structures, nor of many."""
    for number in (5, 10, 30, 100):
        assert not any(fitted(drawn(number, seed), 0.3).outliers.any() for seed in range(20))


def test_std_and_mad_match_the_noise() -> None:
    """Standard deviation and median absolute residual of normal noise."""
    references = fitted(drawn(2000), noise=0.1)
    assert references.std == pytest.approx(0.1, rel=0.1)
    assert references.mad == pytest.approx(0.0675, rel=0.1)


@pytest.mark.parametrize(
    ("teacher", "labels", "structures", "words"),
    [
        ([1.0], [1.0, 2.0], [GAS, GAS], "got 1 and 2 for 2 structures"),
        ([], [], [], "got 0 and 0 for 0 structures"),
        ([np.nan], [1.0], [GAS], "an energy is NaN or inf"),
        ([1.0], [1.0], [[]], "expected one atom or more a structure"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_fitted_is_refused(
    teacher: list[float], labels: list[float], structures: list[list[int]], words: str
) -> None:
    """With what was expected and what came."""
    with pytest.raises(ValueError, match=words):
        fit_references(elements(*structures), np.array(teacher), np.array(labels))


def test_an_unknown_element_is_refused() -> None:
    """There is no zero to fall back to."""
    with pytest.raises(KeyError, match="no offset is known of element 79; the fitted ones are 1"):
        fitted(drawn(10)).total(np.array([79]))
