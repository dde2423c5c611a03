"""An ensemble predicts the mean of its teachers and their standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from kd_plugins.core.quantities import QUANTITIES
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import Ensemble, TeacherError, label, load_teacher

LJ = "ase.calculators.lj:LennardJones rc=4.0 sigma={}"
NAMES = ["emt", LJ.format(2.2), LJ.format(2.4)]
COMMON = ("energy", "energy_per_atom", "forces", "stress", "atomic_energies")
SPREADS = ("energy_std", "forces_std", "stress_std", "atomic_energies_std")


class Featured:
    """A teacher with embeddings, magmoms of some structures, and energies that may be bad."""

    def __init__(self, width: int = 4, energy: float = 1.0) -> None:
        self.quantities = ("energy", "magmoms", "node_embeddings", "force_derivatives")
        self.fingerprint, self.versions = f"featured {width}", {"featured": str(width)}
        self.width, self.energy = width, energy

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Return magmoms of iron only."""
        values = {
            "energy": np.array(self.energy, dtype=np.float32),
            "magmoms": np.ones(len(atoms)),
            "force_derivatives": np.zeros((len(atoms), 2, 3)),
            "node_embeddings": np.zeros((len(atoms), self.width)),
        }
        if "Fe" not in atoms.symbols:
            del values["magmoms"]
        return {name: values[name] for name in quantities if name in values}


def copper() -> Atoms:
    """Return a rattled crystal."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def predicted_by(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return all that an ensemble predicts for copper."""
    return load_teacher(" & ".join(names))(copper(), (*COMMON, *SPREADS))


def test_mean_and_sample_standard_deviation() -> None:
    """Number by number."""
    found, alone = predicted_by(NAMES), [load_teacher(name)(copper(), COMMON) for name in NAMES]
    assert set(found) == {*COMMON, *SPREADS}
    for name in COMMON:
        stacked = np.stack([answer[name] for answer in alone])
        mean = stacked.sum(axis=0) / 3
        np.testing.assert_allclose(found[name], mean, rtol=1e-13, atol=1e-13)
        if f"{name}_std" in found:
            spread = np.sqrt(((stacked - mean) ** 2).sum(axis=0) / 2)
            np.testing.assert_allclose(found[f"{name}_std"], spread, rtol=1e-10, atol=1e-13)


def test_spread_of_two_teachers_is_their_distance_over_root_two() -> None:
    found = predicted_by(NAMES[:2])
    one, other = (load_teacher(name)(copper(), COMMON) for name in NAMES[:2])
    for name in SPREADS:
        mean = name.removesuffix("_std")
        expected = np.abs(one[mean] - other[mean]) / np.sqrt(2)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-14)
        assert found[name].max() > 0


def test_identical_teachers_have_no_spread() -> None:
    """Their spread is 0, and of two the mean is each one's own, to the bit."""
    found, alone = predicted_by(["emt", "emt"]), load_teacher("emt")(copper(), COMMON)
    for name in COMMON:
        assert np.array_equal(found[name], alone[name])
    for name in SPREADS:
        assert not found[name].any()


def test_order_of_teachers_does_not_matter() -> None:
    expected = predicted_by(NAMES)
    for order in permutations(NAMES):
        for name, value in predicted_by(order).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-13)


def test_spread_permutes_with_the_axes() -> None:
    """Energies' spreads stay; forces' spreads change places with the axes."""
    turned = copper()
    turned.set_cell(turned.cell[:, [1, 2, 0]])
    turned.positions = turned.positions[:, [1, 2, 0]]
    found, expected = load_teacher(" & ".join(NAMES))(turned, SPREADS), predicted_by(NAMES)
    close = {"rtol": 1e-9, "atol": 1e-11}
    for name in ("energy_std", "atomic_energies_std"):
        np.testing.assert_allclose(found[name], expected[name], **close)
    np.testing.assert_allclose(found["forces_std"], expected["forces_std"][:, [1, 2, 0]], **close)
    np.testing.assert_allclose(
        found["stress_std"], expected["stress_std"][[1, 2, 0, 4, 5, 3]], **close
    )


