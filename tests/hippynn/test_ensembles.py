"""Teachers of several kinds in one list: models, calculators and stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_plugins.hippynn import DataError, add_teacher_targets
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure
from tests.hippynn import fixtures
from tests.hippynn.test_targets import EVERYTHING, PerAtom, labelled


@pytest.fixture
def structures(shared_file: Callable[[str], Path]) -> list[LabelledStructure]:
    return fixtures.read_molybdenum(shared_file, small=6, large=6)


def models(structures: list[LabelledStructure], *seeds: int) -> list[fixtures.Hipnn]:
    found = [fixtures.make_hipnn(seed) for seed in seeds]
    for model in found:
        fixtures.initialise(model, fixtures.make_database(structures))
    return found


def alone(structures: list[LabelledStructure], teacher: Any, **settings: Any) -> Any:
    data = fixtures.make_database(structures)
    add_teacher_targets(data, teacher, EVERYTHING, **settings)
    return data


def test_targets_of_mixed_teachers_are_their_mean_and_spread(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """Equal to the mean and spread of the targets of each teacher alone."""
    first, second, third = models(structures, 2, 4, 6)
    folder = tmp_path / "store"
    members = [labelled(folder, structures, first.energy), PerAtom(second.energy), third.energy]
    data = alone(structures, members, spread=0.01)
    singles = [alone(structures, member) for member in (str(folder), second.energy, third.energy)]
    for split, arrays in data.splits.items():
        for name in EVERYTHING:
            predicted = np.stack([one.splits[split][f"teacher_{name}"].numpy() for one in singles])
            np.testing.assert_allclose(arrays[f"teacher_{name}"], predicted.mean(0), atol=2e-5)
        predicted = np.stack(
            [one.splits[split]["teacher_atomic_energies"].numpy() for one in singles]
        )
        real = arrays["numbers"].numpy() != 0
        expected = real / (1 + np.square(predicted.std(0, ddof=1) / 0.01))
        found = arrays["teacher_atomic_energies_weight"]
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_structure_missing_in_one_teacher_has_no_target(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    first, second = models(structures, 2, 4)
    members = [labelled(tmp_path / "store", structures, first.energy, count=-2), second.energy]
    with pytest.raises(DataError, match="store has no targets of"):
        add_teacher_targets(fixtures.make_database(structures), members)
    data = fixtures.make_database(structures)
    report = add_teacher_targets(data, members, allow_missing=True)
    assert sum(report.missing.values()) == 2
    for split, arrays in data.splits.items():
        counts = arrays["teacher_atomic_energies_weight"].amax(1)
        assert int((counts == 0).sum()) == report.missing[split]


def test_each_teachers_offset_is_subtracted(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """Or the spread would be that of the zeros, and no target would count."""
    first, second = models(structures, 2, 4)
    shifted = labelled(tmp_path / "store", structures, first.energy)
    with torch.no_grad():
        second.energy.torch_module.layers[0].weight += 3.0
    with pytest.raises(DataError, match=r"^teacher 2 of 2: .*align=True"):
        add_teacher_targets(fixtures.make_database(structures), [shifted, second.energy])
    data = fixtures.make_database(structures)
    members = [shifted, second.energy]
    report = add_teacher_targets(data, members, align=True, spread=1.0)
    assert report.offsets[42] == pytest.approx(1.5, abs=0.2)
    arrays = data.splits["train"]
    weights = arrays["teacher_atomic_energies_weight"][arrays["numbers"] != 0]
    assert float(weights.min()) > 0.5


def test_one_wrong_teacher_of_several_is_refused(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """Its energies are 5 eV/atom up and the other's 5 down, so the mean is right."""
    first, second = models(structures, 2, 4)
    with torch.no_grad():
        first.energy.torch_module.layers[0].weight += 5.0
        second.energy.torch_module.layers[0].weight -= 5.0
    members = [first.energy, labelled(tmp_path / "store", structures, second.energy)]
    with pytest.raises(DataError, match="^teacher 1 of 2: "):
        add_teacher_targets(fixtures.make_database(structures), members)


def test_spread_in_a_store_weights_its_targets(
    structures: list[LabelledStructure], tmp_path: Path
) -> None:
    """As `kd-plugins label --teacher` of several writes it."""
    names = ("atomic_energies", "atomic_energies_std")
    store = TargetStore.create(
        tmp_path / "store", Manifest("two", "made", dict.fromkeys(names, "float64"))
    )
    store.append(
        [
            Record(f.structure_id, to_structure(f.atoms), shares(f, spread=0.1 * (1 + row % 3)))
            for row, f in enumerate(structures)
        ]
    )
    data = fixtures.make_database(structures)
    add_teacher_targets(data, store, spread=0.1)
    found = torch.cat([a["teacher_atomic_energies_weight"].amax(1) for a in data.splits.values()])
    assert sorted(set(found.tolist())) == pytest.approx([0.1, 0.2, 0.5])


def shares(structure: LabelledStructure, spread: float) -> dict[str, torch.Tensor]:
    n = len(structure.atoms)
    share = float(structure.labels["energy"]) / n
    return {
        "atomic_energies": torch.full((n,), share, dtype=torch.float64),
        "atomic_energies_std": torch.full((n,), spread, dtype=torch.float64),
    }
