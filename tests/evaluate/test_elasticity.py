"""Stiffness from stresses equals that from energies; atoms relax; wrong input is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import GPa

from kd_plugins.evaluate import ElasticAverages, elastic_tensor, relax, strained
from tests.evaluate.calculators import Failing

STEP = 2e-3
"""Strain of central differences."""
DIFFERENCES = {"rel": 0.01}
"""What is left of EMT's higher derivatives at 1 % strain."""


def at_rest(structure: str) -> Atoms:
    """Return copper without stress, cubic (fcc) or hexagonal (hcp)."""
    atoms = bulk("Cu", cubic=True) if structure == "fcc" else bulk("Cu", "hcp", a=2.54, c=4.15)
    return relax(atoms, EMT(), force_tolerance=1e-5).atoms


def energy(atoms: Atoms, strain: np.ndarray, relaxed: bool = False) -> float:
    """Return the energy of a strained crystal, in whose Voigt strain shears are engineering."""
    xx, yy, zz, yz, xz, xy = strain
    tensor = np.array([[xx, xy / 2, xz / 2], [xy / 2, yy, yz / 2], [xz / 2, yz / 2, zz]])
    trial = atoms.copy()
    trial.set_cell(atoms.cell.array @ (np.eye(3) + tensor), scale_atoms=True)
    if relaxed:
        return relax(trial, EMT(), force_tolerance=1e-5, cell=False).energy
    trial.calc = EMT()
    return trial.get_potential_energy()


def second_derivative(atoms: Atoms, i: int, j: int, relaxed: bool = False) -> float:
    """Return d²E / de_i de_j / V in GPa by central differences; C_ij of Taniguchi 2024."""
    one, other = STEP * np.eye(6)[i], STEP * np.eye(6)[j]
    total = sum(
        sign * another * energy(atoms, sign * one + another * other, relaxed)
        for sign, another in product((1, -1), repeat=2)
    )
    return total / (4 * STEP**2) / atoms.get_volume() / GPa


@pytest.fixture(scope="module")
def copper() -> Atoms:
    return at_rest("fcc")


def test_stiffness_of_copper_is_the_second_derivative_of_its_energy(copper: Atoms) -> None:
    found = elastic_tensor(copper, EMT())
    c11, c12, c44 = found.stiffness[0, 0], found.stiffness[0, 1], found.stiffness[3, 3]
    assert c11 == pytest.approx(second_derivative(copper, 0, 0), **DIFFERENCES)
    assert c12 == pytest.approx(second_derivative(copper, 0, 1), **DIFFERENCES)
    assert c44 == pytest.approx(second_derivative(copper, 3, 3), **DIFFERENCES)
    cubic = np.diag([c11 - c12] * 3 + [c44] * 3)
    cubic[:3, :3] += c12
    np.testing.assert_allclose(found.stiffness, cubic, atol=1e-6)
    assert np.array_equal(found.stiffness, found.stiffness.T)
    assert found.asymmetry < 1e-6
    assert found.fit_residual < 0.05
    assert np.abs(found.residual_stress).max() < 0.05
    assert found.not_relaxed == ()
    assert found.unstable == ()


def test_bulk_modulus_does_not_depend_on_orientation(copper: Atoms) -> None:
    turned = copper.copy()
    turned.rotate(30.0, (1, 2, 3), rotate_cell=True)
    one, other = (elastic_tensor(atoms, EMT()).stiffness for atoms in (copper, turned))
    assert np.abs(one - other).max() > 1.0
    assert other[:3, :3].sum() == pytest.approx(one[:3, :3].sum(), rel=1e-3)