def test_ensemble_labels_into_a_store(tmp_path: Path) -> None:
    """By its name, with spreads in the shapes of the table; of a molecule no stress, no spread."""
    frames = [LabelledStructure("metal", copper()), LabelledStructure("water", molecule("H2O"))]
    name = " & ".join(NAMES[1:])
    report = label(frames, name, tmp_path, progress=False)
    assert (report.labelled, report.failed) == (2, {})
    store = TargetStore.open(tmp_path)
    assert store.manifest.teacher == name
    assert set(store.manifest.dtypes) == {*COMMON, *SPREADS} - {"energy_per_atom"}
    expected = load_teacher(name)(copper(), tuple(store.manifest.dtypes))
    for quantity, value in store["metal"].values.items():
        assert QUANTITIES[quantity].fits(tuple(value.shape[1:]))
        np.testing.assert_allclose(value.squeeze(0), expected[quantity], rtol=1e-6, atol=1e-7)
    assert {"stress", "stress_std"}.isdisjoint(store["water"].values)
    assert label(frames, name, tmp_path, progress=False).skipped == 2


def test_only_the_named_quantities_are_returned() -> None:
    """A spread needs no mean beside it."""
    ensemble = load_teacher(" & ".join(NAMES))
    for names in (["energy_std"], ["forces"], ["forces_std", "energy", "energy_per_atom"]):
        assert set(ensemble(copper(), names)) == set(names)


def test_quantities_are_the_shared_ones_without_embeddings() -> None:
    """But for embeddings, whose axes are each teacher's own; order is that of the table."""
    ensemble = Ensemble([Featured(), Featured(8)])
    assert ensemble.quantities == (
        *("energy", "magmoms", "force_derivatives"),
        *("energy_std", "magmoms_std"),
    )
    assert Ensemble([Featured(), load_teacher("emt")]).quantities == (
        *("energy", "magmoms", "energy_std", "magmoms_std"),
    )


def test_quantity_that_one_teacher_lacks_is_left_out() -> None:
    """As by a teacher alone."""
    ensemble = Ensemble([Featured(), Featured()])
    asked = ["energy_std", "magmoms", "magmoms_std"]
    assert set(ensemble(Atoms("Fe"), asked)) == set(asked)
    assert set(ensemble(Atoms("Cu"), asked)) == {"energy_std"}


def test_means_are_in_double_precision() -> None:
    """Totals of -1e5 eV that differ by 1 meV, which float32 cannot hold, do so in the end."""
    totals = [-1e5, -1e5 + 1.0, -1e5 + 0.5]
    found = Ensemble([Featured(energy=total) for total in totals])(
        Atoms("H"), ["energy", "energy_std"]
    )
    assert found["energy"].dtype == np.float64
    assert found["energy"] == pytest.approx(-1e5 + 0.5, abs=1e-9)
    assert found["energy_std"] == pytest.approx(0.5, abs=1e-9)


def test_nan_of_one_teacher_is_nan_of_the_ensemble() -> None:
    ensemble = Ensemble([Featured(), Featured(energy=float("nan"))])
    assert not np.isfinite(list(ensemble(Atoms("H"), ["energy", "energy_std"]).values())).any()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_teachers_are_refused(count: int) -> None:
    with pytest.raises(TeacherError, match=f"needs two or more teachers, got {count}"):
        Ensemble([Featured()] * count)


def test_teachers_without_a_shared_quantity_are_refused() -> None:
    class Forceful(Featured):
        """Gives forces and embeddings only."""

        def __init__(self) -> None:
            super().__init__()
            self.quantities = ("forces", "node_embeddings")

    with pytest.raises(TeacherError, match="no quantity in common"):
        Ensemble([Featured(), Forceful()])


def test_fingerprint_and_versions_name_all_teachers() -> None:
    teachers = [load_teacher(name) for name in NAMES]
    ensemble = Ensemble(teachers)
    assert all(teacher.fingerprint in ensemble.fingerprint for teacher in teachers)
    assert ensemble.fingerprint != Ensemble(teachers[:2]).fingerprint
    assert set(Ensemble([teachers[0], Featured()]).versions) == {
        "ase",
        "numpy",
        "torch",
        "featured",
    }