def test_relaxed_atoms_soften_the_crystal() -> None:
    atoms = at_rest("hcp")
    relaxed = elastic_tensor(atoms, EMT(), strains=(-0.005, 0.005), force_tolerance=1e-4)
    clamped = elastic_tensor(atoms, EMT(), strains=(-0.005, 0.005), relax_ions=False)
    assert relaxed.stiffness[5, 5] == pytest.approx(
        second_derivative(atoms, 5, 5, relaxed=True), rel=0.02
    )
    assert clamped.stiffness[5, 5] == pytest.approx(second_derivative(atoms, 5, 5), rel=0.02)
    softening = clamped.stiffness[5, 5] - relaxed.stiffness[5, 5]
    assert softening > 1.0  # GPa
    assert relaxed.stiffness[2, 2] == pytest.approx(clamped.stiffness[2, 2], rel=1e-3)


def test_residuals_and_unconverged_strains_are_reported(
    copper: Atoms, capsys: pytest.CaptureFixture[str]
) -> None:
    before = copper.copy()
    squeezed = copper.copy()
    squeezed.set_cell(copper.cell.array * 0.99, scale_atoms=True)
    squeezed.rattle(0.02, seed=0)
    found = elastic_tensor(squeezed, EMT(), strains=(-0.01, 0.01), max_steps=1)
    assert found.residual_stress[:3].max() < -1.0
    assert len(found.not_relaxed) == 12
    assert found.not_relaxed[:2] == ("xx -0.010", "xx +0.010")
    assert capsys.readouterr() == ("", "")
    assert copper == before


def test_stiffness_at_a_saddle_is_not_positive_definite() -> None:
    """Body-centred copper is the top of the Bain path, although stiff along each axis."""
    saddle = relax(bulk("Cu", "bcc", a=2.86, cubic=True), EMT(), force_tolerance=1e-5).atoms
    found = elastic_tensor(saddle, EMT(), strains=(-0.01, 0.01))
    assert found.unstable == ()
    with pytest.raises(ValueError, match="not positive definite"):
        ElasticAverages.of(found.stiffness)


def test_strains_of_an_unrelaxed_crystal_are_reported_as_unstable(copper: Atoms) -> None:
    moved = copper.copy()
    moved.positions[0] += [0.05, 0.0, 0.0]
    assert len(elastic_tensor(moved, EMT(), strains=(-0.005, 0.005)).unstable) == 6


def test_progress_bar_is_shown_on_request(
    copper: Atoms, capsys: pytest.CaptureFixture[str]
) -> None:
    elastic_tensor(copper, EMT(), strains=(-0.01, 0.01), relax_ions=False, progress=True)
    assert "elasticity: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("component", range(6))
def test_strained_cell_has_the_strain(copper: Atoms, component: int) -> None:
    skewed = strained(copper, component, 0.01)
    deformation = np.linalg.inv(copper.cell.array) @ skewed.cell.array
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-12)
    lengthening = deformation.T @ deformation
    voigt = [lengthening[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    expected = [1.0] * 3 + [0.0] * 3
    expected[component] += 0.0201 if component < 3 else 0.01
    np.testing.assert_allclose(voigt, expected, atol=5e-5)
    scaled = copper.get_scaled_positions(wrap=False)
    np.testing.assert_allclose(skewed.get_scaled_positions(wrap=False), scaled, atol=1e-12)


@pytest.mark.parametrize("strains", [(), (0.01,), (0.01, 0.02), (-0.01, 0.02), (-0.01, 0.0, 0.01)])
def test_strains_without_their_opposites_are_refused(strains: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strains: expected pairs such as -0.01 and 0.01, got"):
        elastic_tensor(bulk("Cu"), EMT(), strains)


def test_a_molecule_is_refused() -> None:
    with pytest.raises(ValueError, match="three periodic lattice vectors, .* and 0 vectors"):
        elastic_tensor(Atoms("Cu"), EMT())


@pytest.mark.parametrize("value", [None, float("nan")], ids=["error", "NaN"])
def test_a_strain_at_which_the_calculator_fails_is_named(value: float | None) -> None:
    with pytest.raises(
        ValueError, match=r"strain xx \+0.005: the calculator fails: .*(memory|nan)"
    ):
        elastic_tensor(bulk("Cu"), Failing(2, value))
